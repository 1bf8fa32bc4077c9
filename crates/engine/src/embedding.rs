//! Texts that wait for their vectors.
//!
//! They take no place among the sequences: a pass over some of them begins and ends between two
//! units of the scheduler's work.

use crate::scheduler::{Sink, refuse};
use crate::waiting::class;
use mlxd_protocol::{Command, Embed, LoadSpec, Refusal, RefusalCode};

/// Texts of one pass at the most.
const ROWS_MAX: usize = 64;

/// Tokens of one pass at the most, padding counted, while nothing else runs.
pub(crate) const PADDED_TOKENS_MAX: usize = 8192;

/// Passes that a text is left out of lift it by one priority, so that none waits for ever.
const PASSES_LIFT: u32 = 16;

/// Waiting texts, first come first served within a priority.
#[derive(Debug, Clone)]
pub struct EmbedQueue {
    /// In order of arrival.
    waiting: Vec<Waiting>,
    waiting_max: usize,
    busy_tokens_max: usize,
}

/// A text, and how many passes went without it.
#[derive(Debug, Clone)]
struct Waiting {
    embed: Embed,
    passes: u32,
}

impl Waiting {
    /// Its priority as a number, 0 the most urgent, less what waiting has lifted it.
    fn level(&self) -> u32 {
        class(self.embed.priority).saturating_sub(self.passes / PASSES_LIFT)
    }
}

impl From<&LoadSpec> for EmbedQueue {
    fn from(spec: &LoadSpec) -> Self {
        Self {
            waiting: Vec::new(),
            waiting_max: (spec.running_max as usize).saturating_add(spec.queued_max as usize),
            busy_tokens_max: (spec.prefill_chunk_tokens_busy as usize).max(1),
        }
    }
}

impl EmbedQueue {
    /// Takes `command` if it is about a text, and gives it back if it is not.
    pub fn take(
        &mut self,
        command: Command,
        draining: bool,
        sink: &mut impl Sink,
    ) -> Option<Command> {
        match command {
            Command::Embed(embed) => {
                match self.room(draining) {
                    Ok(()) => self.waiting.push(Waiting { embed, passes: 0 }),
                    Err(refusal) => refuse(&embed.trace, embed.request, refusal, sink),
                }
                None
            }
            Command::Cancel(request) => {
                let position = self.waiting.iter().position(|text| text.embed.request == request);
                match position {
                    Some(position) => {
                        self.waiting.remove(position);
                        None
                    }
                    None => Some(command),
                }
            }
            Command::Submit(_) => Some(command),
        }
    }

    fn room(&self, draining: bool) -> Result<(), Refusal> {
        if draining {
            let message = "the worker is finishing its last answers; ask again".into();
            return Err(Refusal { code: RefusalCode::Draining, message });
        }
        if self.waiting.len() >= self.waiting_max {
            let message = format!(
                "{} texts are waiting, which is all this worker takes; ask again later",
                self.waiting.len()
            );
            return Err(Refusal { code: RefusalCode::Busy, message });
        }
        Ok(())
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Takes out the texts of the next pass: the first of the most urgent, and as many of like
    /// length as fit beside it. Fewer where sequences wait for their next step meanwhile.
    pub fn next_pass(&mut self, busy: bool) -> Vec<Embed> {
        let tokens_max = if busy { self.busy_tokens_max } else { PADDED_TOKENS_MAX };
        let urgent = self.waiting.iter().map(Waiting::level).min();
        let first = self.waiting.iter().position(|text| Some(text.level()) == urgent);
        let Some(first) = first else {
            return Vec::new();
        };
        let first = self.waiting.remove(first).embed;
        let length = first.tokens.len();
        let mut longest = length;
        let mut pass = vec![first];
        let mut index = 0;
        while index < self.waiting.len() && pass.len() < ROWS_MAX {
            let candidate = self.waiting[index].embed.tokens.len();
            let padded = longest.max(candidate) * (pass.len() + 1);
            // Of much different length, it would mostly be padding.
            let alike = candidate <= 2 * length && length <= 2 * candidate;
            if alike && padded <= tokens_max {
                longest = longest.max(candidate);
                pass.push(self.waiting.remove(index).embed);
            } else {
                index += 1;
            }
        }
        self.waiting.iter_mut().for_each(|text| text.passes = text.passes.saturating_add(1));
        pass
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlxd_protocol::{Priority, Report, RequestId, TokenRecord};
    use proptest::prelude::*;

    #[derive(Default)]
    struct Heard(Vec<Report>);

    impl Sink for Heard {
        fn report(&mut self, report: Report) {
            self.0.push(report);
        }
        fn tokens(&mut self, _: &[TokenRecord]) {}
    }

    fn queue(waiting_max: usize) -> EmbedQueue {
        EmbedQueue { waiting: Vec::new(), waiting_max, busy_tokens_max: 100 }
    }

    fn text(request: u64, length: usize, priority: Priority) -> Command {
        Command::Embed(Embed {
            request: RequestId(request),
            trace: String::new(),
            tokens: vec![1; length],
            dimensions: None,
            priority,
        })
    }

    fn names(pass: &[Embed]) -> Vec<u64> {
        pass.iter().map(|embed| embed.request.0).collect()
    }

    #[test]
    fn like_lengths_go_together_and_urgent_ones_first() {
        let (mut queue, mut heard) = (queue(10), Heard::default());
        for (request, length, priority) in [
            (1, 10, Priority::Low),
            (2, 10, Priority::Normal),
            (3, 100, Priority::Normal),
            (4, 15, Priority::Normal),
            (5, 5000, Priority::Normal),
        ] {
            assert_eq!(queue.take(text(request, length, priority), false, &mut heard), None);
        }
        assert_eq!(names(&queue.next_pass(false)), [2, 1, 4]);
        assert_eq!(names(&queue.next_pass(true)), [3]);
        assert_eq!(names(&queue.next_pass(true)), [5], "one text always goes");
        assert_eq!(names(&queue.next_pass(false)), [] as [u64; 0]);
        assert!(heard.0.is_empty());
    }

    #[test]
    fn what_cannot_wait_is_refused() {
        let (mut queue, mut heard) = (queue(1), Heard::default());
        queue.take(text(1, 1, Priority::Normal), true, &mut heard);
        queue.take(text(2, 1, Priority::Normal), false, &mut heard);
        queue.take(text(3, 1, Priority::Normal), false, &mut heard);
        let codes: Vec<_> = heard
            .0
            .iter()
            .map(|report| match report {
                Report::Ended(ended) => (ended.request.0, ended.refusal.code),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(codes, [(1, RefusalCode::Draining), (3, RefusalCode::Busy)]);
        let cancel = |request| Command::Cancel(RequestId(request));
        assert_eq!(queue.take(cancel(7), false, &mut heard), Some(cancel(7)));
        assert_eq!(queue.take(cancel(2), false, &mut heard), None);
        assert!(queue.is_empty());
    }

    #[test]
    fn no_flood_of_urgent_texts_keeps_another_waiting_for_ever() {
        let (mut queue, mut heard) = (queue(10), Heard::default());
        queue.take(text(0, 1, Priority::Low), false, &mut heard);
        let mut passes = 0;
        loop {
            // Too long to share a pass with the other.
            queue.take(text(1 + passes, 1000, Priority::High), false, &mut heard);
            if names(&queue.next_pass(true)) == [0] {
                break;
            }
            passes += 1;
        }
        assert_eq!(passes, 2 * u64::from(PASSES_LIFT));
    }

    proptest! {
        /// Every text comes out once, and no pass is larger than it may be.
        #[test]
        fn none_is_lost(lengths in proptest::collection::vec(1usize..3000, 1..80), busy: bool) {
            let (mut queue, mut heard) = (queue(100), Heard::default());
            for (request, length) in lengths.iter().enumerate() {
                queue.take(text(request as u64, *length, Priority::Normal), false, &mut heard);
            }
            let mut seen = Vec::new();
            while !queue.is_empty() {
                let pass = queue.next_pass(busy);
                let longest = pass.iter().map(|embed| embed.tokens.len()).max().unwrap();
                let tokens_max = if busy { 100 } else { PADDED_TOKENS_MAX };
                prop_assert!(pass.len() == 1 || longest * pass.len() <= tokens_max);
                prop_assert!(pass.len() <= ROWS_MAX);
                seen.extend(names(&pass));
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len() as u64).collect::<Vec<_>>());
        }
    }
}
