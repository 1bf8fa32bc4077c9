//! What a look at machine and workers does to the books.

use super::{Act, Books, Leave, Turn, refuse};
use crate::admission::account::{Account, High, Stage};
use crate::admission::words;
use mlxd_memory::{Footprint, Level, Load, MachineMemory, Measured, MeasuredKey, MlxBytes, Sample};
use mlxd_protocol::ModelId;
use std::collections::HashMap;
use std::time::Instant;

/// What a look at the machine found.
#[derive(Debug, Default)]
pub(crate) struct Look {
    pub memory: Option<MachineMemory>,
    pub level: Level,
    /// By process.
    pub workers: HashMap<u32, WorkerMemory>,
}

/// What a worker takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WorkerMemory {
    pub footprint: Footprint,
    pub engine: EngineMemory,
}

/// What its engine says of it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct EngineMemory {
    /// In use.
    pub active: u64,
    /// The most that was.
    pub peak: u64,
    /// Of freed buffers, kept.
    pub cache: u64,
    /// Of prompts, for those that begin alike; a part of what is in use.
    pub prefixes: u64,
}

impl EngineMemory {
    fn of_mlx(self) -> MlxBytes {
        let Self { active, peak, cache, .. } = self;
        MlxBytes { active, peak, cache }
    }
}

impl WorkerMemory {
    /// What it takes of the memory that its model is in. No system tells whose the memory of a
    /// CUDA device is; the engine does, but for what the driver takes.
    fn taken(&self, account: &Account) -> Footprint {
        match &account.key {
            Some(key) if key.backend == "cuda" && account.is_loaded() => {
                let EngineMemory { active, peak, cache, .. } = self.engine;
                let overhead = account.needs.overhead_bytes();
                let bytes = active + cache + overhead;
                Footprint { bytes, peak_bytes: Some((peak + overhead).max(bytes)) }
            }
            _ => self.footprint,
        }
    }
}

impl Books {
    /// Takes in a look at the machine; gives what is to be done, and what was measured anew.
    pub(crate) fn look(
        &mut self,
        look: &Look,
        now: Instant,
    ) -> (Vec<Act>, Vec<(MeasuredKey, Measured)>) {
        self.machine = look.memory.or(self.machine);
        let mut news = Vec::new();
        let mut acts = self.condemn_outgrown(look);
        for (id, account) in &mut self.accounts {
            let Stage::Alive { pid } = account.stage else { continue };
            let Some(worker) = look.workers.get(&pid) else { continue };
            let footprint = worker.taken(account);
            account.footprint = Some(footprint);
            if measure(account, footprint, worker.engine)
                && let Some(key) = &account.key
            {
                news.push((key.clone(), account.measured.clone()));
            }
            if account.is_loaded()
                && let Some(held) = self.ledger.held(id.as_str())
            {
                let beyond = footprint.bytes.saturating_sub(held.grown);
                self.ledger.correct(id.as_str(), account.promise().base_bytes().max(beyond));
            }
        }
        acts.extend(self.heed_pressure(look.level, now));
        self.heed_limits(&mut acts);
        self.unload_idle(now, &mut acts);
        self.end_overdue(now, &mut acts);
        acts.extend(self.pass(now));
        (acts, news)
    }

    /// Ends who took more than it may, where the system does not. Said once of each process: going
    /// takes it a while.
    fn condemn_outgrown(&mut self, look: &Look) -> Vec<Act> {
        let outgrown = |(id, account): (&ModelId, &Account)| {
            let Stage::Alive { pid } = account.stage else { return None };
            // What a process shares with a GPU's driver says little of what it takes, and before it
            // is loaded nobody knows what it computes on.
            let counted = account.is_loaded()
                && !account.condemned
                && account.key.as_ref().is_some_and(|key| key.backend != "cuda");
            let footprint = look.workers.get(&pid).filter(|_| counted)?.footprint;
            let may = self.containment(id)?;
            let promised = account.planned + self.ledger.held(id.as_str())?.grown;
            let why = words::outgrown(footprint.bytes, promised, may);
            (footprint.bytes > may).then(|| Act::Condemn(id.clone(), why))
        };
        let acts: Vec<Act> = self.accounts.iter().filter_map(outgrown).collect();
        for act in &acts {
            if let Act::Condemn(id, _) = act
                && let Some(account) = self.accounts.get_mut(id)
            {
                account.condemned = true;
            }
        }
        acts
    }

    /// First caches go, then idle models; new work is refused last.
    fn heed_pressure(&mut self, level: Level, now: Instant) -> Vec<Act> {
        let before = std::mem::replace(&mut self.level, level);
        self.critical_since = match level {
            Level::Critical => self.critical_since.or(Some(now)),
            _ => None,
        };
        let mut acts = Vec::new();
        if level > before {
            let alive = self.accounts.iter().filter(|(_, account)| account.is_loaded());
            acts.extend(alive.map(|(id, _)| Act::Trim(id.clone())));
        }
        if level == Level::Critical {
            let idle = self.idle(|_| true);
            for name in idle {
                self.unload(&name, Leave::Pressure, &mut acts);
            }
        }
        acts
    }

    /// Loaded models that nobody uses and that are not pinned.
    fn idle(&self, also: impl Fn(&Account) -> bool) -> Vec<String> {
        let idle =
            |account: &Account| account.is_loaded() && !account.is_used() && !account.is_pinned();
        let idle = self.accounts.iter().filter(|(_, account)| idle(account) && also(account));
        idle.map(|(id, _)| id.to_string()).collect()
    }

    /// After smaller limits came: idle models go, least recently used first, until what stays is
    /// within them. Those that are used now go when they no longer are.
    fn heed_limits(&mut self, acts: &mut Vec<Act>) {
        if !self.narrowed {
            return;
        }
        let stays = |(_, account): &(&ModelId, &Account)| account.stage != Stage::Leaving;
        let held = |(id, _): (&ModelId, &Account)| Some(self.ledger.held(id.as_str())?.total());
        let (mut loaded, mut promised) = (0, 0_u64);
        for bytes in self.accounts.iter().filter(stays).filter_map(held) {
            (loaded, promised) = (loaded + 1, promised.saturating_add(bytes));
        }
        let used_at = |name: &String| {
            let account = self.accounts.iter().find(|(id, _)| id.as_str() == name);
            account.map(|(_, account)| account.used_at)
        };
        let mut idle = self.idle(|_| true);
        idle.sort_by_key(used_at);
        let is_over =
            |loaded, promised| loaded > self.limits.loaded_max || promised > self.ledger.budget();
        let mut going = Vec::new();
        for name in idle {
            if !is_over(loaded, promised) {
                break;
            }
            let bytes = self.ledger.held(&name).unwrap_or_default().total();
            (loaded, promised) = (loaded - 1, promised.saturating_sub(bytes));
            going.push(name);
        }
        self.narrowed = is_over(loaded, promised);
        for name in going {
            self.unload(&name, Leave::Limits, acts);
        }
    }

    fn unload_idle(&mut self, now: Instant, acts: &mut Vec<Act>) {
        let over = |account: &Account| {
            let idle_for = now.saturating_duration_since(account.used_at);
            account.ttl().is_some_and(|ttl| idle_for >= ttl)
        };
        for name in self.idle(over) {
            self.unload(&name, Leave::Idle, acts);
        }
    }

    /// Ends who has waited for as long as he may, by the configuration or by his own word, and
    /// everybody while nothing new is taken.
    fn end_overdue(&mut self, now: Instant, acts: &mut Vec<Act>) {
        let (limit, pressed) = (self.limits.waiting_timeout, self.is_pressed(now));
        let mut overdue = Vec::new();
        for (id, account) in &mut self.accounts {
            let why = account.why.clone();
            for waiting in std::mem::take(&mut account.waiting) {
                let passed = match &waiting.turn {
                    Turn::Sequence(journal) => journal.deadline_passed(now),
                    Turn::Start(_) => None,
                };
                let failure = if pressed {
                    words::pressed(id)
                } else if let Some(deadline) = passed {
                    words::too_late(id, why.as_ref(), deadline.as_millis())
                } else if now.saturating_duration_since(waiting.since) > limit {
                    words::waited(id, why.as_ref(), limit.as_millis())
                } else {
                    account.waiting.push_back(waiting);
                    continue;
                };
                overdue.push((id.clone(), waiting.turn, why.clone(), failure));
            }
        }
        for (id, turn, why, failure) in overdue {
            let failure = self.refused(&id, why.as_ref(), failure);
            acts.push(refuse(&id, turn, &failure));
        }
    }
}

/// Writes down what the worker takes. True when that says something new. Prompts that it keeps are
/// promised apart, and are no part of it.
fn measure(account: &mut Account, footprint: Footprint, engine: EngineMemory) -> bool {
    if !account.is_loaded() {
        return false;
    }
    let differs = |bytes: u64, before: Option<u64>| {
        before.is_none_or(|before| bytes.abs_diff(before) > before / 64)
    };
    let mut new = false;
    let idle = account.running.is_empty();
    let bytes = footprint.bytes.saturating_sub(engine.prefixes);
    if idle && account.high == High::default() {
        // Nothing has run yet, or nothing since the last look.
        let measured = &mut account.measured;
        let loaded = bytes.saturating_sub(engine.cache);
        let before = measured.loaded_bytes;
        if account.peak_seen == 0 {
            measured.loading_peak_bytes = footprint.peak_bytes;
        }
        if account.peak_seen == 0 || before.is_none_or(|before| loaded < before) {
            new |= differs(loaded, before);
            measured.loaded_bytes = Some(loaded);
            measured.note_mlx(None, engine.of_mlx());
        }
        let before = measured.resting_bytes;
        if account.has_run && before.is_none_or(|before| bytes > before) {
            new |= differs(bytes, before);
            measured.resting_bytes = Some(bytes);
        }
    }
    let peak = footprint.peak_bytes.unwrap_or(footprint.bytes);
    account.note_load();
    if peak > account.peak_seen {
        let High { rows, tokens } = account.high;
        if rows > 0 {
            let context = tokens.div_ceil(rows);
            let peak_bytes = peak.saturating_sub(engine.prefixes).max(bytes);
            if account.measured.record(Sample { context, batch: rows, peak_bytes }) {
                let load = Load { context, batch: rows };
                account.measured.note_mlx(Some(load), engine.of_mlx());
                new = true;
            }
        }
        account.peak_seen = peak;
    }
    account.has_run |= account.high.rows > 0;
    if idle {
        account.high = High::default();
    }
    new
}
