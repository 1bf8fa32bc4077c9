//! Who gets a place: admission, preemption, deadlines.

use crate::engine::{Engine, EngineFault, SeqId};
use crate::row::Row;
use crate::scheduler::{Limits, Scheduler, Sink, refuse};
use crate::shares::Tenant;
use crate::waiting::{Pending, Ticket, Waiter, class};
use mlxd_protocol::{Refusal, RefusalCode, Report, RequestId, Submit};
use std::time::{Duration, Instant};

/// A number above every class.
const ALL_CLASSES: u32 = 3;

impl<E: Engine> Scheduler<E> {
    /// A checked sequence begins to wait.
    pub(crate) fn enqueue(&mut self, pending: Pending) {
        let Pending { submit, arrived, .. } = &pending;
        let ticket = ticket(submit, self.next_order, *arrived);
        self.next_order += 1;
        self.waiting.push(ticket, Waiter::New(Box::new(pending)));
    }

    /// Gives free places to those who wait.
    pub(crate) fn admit(&mut self, now: Instant, sink: &mut impl Sink) {
        while self.rows.len() < self.limits.running_max {
            let Some((ticket, waiter)) = self.waiting.pop(ALL_CLASSES, &self.shares, now) else {
                return;
            };
            self.place(ticket, waiter, now, sink);
        }
    }

    /// Whether somebody waits who is more urgent than somebody who runs and may be pushed out.
    pub(crate) fn preempts(&self, now: Instant) -> bool {
        let Some(top) = self.waiting.top_class() else {
            return false;
        };
        self.rows.len() >= self.limits.running_max
            && self.waiting.parked_count() < self.limits.parked_max
            && self.victim(now).is_some_and(|at| class(self.rows[at].ticket.priority) > top)
    }

    /// Pushes out the least urgent for the more urgent who wait. Nothing may be in flight.
    pub(crate) fn preempt(&mut self, now: Instant, sink: &mut impl Sink) {
        while self.preempts(now) {
            let Some(at) = self.victim(now) else { return };
            let class_end = class(self.rows[at].ticket.priority);
            let Some((ticket, waiter)) = self.waiting.pop(class_end, &self.shares, now) else {
                return;
            };
            let mut row = self.rows.remove(at);
            self.engine.park(row.seq);
            self.preemptions += 1;
            tracing::info!(
                trace = row.trace,
                request = %row.request,
                generated = row.generated(),
                "parked for a more urgent request"
            );
            row.ticket.since = now;
            self.waiting.push(row.ticket, Waiter::Parked(Box::new(row)));
            self.place(ticket, waiter, now, sink);
        }
    }

    /// Ends the sequences whose deadline passed before their first token was on its way.
    pub(crate) fn expire(&mut self, now: Instant, sink: &mut impl Sink) {
        while let Some(waiter) = self.waiting.pop_late(now) {
            match waiter {
                Waiter::New(pending) => {
                    let waited = now.saturating_duration_since(pending.arrived);
                    self.expired(&pending.submit.trace, pending.submit.request, waited, sink);
                }
                Waiter::Parked(row) => self.expire_row(&row, now, sink),
            }
        }
        while let Some(at) = self.rows.iter().position(|row| row.is_late(now)) {
            let row = self.rows.remove(at);
            self.expire_row(&row, now, sink);
        }
    }

    fn expire_row(&mut self, row: &Row, now: Instant, sink: &mut impl Sink) {
        self.engine.close(row.seq);
        self.shares.settle(row.ticket.tenant, row.deposit);
        self.expired(&row.trace, row.request, row.age(now), sink);
    }

    fn expired(&mut self, trace: &str, request: RequestId, waited: Duration, sink: &mut impl Sink) {
        self.expired += 1;
        let message = format!(
            "the request's deadline passed after {} ms, before its first token; ask again later, \
             or with a longer deadline",
            waited.as_millis()
        );
        refuse(trace, request, Refusal { code: RefusalCode::Deadline, message }, sink);
    }

    /// The row that is pushed out first: of the least urgent, the one that came last.
    fn victim(&self, now: Instant) -> Option<usize> {
        let rows = self.rows.iter().enumerate();
        rows.filter(|(_, row)| row.protected_until.is_none_or(|until| now >= until))
            .max_by_key(|(_, row)| (class(row.ticket.priority), row.ticket.order))
            .map(|(at, _)| at)
    }

    /// Gives a place to one who waited.
    fn place(&mut self, mut ticket: Ticket, waiter: Waiter, now: Instant, sink: &mut impl Sink) {
        let Limits { ageing, .. } = self.limits;
        let lifted = ticket.level(now, ageing) < class(ticket.priority);
        let protected_until = lifted.then(|| now + ageing);
        match waiter {
            Waiter::Parked(mut row) => {
                self.engine.unpark(row.seq);
                row.ticket.since = now;
                row.protected_until = protected_until;
                let at = self.rows.partition_point(|other| other.seq < row.seq);
                self.rows.insert(at, *row);
            }
            Waiter::New(pending) => {
                ticket.since = now;
                let (mut row, spec) = Row::new(SeqId(self.next_seq), ticket, *pending);
                self.next_seq += 1;
                row.protected_until = protected_until;
                // Said before the engine sees it, which may be the end of this process.
                sink.report(Report::Admitted(row.request));
                match self.engine.open(row.seq, spec) {
                    Ok(opened) => {
                        row.opened(opened);
                        let (unfilled, left) = (row.unfilled(), row.generated_left());
                        row.deposit = self.shares.admit(ticket.tenant, unfilled, left);
                        self.rows.push(row);
                    }
                    Err(refusal) => refuse(&row.trace, row.request, refusal, sink),
                }
            }
        }
    }

    /// The row that prefills next: the most urgent, then the first admitted.
    pub(crate) fn next_to_prefill(&self, now: Instant) -> Option<usize> {
        let ageing = self.limits.ageing;
        let unfinished = self.rows.iter().enumerate().filter(|(_, row)| row.prefilling());
        unfinished.min_by_key(|(_, row)| (row.ticket.level(now, ageing), row.seq)).map(|(at, _)| at)
    }

    /// Runs up to a chunk's worth of prompts.
    pub(crate) fn prefill(&mut self, now: Instant) -> Result<(), EngineFault> {
        let chunk = self.chunk_tokens();
        let mut budget = chunk;
        while let Some(at) = self.next_to_prefill(now) {
            let row = &mut self.rows[at];
            let tokens_max = if self.limits.whole_chunks { chunk } else { budget };
            let left = self.engine.prefill(row.seq, tokens_max)?;
            let ran = row.chunk_ran(now, left);
            let found = self.engine.found(row.seq).map_or(0, |tokens| row.found(tokens));
            self.prefilled_tokens += ran.saturating_sub(found) as u64;
            self.shares.prefilled(row.ticket.tenant, &mut row.deposit, ran);
            budget = budget.saturating_sub(ran.max(PREFILL_CALL_TOKENS));
            if budget < PREFILL_CALL_TOKENS {
                break;
            }
        }
        Ok(())
    }

    /// How much of prompts runs between two decode steps: less while others wait for theirs.
    fn chunk_tokens(&self) -> usize {
        let Limits { prefill_chunk_tokens, prefill_chunk_tokens_busy, .. } = self.limits;
        let busy = !self.limits.whole_chunks && self.rows.iter().any(Row::wants_step);
        if busy {
            prefill_chunk_tokens_busy.min(prefill_chunk_tokens)
        } else {
            prefill_chunk_tokens
        }
    }
}

/// What a call of [`Engine::prefill`] costs at least, in tokens of the chunk's budget: many tiny
/// prompts must not hold up the running sequences for longer than one large one. A rest smaller
/// than this is not worth a call.
const PREFILL_CALL_TOKENS: usize = 32;

fn ticket(submit: &Submit, order: u64, arrived: Instant) -> Ticket {
    let Submit { request, priority, tenant, weight, deadline_ms, .. } = *submit;
    let deadline = deadline_ms.map(|ms| arrived + Duration::from_millis(ms.into()));
    let tenant = Tenant { id: tenant, weight };
    Ticket { request, priority, tenant, order, since: arrived, deadline }
}
