//! The signals that an admin may send to a worker.

use super::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A signal for a model's worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalCall {
    /// The model's name.
    pub model: String,
    /// Which signal.
    pub signal: SignalName,
}

/// A signal that may be sent. Those that would only confuse a worker are not among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum SignalName {
    /// Ends the worker once it has told its front.
    Term,
    /// As TERM.
    Int,
    /// Hang up.
    Hup,
    /// Quit.
    Quit,
    /// Ends it at once, with a core file where the system writes them.
    Abrt,
    /// Ends it at once.
    Kill,
    /// Stands it still; its hang is noticed.
    Stop,
    /// Lets it go on.
    Cont,
    /// For the worker's own use.
    Usr1,
    /// For the worker's own use.
    Usr2,
}

/// The name is none of [`SignalName::ALL`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given} is no signal that mlxd sends; it sends {}", SignalName::ALL.map(SignalName::name).join(", "))]
pub struct SignalNameError {
    /// What was given.
    pub given: String,
}

impl SignalName {
    /// Every signal that may be sent.
    pub const ALL: [Self; 10] = [
        Self::Term,
        Self::Int,
        Self::Hup,
        Self::Quit,
        Self::Abrt,
        Self::Kill,
        Self::Stop,
        Self::Cont,
        Self::Usr1,
        Self::Usr2,
    ];

    /// Its name without `SIG`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Term => "TERM",
            Self::Int => "INT",
            Self::Hup => "HUP",
            Self::Quit => "QUIT",
            Self::Abrt => "ABRT",
            Self::Kill => "KILL",
            Self::Stop => "STOP",
            Self::Cont => "CONT",
            Self::Usr1 => "USR1",
            Self::Usr2 => "USR2",
        }
    }

    /// The numbers that POSIX fixes; the others differ between systems.
    fn number(self) -> Option<u8> {
        match self {
            Self::Hup => Some(1),
            Self::Int => Some(2),
            Self::Quit => Some(3),
            Self::Abrt => Some(6),
            Self::Kill => Some(9),
            Self::Term => Some(15),
            Self::Stop | Self::Cont | Self::Usr1 | Self::Usr2 => None,
        }
    }
}

impl FromStr for SignalName {
    type Err = SignalNameError;

    /// `TERM`, `term`, `SIGTERM` or `15`.
    fn from_str(given: &str) -> Result<Self, SignalNameError> {
        let upper = given.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let number = name.parse::<u8>().ok();
        Self::ALL
            .into_iter()
            .find(|signal| signal.name() == name || (number.is_some() && signal.number() == number))
            .ok_or_else(|| SignalNameError { given: given.to_owned() })
    }
}

impl fmt::Display for SignalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SIG{}", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_posix_numbers_are_understood() {
        for signal in SignalName::ALL {
            assert_eq!(signal.name().parse(), Ok(signal));
            assert_eq!(signal.to_string().to_lowercase().parse(), Ok(signal));
            if let Some(number) = signal.number() {
                assert_eq!(number.to_string().parse(), Ok(signal));
            }
        }
        // 17 and 19 are STOP on one system and something else on the other.
        for wrong in ["", "SIG", "19", "17", "-9", "SEGV", "0"] {
            assert!(wrong.parse::<SignalName>().is_err(), "{wrong}");
        }
        let told = "SEGV".parse::<SignalName>().unwrap_err().to_string();
        assert!(told.ends_with("TERM, INT, HUP, QUIT, ABRT, KILL, STOP, CONT, USR1, USR2"));
    }
}
