//! What a worker is doing, as it writes it to the progress page.

/// The `phase` word of the progress page. Deadlines for hangs are kept per phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Phase {
    /// Attached, not yet told what to load.
    Starting = 0,
    /// Reading weights and warming up.
    Loading = 1,
    /// Nothing to do; waiting on the commands ring.
    Idle = 2,
    /// Running a chunk of a prompt through the model.
    Prefill = 3,
    /// Running a decode step.
    Decode = 4,
    /// Finishing what runs; takes nothing new.
    Draining = 5,
}

impl Phase {
    /// The phase for a word read from the page, `None` for a word nobody writes.
    pub fn from_word(word: u32) -> Option<Self> {
        [Self::Starting, Self::Loading, Self::Idle, Self::Prefill, Self::Decode, Self::Draining]
            .into_iter()
            .find(|phase| *phase as u32 == word)
    }

    /// The name shown to people and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Loading => "loading",
            Self::Idle => "idle",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Draining => "draining",
        }
    }
}
