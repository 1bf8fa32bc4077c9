//! The sequences that wait for a place: new ones, and those that gave theirs up to a more urgent
//! one.
//!
//! Who is next: the lowest level, which is the priority less what waiting has lifted it; then the
//! tenant whose turn it is; then who came first. Levels end at the highest priority's, where
//! tenants take turns and each tenant's sequences go by arrival, so nobody waits for ever.

use crate::check::Bounds;
use crate::row::Row;
use crate::shares::{Shares, Tenant};
use mlxd_protocol::{Priority, RequestId, Submit};
use std::time::{Duration, Instant};

/// A checked sequence that has no place yet.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) submit: Submit,
    pub(crate) bounds: Bounds,
    /// When its submit was read.
    pub(crate) arrived: Instant,
}

/// What the order of sequences goes by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticket {
    pub(crate) request: RequestId,
    pub(crate) priority: Priority,
    pub(crate) tenant: Tenant,
    /// Grows with every arrival.
    pub(crate) order: u64,
    /// When the present wait, or the time in its place, began.
    pub(crate) since: Instant,
    /// When its first token must be there.
    pub(crate) deadline: Option<Instant>,
}

impl Ticket {
    /// The priority's number, 0 the most urgent, less one for each `ageing` since the wait began.
    pub(crate) fn level(&self, now: Instant, ageing: Duration) -> u32 {
        let waited = now.saturating_duration_since(self.since);
        let lifted = match ageing.is_zero() {
            true => 0,
            false => waited.as_nanos() / ageing.as_nanos(),
        };
        class(self.priority).saturating_sub(u32::try_from(lifted).unwrap_or(u32::MAX))
    }

    pub(crate) fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }
}

/// A priority as a number, 0 the most urgent.
pub(crate) fn class(priority: Priority) -> u32 {
    match priority {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Low => 2,
    }
}

/// Who waits.
#[derive(Debug)]
pub(crate) enum Waiter {
    /// The engine does not know it.
    New(Box<Pending>),
    /// The engine keeps its state.
    Parked(Box<Row>),
}

/// All who wait.
#[derive(Debug)]
pub(crate) struct Waiting {
    ageing: Duration,
    waiters: Vec<(Ticket, Waiter)>,
    parked: usize,
    by_class: [usize; 3],
    /// No deadline is before this.
    earliest: Option<Instant>,
}

impl Waiting {
    /// Nobody; waiting lifts by one level each `ageing`.
    pub(crate) fn new(ageing: Duration) -> Self {
        Self { ageing, waiters: Vec::new(), parked: 0, by_class: [0; 3], earliest: None }
    }

    /// New ones.
    pub(crate) fn new_count(&self) -> usize {
        self.waiters.len() - self.parked
    }

    /// Those that were begun.
    pub(crate) fn parked_count(&self) -> usize {
        self.parked
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// The most urgent class that anybody here belongs to, whatever its age.
    pub(crate) fn top_class(&self) -> Option<u32> {
        self.by_class.iter().position(|count| *count > 0).map(|class| class as u32)
    }

    pub(crate) fn push(&mut self, ticket: Ticket, waiter: Waiter) {
        self.parked += usize::from(matches!(waiter, Waiter::Parked(_)));
        self.by_class[class(ticket.priority) as usize] += 1;
        if let Some(deadline) = ticket.deadline {
            self.earliest = Some(self.earliest.map_or(deadline, |other| other.min(deadline)));
        }
        self.waiters.push((ticket, waiter));
    }

    /// The next one of a class below `class_end`.
    pub(crate) fn pop(
        &mut self,
        class_end: u32,
        shares: &Shares,
        now: Instant,
    ) -> Option<(Ticket, Waiter)> {
        let candidates = self.waiters.iter().enumerate();
        let next = candidates
            .filter(|(_, (ticket, _))| class(ticket.priority) < class_end)
            .min_by_key(|(_, (ticket, _))| {
                (ticket.level(now, self.ageing), shares.tag(ticket.tenant), ticket.order)
            })
            .map(|(at, _)| at)?;
        Some(self.take(next))
    }

    pub(crate) fn contains(&self, request: RequestId) -> bool {
        self.waiters.iter().any(|(ticket, _)| ticket.request == request)
    }

    /// Takes a sequence out, if it waits here.
    pub(crate) fn remove(&mut self, request: RequestId) -> Option<Waiter> {
        let at = self.waiters.iter().position(|(ticket, _)| ticket.request == request)?;
        Some(self.take(at).1)
    }

    /// Takes out one whose deadline has passed, if there is any.
    pub(crate) fn pop_late(&mut self, now: Instant) -> Option<Waiter> {
        if self.earliest.is_none_or(|earliest| now < earliest) {
            return None;
        }
        if let Some(at) = self.waiters.iter().position(|(ticket, _)| ticket.is_late(now)) {
            return Some(self.take(at).1);
        }
        self.earliest = self.waiters.iter().filter_map(|(ticket, _)| ticket.deadline).min();
        None
    }

    /// The traces of those that the engine keeps.
    pub(crate) fn parked_traces(&self) -> impl Iterator<Item = &str> {
        self.waiters.iter().filter_map(|(_, waiter)| match waiter {
            Waiter::New(_) => None,
            Waiter::Parked(row) => Some(row.trace.as_str()),
        })
    }

    fn take(&mut self, at: usize) -> (Ticket, Waiter) {
        let (ticket, waiter) = self.waiters.swap_remove(at);
        self.parked -= usize::from(matches!(waiter, Waiter::Parked(_)));
        self.by_class[class(ticket.priority) as usize] -= 1;
        (ticket, waiter)
    }
}
