//! What the books tell an admin: who holds what, who waits for what, what a model would need.

use super::account::{Account, Turn, Waiting};
use super::books::Books;
use super::words;
use mlxd_memory::{Load, Measured, Part, Plan, Promise, Wanted, plan};
use mlxd_protocol::admin::{Estimate, EstimatePart, MemoryStatus, Residence, Verdict};
use mlxd_protocol::{ModelId, RequestId};
use std::collections::BTreeSet;
use std::time::Instant;

impl Books {
    /// The machine's memory as it is planned with.
    pub(crate) fn status(&self) -> MemoryStatus {
        let waiting: usize = self.accounts.values().map(|account| account.waiting.len()).sum();
        MemoryStatus {
            budget_bytes: self.ledger.budget(),
            promised_bytes: self.ledger.promised(),
            free_bytes: self.free(),
            available_bytes: self.machine.map(|memory| memory.available),
            reserve_bytes: self.reserve,
            pressure: self.level.name().to_owned(),
            waiting: waiting as u32,
        }
    }

    /// What `model` has to do with memory.
    pub(crate) fn residence(&self, model: &ModelId, now: Instant) -> Residence {
        let Some(account) = self.accounts.get(model) else { return Residence::default() };
        let why = account.why.as_ref().filter(|_| !account.waiting.is_empty());
        Residence {
            promised_bytes: self.ledger.held(model.as_str()).unwrap_or_default().total(),
            pinned: account.is_pinned(),
            waiting: account.waiting.len() as u32,
            waits_for: why.map(|why| words::numbers(model, why)),
            refused: account.refused.as_ref().map(|refused| refused.brief.clone()),
            leaves_in_s: leaves_in_s(account, now),
        }
    }

    /// Why `model` was not loaded when that was asked for last.
    pub(crate) fn refusal(&self, model: &ModelId) -> Option<String> {
        Some(self.accounts.get(model)?.refused.as_ref()?.message.clone())
    }

    /// How many came before a request that waits for memory, and what it waits for; `None` for one
    /// that does not.
    pub(crate) fn place(&self, model: &ModelId, request: RequestId) -> Option<(usize, String)> {
        let account = self.accounts.get(model)?;
        let is_it = |waiting: &&Waiting| match &waiting.turn {
            Turn::Sequence(journal) => journal.request == request,
            Turn::Start(_) => false,
        };
        let arrival = account.waiting.iter().find(is_it)?.arrival;
        let all = self.accounts.values().flat_map(|account| &account.waiting);
        let before = all.filter(|waiting| waiting.arrival < arrival).count();
        let why = account.why.as_ref().map(|why| words::numbers(model, why));
        Some((before, why.unwrap_or_else(|| "other models are served first".to_owned())))
    }

    /// What `model` would need for `load`, and whether that fits; `None` for one that is not known.
    pub(crate) fn estimate(&self, model: &ModelId, load: Load, now: Instant) -> Option<Estimate> {
        let account = self.accounts.get(model)?;
        let promised_bytes = self.ledger.held(model.as_str()).unwrap_or_default().total();
        let residents = self.residents(model, &BTreeSet::new(), now);
        let planned = |measured: &Measured| {
            let needs = Promise { needs: &account.needs, measured }.load_bytes(load);
            let bytes = needs.saturating_sub(promised_bytes);
            (needs, plan(&self.rules(), &residents, &Wanted { name: model.to_string(), bytes }))
        };
        let (mut needs_bytes, mut outcome) = planned(&account.measured);
        if matches!(outcome, Plan::Never(_))
            && let Some(unrested) = account.unrested()
        {
            let (bytes, other) = planned(&unrested);
            if !matches!(other, Plan::Never(_)) {
                (needs_bytes, outcome) = (bytes, other);
            }
        }
        let (verdict, message) = match outcome {
            Plan::Fits => (Verdict::Fits, "it fits".to_owned()),
            Plan::Evict(names) => (
                Verdict::Evicts,
                format!("it fits once {} is unloaded, idle now", names.join(", ")),
            ),
            Plan::Wait(why) => {
                let numbers = words::numbers(model, &why);
                (
                    Verdict::Waits,
                    format!("it does not fit now, and a request would wait: {numbers}"),
                )
            }
            Plan::Never(why) => (Verdict::Never, words::never(model, &why).message),
        };
        let measured = &account.measured;
        let part = |part: Part| EstimatePart {
            name: part.name.to_owned(),
            bytes: part.bytes,
            how: part.how,
        };
        Some(Estimate {
            model: model.to_string(),
            context: load.context as u32,
            batch: load.batch as u32,
            parts: account.needs.parts(load).into_iter().map(part).collect(),
            measured_loaded_bytes: measured.loaded_bytes,
            measured_peak_bytes: measured
                .has(load)
                .then(|| measured.peak_bytes(&account.needs, load)),
            needs_bytes,
            promised_bytes,
            memory: self.status(),
            verdict,
            message,
        })
    }
}

fn leaves_in_s(account: &Account, now: Instant) -> Option<u64> {
    let idle = account.is_loaded() && !account.is_used();
    let ttl = account.ttl().filter(|_| idle && !account.is_pinned())?;
    Some(ttl.saturating_sub(now.saturating_duration_since(account.used_at)).as_secs())
}
