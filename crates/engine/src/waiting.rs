//! The sequences that wait for a row: one first-in-first-out line per priority.

use crate::check::Bounds;
use mlxd_protocol::{Priority, RequestId, Submit};
use std::collections::VecDeque;
use std::time::Instant;

/// A checked sequence that has no row yet.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) submit: Submit,
    pub(crate) bounds: Bounds,
    /// When its submit was read.
    pub(crate) arrived: Instant,
}

/// Who waits, by priority.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    lines: [VecDeque<Pending>; 3],
}

impl Waiting {
    pub(crate) fn len(&self) -> usize {
        self.lines.iter().map(VecDeque::len).sum()
    }

    pub(crate) fn push(&mut self, pending: Pending) {
        self.lines[line(pending.submit.priority)].push_back(pending);
    }

    /// The longest-waiting of the highest priority.
    pub(crate) fn pop(&mut self) -> Option<Pending> {
        self.lines.iter_mut().find_map(VecDeque::pop_front)
    }

    pub(crate) fn contains(&self, request: RequestId) -> bool {
        self.lines.iter().flatten().any(|pending| pending.submit.request == request)
    }

    /// Forgets a sequence. False: it does not wait here.
    pub(crate) fn remove(&mut self, request: RequestId) -> bool {
        for line in &mut self.lines {
            let found = line.iter().position(|p| p.submit.request == request);
            if let Some(position) = found {
                line.remove(position);
                return true;
            }
        }
        false
    }
}

fn line(priority: Priority) -> usize {
    match priority {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Low => 2,
    }
}
