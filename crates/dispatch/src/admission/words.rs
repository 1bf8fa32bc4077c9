//! Refusals in words: what is needed, what there is, who holds the rest, what to do.

use super::books::Leave;
use crate::journal::Failure;
use mlxd_memory::{LedgerFault, Stays, Why};
use mlxd_protocol::{ModelId, bytes_in_short};

/// It can never fit.
pub(crate) const NEVER: &str = "insufficient_memory";
/// It does not fit now.
pub(crate) const FULL: &str = "memory_full";
/// The system is short of memory.
pub(crate) const PRESSED: &str = "memory_pressure";

/// Who holds what, and why it stays.
fn held_by(why: &Why) -> String {
    if why.held_by.is_empty() {
        return "no other model is loaded".to_owned();
    }
    let one = |(name, bytes, stays): &(String, u64, Stays)| {
        let stays = match stays {
            Stays::Busy => "busy".to_owned(),
            Stays::Pinned => "pinned".to_owned(),
            Stays::Young(left) => format!("loaded just now, stays {} s more", left.as_secs() + 1),
            Stays::NotEnough => "idle, and not enough".to_owned(),
        };
        format!("{name} holds {} ({stays})", bytes_in_short(*bytes))
    };
    why.held_by.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// What is short, in numbers.
pub(crate) fn numbers(model: &ModelId, why: &Why) -> String {
    if why.places {
        let held = held_by(why);
        let loaded = why.held_by.len();
        return format!(
            "{model} needs a place, and {loaded} models are loaded, which is all that max_loaded lets: {held}"
        );
    }
    let elsewhere = match why.elsewhere {
        0 => String::new(),
        bytes => format!(", other programs take {}", bytes_in_short(bytes)),
    };
    let more = match why.holds {
        0 => String::new(),
        bytes => format!(" besides the {} that it has for being loaded", bytes_in_short(bytes)),
    };
    format!(
        "{model} needs {}{more}, {} of {} are free; {}{elsewhere}",
        bytes_in_short(why.needs),
        bytes_in_short(why.free),
        bytes_in_short(why.budget),
        held_by(why)
    )
}

/// Why a model is not loaded, in a few words: those of a table.
pub(crate) fn brief(code: &str, why: Option<&Why>) -> String {
    match why {
        _ if code == PRESSED => "the system is critically short of memory".to_owned(),
        Some(why) if why.places => "max_loaded models are loaded".to_owned(),
        Some(why) => {
            let [needs, free, budget] = [why.needs, why.free, why.budget].map(bytes_in_short);
            format!("needs {needs}, {free} of {budget} are free")
        }
        None if code == FULL => "too many requests wait for memory".to_owned(),
        None => "it waited for memory too long".to_owned(),
    }
}

/// Whether a failure is about memory.
pub(crate) fn is_about_memory(code: &str) -> bool {
    [NEVER, FULL, PRESSED].contains(&code)
}

impl Leave {
    /// For people.
    pub(crate) fn words(&self) -> String {
        match self {
            Self::Room(model) => format!("to make room for {model}"),
            Self::Idle => "nobody used it for its ttl_s or keep_alive".into(),
            Self::Pressure => "the system is critically short of memory".into(),
            Self::Limits => "the new limits under [memory] leave no room for it".into(),
        }
    }

    /// For metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Room(_) => "room",
            Self::Idle => "idle",
            Self::Pressure => "pressure",
            Self::Limits => "limits",
        }
    }
}

pub(crate) fn outgrown(takes: u64, promised: u64, may: u64) -> String {
    format!(
        "it outgrew its memory: it takes {} and was promised {} (overrun_percent under [memory] lets it have {})",
        bytes_in_short(takes),
        bytes_in_short(promised),
        bytes_in_short(may)
    )
}

/// Why a process is not made.
pub(crate) fn not_granted(fault: &LedgerFault) -> String {
    match *fault {
        LedgerFault::Short { wanted, free, budget } => {
            let [wanted, free, budget] = [wanted, free, budget].map(bytes_in_short);
            format!("it needs {wanted}, and {free} of {budget} are free")
        }
        LedgerFault::Unknown(_) | LedgerFault::Twice(_) => fault.to_string(),
    }
}

pub(crate) fn no_room_for_run(model: &ModelId, tokens: u64, needs: u64, free: u64) -> Failure {
    let message = format!(
        "a run of {tokens} tokens on {model} needs {}, and {} are free; try fewer tokens, or again later",
        bytes_in_short(needs),
        bytes_in_short(free)
    );
    Failure { code: FULL, message, retry: true }
}

pub(crate) fn never(model: &ModelId, why: &Why) -> Failure {
    if why.places {
        let message = format!(
            "{}. All of them stay: unpin one, or raise max_loaded under [memory]",
            numbers(model, why)
        );
        return Failure { code: NEVER, message, retry: false };
    }
    let message = format!(
        "{}. That can never fit: take a smaller or a more quantised model, ask for fewer tokens, lower \
         its context_tokens_max, unpin another model, or raise budget_bytes under [memory]",
        numbers(model, why)
    );
    Failure { code: NEVER, message, retry: false }
}

pub(crate) fn queue_full(model: &ModelId, why: Option<&Why>, waiting: usize) -> Failure {
    let numbers = why.map(|why| format!("; {}", numbers(model, why))).unwrap_or_default();
    let message = format!(
        "{waiting} requests wait for memory, which is the limit (memory.waiting_max){numbers}; try again later"
    );
    Failure { code: FULL, message, retry: true }
}

/// What is short, as far as that is known.
fn what_was_short(model: &ModelId, why: Option<&Why>) -> String {
    let numbers = why.map(|why| numbers(model, why));
    numbers.unwrap_or_else(|| format!("there was no room for {model}"))
}

pub(crate) fn waited(model: &ModelId, why: Option<&Why>, after_ms: u128) -> Failure {
    let short = what_was_short(model, why);
    let message = format!(
        "no memory came free within queue_timeout_ms = {after_ms}: {short}; try again later"
    );
    Failure { code: FULL, message, retry: true }
}

/// The deadline that the request itself gave has passed.
pub(crate) fn too_late(model: &ModelId, why: Option<&Why>, after_ms: u128) -> Failure {
    let short = what_was_short(model, why);
    let message = format!(
        "no memory came free within the {after_ms} ms that the request gave it: {short}; try again later, or with a longer deadline"
    );
    Failure { code: "deadline_exceeded", message, retry: true }
}

pub(crate) fn pressed(model: &ModelId) -> Failure {
    let message = format!(
        "the system is critically short of memory, so nothing new is taken for {model}; close other programs or try again later"
    );
    Failure { code: PRESSED, message, retry: true }
}

/// An admin stopped the model while somebody waited for it.
pub(crate) fn stopped(model: &ModelId) -> Failure {
    Failure {
        code: "model_stopped",
        message: format!(
            "the model {model} was stopped before the answer was begun; `mlxctl start {model}` brings it back"
        ),
        retry: true,
    }
}
