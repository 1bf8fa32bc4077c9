//! Admission's state, and every decision about it. No clock, no process, no channel.

mod looks;

pub(crate) use looks::{EngineMemory, Look, WorkerMemory};

use super::account::{Account, High, Refused, Reply, Running, Stage, Turn, Waiting};
use super::limits::{Lifetime, MemoryLimits};
use super::words;
use crate::journal::{Failure, Journal};
use mlxd_memory::{
    Form, Ledger, Level, MachineMemory, Measured, MeasuredKey, Needs, Plan, Resident, Rules,
    Wanted, Why, plan,
};
use mlxd_protocol::admin::WorkerState;
use mlxd_protocol::{ModelId, ModelInfo, RequestId, bytes_in_short};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// New work is refused once pressure has been critical for so long: unloading comes first.
const CRITICAL_PATIENCE: Duration = Duration::from_secs(5);

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Act {
    /// Hand the sequence to its model's pump.
    Submit(ModelId, Arc<Journal>),
    /// Tell an admin that the model has its promise.
    Start(Reply),
    /// Unload the model.
    Unload(ModelId, Leave),
    /// End the model's worker: it took more than it may.
    Condemn(ModelId, String),
    /// End a sequence that no pump has.
    Fail(ModelId, Arc<Journal>, Failure),
    /// Tell an admin why not.
    Refuse(Reply, Failure),
    /// Cancel it at the pump: it was handed over a moment ago.
    Cancel(ModelId, RequestId),
    /// Nobody wants this sequence any more, which no pump has.
    Forget(ModelId),
    /// Have the worker give back what it only keeps for reuse.
    Trim(ModelId),
}

/// Why a model is unloaded that nobody stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Leave {
    /// For another one.
    Room(ModelId),
    /// Nobody used it for long enough.
    Idle,
    /// The system is critically short of memory.
    Pressure,
    /// Other limits leave no room for it.
    Limits,
}

/// What is seen of a model's worker.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub state: WorkerState,
    pub pid: Option<u32>,
    pub info: Option<ModelInfo>,
}

/// Every model's account and the one ledger.
#[derive(Debug)]
pub(crate) struct Books {
    pub limits: MemoryLimits,
    pub ledger: Ledger,
    pub accounts: BTreeMap<ModelId, Account>,
    pub machine: Option<MachineMemory>,
    pub level: Level,
    pub(super) reserve: u64,
    critical_since: Option<Instant>,
    /// Smaller limits came, and those who are there may hold more than they allow.
    narrowed: bool,
    arrivals: u64,
}

impl Books {
    /// Books over a machine as it is now.
    pub(crate) fn new(limits: MemoryLimits, machine: Option<MachineMemory>) -> Self {
        let (reserve, budget) = bounds(&limits, machine);
        Self {
            limits,
            ledger: Ledger::new(budget),
            accounts: BTreeMap::new(),
            machine,
            level: Level::Normal,
            reserve,
            critical_since: None,
            narrowed: false,
            arrivals: 0,
        }
    }

    /// Other limits from now on. Promises stay; from the next look on idle models go until they fit.
    pub(crate) fn set_limits(&mut self, limits: MemoryLimits) {
        let (reserve, budget) = bounds(&limits, self.machine);
        self.narrowed |=
            budget < self.ledger.budget() || limits.loaded_max < self.limits.loaded_max;
        self.ledger.set_budget(budget);
        (self.limits, self.reserve) = (limits, reserve);
    }

    /// A model that may be asked for, or how it is run from now on.
    pub(crate) fn register(
        &mut self,
        model: &ModelId,
        needs: Needs,
        lifetime: Lifetime,
        now: Instant,
    ) {
        match self.accounts.get_mut(model) {
            Some(account) => (account.needs, account.lifetime) = (needs, lifetime),
            None => {
                self.accounts.insert(model.clone(), Account::new(needs, lifetime, now));
            }
        }
    }

    /// A sequence wants in.
    ///
    /// # Errors
    /// When it can never fit, when too many wait, when memory is pressed.
    pub(crate) fn ask(
        &mut self,
        model: &ModelId,
        turn: Turn,
        now: Instant,
    ) -> Result<Vec<Act>, Failure> {
        if self.is_pressed(now) {
            return Err(self.refused(model, None, words::pressed(model)));
        }
        let Some(account) = self.accounts.get_mut(model) else { return Ok(Vec::new()) };
        if let Turn::Start(_) = turn {
            account.fatal = false;
        }
        account.used_at = now;
        if let Turn::Sequence(journal) = &turn {
            account.keep_alive = journal.job.keep_alive;
        }
        if let Plan::Never(why) = self.plan_for(model, &turn, &BTreeSet::new(), now)
            && !self.fits_unrested(model, &turn, now)
        {
            return Err(self.refused(model, Some(&why), words::never(model, &why)));
        }
        let waiting: usize = self.accounts.values().map(|account| account.waiting.len()).sum();
        if waiting >= self.limits.waiting_max {
            let why = self.accounts.get(model).and_then(|account| account.why.clone());
            let failure = words::queue_full(model, why.as_ref(), waiting);
            return Err(self.refused(model, why.as_ref(), failure));
        }
        if let Some(account) = self.accounts.get_mut(model) {
            self.arrivals += 1;
            account.waiting.push_back(Waiting { turn, since: now, arrival: self.arrivals });
        }
        Ok(self.pass(now))
    }

    /// Whether a model that is not there could fit if it were promised what the formula says for
    /// what stays of its work, and not what was seen to stay of its largest. Then it is, until it is
    /// seen again: a long prompt of another day is no reason to refuse it for good.
    fn fits_unrested(&mut self, model: &ModelId, turn: &Turn, now: Instant) -> bool {
        let account = self.account(model);
        let Some(unrested) = account.unrested() else { return false };
        let seen = std::mem::replace(&mut account.measured, unrested);
        let fits = !matches!(self.plan_for(model, turn, &BTreeSet::new(), now), Plan::Never(_));
        if !fits {
            self.account(model).measured = seen;
        }
        fits
    }

    /// Whether memory has been so short for so long that nothing new is taken.
    fn is_pressed(&self, now: Instant) -> bool {
        self.critical_since.is_some_and(|since| now - since >= CRITICAL_PATIENCE)
    }

    /// Whether a sequence waits for memory.
    pub(crate) fn waits(&self, model: &ModelId, request: RequestId) -> bool {
        let account = self.accounts.get(model);
        account.is_some_and(|account| account.waiting.iter().any(|it| it.is_of(request)))
    }

    /// Notes why a model that is not there is not loaded.
    fn refused(&mut self, model: &ModelId, why: Option<&Why>, failure: Failure) -> Failure {
        if let Some(account) = self.accounts.get_mut(model)
            && self.ledger.held(model.as_str()).is_none()
        {
            let (brief, message) = (words::brief(failure.code, why), failure.message.clone());
            account.refused = Some(Refused { brief, message });
        }
        failure
    }

    /// A sequence ended, whatever way, and its pump forgot it.
    pub(crate) fn ended(&mut self, model: &ModelId, request: RequestId, now: Instant) -> Vec<Act> {
        let Some(account) = self.accounts.get_mut(model) else { return Vec::new() };
        account.note_load();
        if let Some(running) = account.running.remove(&request.0) {
            account.used_at = now;
            // What was promised to one for all of them stays with those who go on.
            let held = self.ledger.held(model.as_str()).unwrap_or_default().total();
            let left = account.load_with(None);
            let lacking = account.promise().lacking_bytes(left, held.saturating_sub(running.bytes));
            let heir = account.running.values_mut().next();
            let kept = heir.map_or(0, |heir| {
                let kept = lacking.min(running.bytes);
                heir.bytes += kept;
                kept
            });
            self.ledger.shrink(model.as_str(), running.bytes - kept);
        }
        self.pass(now)
    }

    /// A reader is gone, and the pump does not know the sequence.
    pub(crate) fn cancel(&mut self, model: &ModelId, request: RequestId) -> Vec<Act> {
        let Some(account) = self.accounts.get_mut(model) else { return Vec::new() };
        if let Some(at) = account.waiting.iter().position(|it| it.is_of(request)) {
            account.waiting.remove(at);
            return vec![Act::Forget(model.clone())];
        }
        match account.running.contains_key(&request.0) {
            true => vec![Act::Cancel(model.clone(), request)],
            false => Vec::new(),
        }
    }

    /// Ends everybody who waits for `model`, or for any.
    pub(crate) fn fail_waiting(&mut self, model: Option<&ModelId>, failure: &Failure) -> Vec<Act> {
        let mut acts = Vec::new();
        for (id, account) in &mut self.accounts {
            if model.is_none_or(|model| model == id) {
                acts.extend(account.waiting.drain(..).map(|it| refuse(id, it.turn, failure)));
            }
        }
        acts
    }

    /// An admin stops the model.
    pub(crate) fn leave(&mut self, model: &ModelId) {
        if let Some(account) = self.accounts.get_mut(model)
            && matches!(account.stage, Stage::Granted | Stage::Alive { .. } | Stage::Between)
        {
            account.stage = Stage::Leaving;
        }
    }

    /// Whoever ended the model's worker has seen it go. What is there now is the next life: a
    /// sequence that crossed the stop may have asked for it.
    pub(crate) fn left(&mut self, model: &ModelId, seen: &Seen, now: Instant) -> Vec<Act> {
        if let Some(account) = self.accounts.get_mut(model)
            && account.stage == Stage::Leaving
        {
            account.stage = Stage::Between;
        }
        self.saw(model, seen, now)
    }

    /// A worker changed its state.
    pub(crate) fn saw(&mut self, model: &ModelId, seen: &Seen, now: Instant) -> Vec<Act> {
        use WorkerState::{Exited, Fatal, Running, Stopped};
        let Some(account) = self.accounts.get_mut(model) else { return Vec::new() };
        account.fatal = seen.state == Fatal;
        if let Some(pid) = seen.pid {
            let known = matches!(account.stage, Stage::Alive { pid: old } if old == pid);
            if !known && account.stage != Stage::Leaving {
                account.stage = Stage::Alive { pid };
                (account.loaded_at, account.footprint, account.told_limit) = (None, None, None);
                (account.peak_seen, account.high) = (0, High::default());
                (account.has_run, account.condemned) = (false, false);
            }
            if let (Running, None, Some(info)) = (seen.state, account.loaded_at, &seen.info) {
                loaded(model, account, info, now);
            }
            return self.pass(now);
        }
        account.footprint = None;
        account.loaded_at = None;
        let over = match (account.stage, seen.state) {
            // `Stopped` after a grant is from before it.
            (Stage::Alive { .. } | Stage::Between | Stage::Leaving, Stopped) => true,
            (_, Fatal) => true,
            // With sequences left it is asked for again at once.
            (Stage::Alive { .. } | Stage::Between | Stage::Leaving, Exited) => {
                account.running.is_empty()
            }
            _ => false,
        };
        if over {
            account.stage = Stage::Absent;
            self.ledger.release(model.as_str());
        } else if matches!(account.stage, Stage::Alive { .. }) {
            account.stage = Stage::Between;
            // The next one is not held to what this one took.
            let base = account.promise().base_bytes();
            self.ledger.correct(model.as_str(), base);
        }
        self.pass(now)
    }

    /// Whether a process may be made for the model, seen from the memory that there is. Promises
    /// it its base if it has none: then somebody wants it who did not ask here.
    pub(crate) fn may_spawn(
        &mut self,
        model: &ModelId,
        memory: Option<MachineMemory>,
    ) -> Result<(), String> {
        self.machine = memory.or(self.machine);
        let Some(account) = self.accounts.get_mut(model) else { return Ok(()) };
        (account.footprint, account.planned) = (None, account.promise().base_bytes());
        if self.ledger.held(model.as_str()).is_none() {
            let base = account.promise().base_bytes();
            self.ledger.grant(model.as_str(), base).map_err(|fault| words::not_granted(&fault))?;
            account.stage = Stage::Granted;
        }
        let needs = self.ledger.held(model.as_str()).unwrap_or_default().total();
        // Its own promise is counted as not taken by `outside`, so that must be there.
        let short = |memory: MachineMemory| {
            let room = memory.available.saturating_sub(self.reserve);
            let others = self.untaken().saturating_sub(needs);
            let free = room.saturating_sub(others);
            (free < needs).then_some(free)
        };
        match self.machine.and_then(short) {
            None => Ok(()),
            Some(free) => Err(format!(
                "it needs {} and the machine has {} to give: memory of an earlier worker may not have come back, or other programs took it",
                bytes_in_short(needs),
                bytes_in_short(free)
            )),
        }
    }

    /// What was promised and is not taken yet.
    fn untaken(&self) -> u64 {
        let of = |(name, held): (&str, mlxd_memory::Held)| {
            let account = self.accounts.iter().find(|(id, _)| id.as_str() == name);
            let taken = account.and_then(|(_, account)| account.footprint);
            held.total().saturating_sub(taken.map_or(0, |footprint| footprint.bytes))
        };
        self.ledger.holders().map(of).fold(0, u64::saturating_add)
    }

    /// What can be promised now: nobody holds it, and the machine has it.
    pub(crate) fn free(&self) -> u64 {
        let free = self.ledger.free();
        let outside = |memory: MachineMemory| {
            memory.available.saturating_sub(self.reserve).saturating_sub(self.untaken())
        };
        self.machine.map_or(free, |memory| free.min(outside(memory)))
    }

    pub(super) fn rules(&self) -> Rules {
        let free = self.free();
        Rules {
            budget: self.ledger.budget(),
            elsewhere: self.ledger.free() - free,
            free,
            residence_min: self.limits.residence_min,
            loaded_max: self.limits.loaded_max,
        }
    }

    /// Who holds memory, as the plan for `model` sees it. Models that are closed count as idle
    /// once what runs is finished. Those that leave are still there.
    pub(super) fn residents(
        &self,
        model: &ModelId,
        closed: &BTreeSet<ModelId>,
        now: Instant,
    ) -> Vec<Resident> {
        let resident = |(id, account): (&ModelId, &Account)| {
            let held = self.ledger.held(id.as_str())?;
            let bytes = if id == model { held.base } else { held.total() };
            let waits = !account.waiting.is_empty() && !closed.contains(id);
            Some(Resident {
                name: id.to_string(),
                bytes,
                busy: !account.running.is_empty()
                    || account.guests > 0
                    || waits
                    || !account.is_loaded(),
                pinned: account.is_pinned(),
                loaded_for: account.loaded_at.map_or(Duration::ZERO, |at| now - at),
                idle_for: now.saturating_duration_since(account.used_at),
                load_cost: account.load_cost,
            })
        };
        self.accounts.iter().filter_map(resident).collect()
    }

    fn wanted(&self, model: &ModelId, turn: &Turn) -> Option<Wanted> {
        let account = self.accounts.get(model)?;
        let there = self.ledger.held(model.as_str()).is_some();
        let base = if there { 0 } else { account.promise().base_bytes() };
        let held = self.ledger.held(model.as_str()).map_or(base, |held| held.total());
        let bytes = base.saturating_add(account.turn_bytes(turn, held));
        Some(Wanted { name: model.to_string(), bytes })
    }

    fn plan_for(
        &self,
        model: &ModelId,
        turn: &Turn,
        closed: &BTreeSet<ModelId>,
        now: Instant,
    ) -> Plan {
        match self.wanted(model, turn) {
            Some(wanted) => plan(&self.rules(), &self.residents(model, closed, now), &wanted),
            None => Plan::Fits,
        }
    }

    /// The plan for the first in the model's line, once everybody who leaves is gone.
    fn plan_after_leaving(
        &self,
        model: &ModelId,
        closed: &BTreeSet<ModelId>,
        now: Instant,
    ) -> Option<Plan> {
        let wanted = self.wanted(model, &self.accounts.get(model)?.waiting.front()?.turn)?;
        let leaves = |name: &str| {
            let found = self.accounts.iter().find(|(id, _)| id.as_str() == name);
            found.is_some_and(|(_, account)| account.stage == Stage::Leaving)
        };
        let (leaving, staying): (Vec<Resident>, Vec<Resident>) = self
            .residents(model, closed, now)
            .into_iter()
            .partition(|resident| leaves(&resident.name));
        let mut rules = self.rules();
        let comes_back = leaving.iter().map(|resident| resident.bytes).sum();
        rules.free = rules.free.saturating_add(comes_back);
        Some(plan(&rules, &staying, &wanted))
    }

    /// The model that has waited too long, and those in its way.
    fn starving(&self, now: Instant) -> (Option<ModelId>, BTreeSet<ModelId>) {
        let first = |(id, account): (&ModelId, &Account)| {
            let front = account.waiting.front()?;
            let starves = now.saturating_duration_since(front.since) >= self.limits.starvation;
            (starves && account.stage != Stage::Leaving).then(|| (front.arrival, id.clone()))
        };
        let Some((_, head)) = self.accounts.iter().filter_map(first).min() else {
            return (None, BTreeSet::new());
        };
        let account = &self.accounts[&head];
        let Some(wanted) =
            account.waiting.front().and_then(|front| self.wanted(&head, &front.turn))
        else {
            return (None, BTreeSet::new());
        };
        let mut residents = self.residents(&head, &BTreeSet::new(), now);
        residents.iter_mut().for_each(|resident| resident.busy = false);
        let in_the_way = match plan(&self.rules(), &residents, &wanted) {
            Plan::Evict(names) => names.into_iter().collect::<BTreeSet<String>>(),
            _ => BTreeSet::new(),
        };
        let closed = self.accounts.keys().filter(|id| in_the_way.contains(id.as_str()));
        let closed = closed.cloned().collect();
        (Some(head), closed)
    }

    /// Lets in whoever can be let in, in the order in which they came.
    pub(crate) fn pass(&mut self, now: Instant) -> Vec<Act> {
        let mut acts = Vec::new();
        let (head, closed) = self.starving(now);
        let mut order: Vec<(u64, ModelId)> = self
            .accounts
            .iter()
            .filter_map(|(id, account)| Some((account.waiting.front()?.arrival, id.clone())))
            .collect();
        order.sort();
        for (_, id) in order {
            if closed.contains(&id) {
                continue;
            }
            let new = self.ledger.held(id.as_str()).is_none();
            if new && head.as_ref().is_some_and(|head| *head != id) {
                continue;
            }
            while self.let_in(&id, &closed, now, &mut acts) {}
        }
        acts
    }

    /// Lets in the first in the model's line. True when the next may be looked at.
    fn let_in(
        &mut self,
        model: &ModelId,
        closed: &BTreeSet<ModelId>,
        now: Instant,
        acts: &mut Vec<Act>,
    ) -> bool {
        let account = &self.accounts[model];
        let Some(front) = account.waiting.front() else { return false };
        if account.stage == Stage::Leaving {
            return false;
        }
        let cold = account.stage == Stage::Absent;
        if account.fatal {
            // The pump knows why, and says so.
            self.hand_over(model, 0, now, acts);
            return true;
        }
        if cold && self.level == Level::Critical {
            return false;
        }
        match self.plan_for(model, &front.turn, closed, now) {
            Plan::Fits => self.promise(model, now, acts),
            Plan::Evict(_) => {
                // What leaves already may be enough.
                if let Some(Plan::Evict(names)) = self.plan_after_leaving(model, closed, now) {
                    for name in names {
                        self.unload(&name, Leave::Room(model.clone()), acts);
                    }
                }
                false
            }
            Plan::Wait(why) => {
                self.account(model).why = Some(why);
                false
            }
            Plan::Never(why) => {
                // What was pinned or measured meanwhile.
                if let Some(waiting) = self.account(model).waiting.pop_front() {
                    let failure = self.refused(model, Some(&why), words::never(model, &why));
                    acts.push(refuse(model, waiting.turn, &failure));
                }
                true
            }
        }
    }

    fn account(&mut self, model: &ModelId) -> &mut Account {
        self.accounts.get_mut(model).expect("accounts are never closed")
    }

    fn promise(&mut self, model: &ModelId, now: Instant, acts: &mut Vec<Act>) -> bool {
        let account = &self.accounts[model];
        let Some(front) = account.waiting.front() else { return false };
        let base = account.promise().base_bytes();
        let held = self.ledger.held(model.as_str());
        let bytes = account.turn_bytes(&front.turn, held.map_or(base, |held| held.total()));
        let new = held.is_none();
        if new && self.ledger.grant(model.as_str(), base).is_err() {
            return false;
        }
        if self.ledger.grow(model.as_str(), bytes).is_err() {
            if new {
                self.ledger.release(model.as_str());
            }
            return false;
        }
        if new {
            let account = self.account(model);
            (account.stage, account.refused) = (Stage::Granted, None);
        }
        self.hand_over(model, bytes, now, acts);
        true
    }

    fn hand_over(&mut self, model: &ModelId, bytes: u64, now: Instant, acts: &mut Vec<Act>) {
        let account = self.account(model);
        (account.why, account.used_at) = (None, now);
        match account.waiting.pop_front().map(|waiting| waiting.turn) {
            Some(Turn::Sequence(journal)) => {
                let running = Running { bytes, journal: journal.clone() };
                account.running.insert(journal.request.0, running);
                account.note_load();
                acts.push(Act::Submit(model.clone(), journal));
            }
            Some(Turn::Start(reply)) => acts.push(Act::Start(reply)),
            None => {}
        }
    }

    fn unload(&mut self, name: &str, reason: Leave, acts: &mut Vec<Act>) {
        let found = self.accounts.iter_mut().find(|(id, _)| id.as_str() == name);
        if let Some((id, account)) = found {
            account.stage = Stage::Leaving;
            acts.push(Act::Unload(id.clone(), reason));
        }
    }

    /// An admin keeps a model loaded, or does so no longer.
    pub(crate) fn pin(&mut self, model: &ModelId, pinned: bool, now: Instant) -> Vec<Act> {
        if let Some(account) = self.accounts.get_mut(model) {
            account.pinned = Some(pinned);
            // Its idle time counts from here.
            account.used_at = now;
        }
        self.pass(now)
    }

    /// Somebody who has no sequence is to use the model's worker, for runs of `tokens`. Gives the
    /// bytes promised for that, which [`guest_goes`](Self::guest_goes) takes back.
    pub(crate) fn guest_comes(
        &mut self,
        model: &ModelId,
        tokens: u64,
        now: Instant,
    ) -> Result<u64, Failure> {
        let Some(account) = self.accounts.get(model) else { return Ok(0) };
        let held = self.ledger.held(model.as_str()).map(|held| held.total());
        let bytes = held.map_or(0, |held| {
            account.promise().more_bytes(tokens, account.load_with(Some(tokens)), held)
        });
        let free = self.free();
        if bytes > free || held.is_some() && self.ledger.grow(model.as_str(), bytes).is_err() {
            return Err(words::no_room_for_run(model, tokens, bytes, free));
        }
        let account = self.account(model);
        account.used_at = now;
        account.guests += 1;
        Ok(bytes)
    }

    /// They have done.
    pub(crate) fn guest_goes(&mut self, model: &ModelId, bytes: u64, now: Instant) -> Vec<Act> {
        if let Some(account) = self.accounts.get_mut(model) {
            account.used_at = now;
            account.guests = account.guests.saturating_sub(1);
            self.ledger.shrink(model.as_str(), bytes);
        }
        self.pass(now)
    }

    /// A limit that the model's engine was not told yet, once there is an engine.
    pub(crate) fn new_limit(&mut self, model: &ModelId) -> Option<u64> {
        /// Not every sequence is worth a message.
        const STEP: u64 = 64 << 20;
        let bytes = self.containment(model)?.next_multiple_of(STEP);
        let account = self.accounts.get_mut(model).filter(|account| account.is_loaded())?;
        let before = account.told_limit.replace(bytes);
        (before != Some(bytes)).then_some(bytes)
    }

    /// Bytes that the model's worker may take at the most. What it was measured to take since it
    /// was made does not count: one that grows and grows would never be at its limit.
    pub(crate) fn containment(&self, model: &ModelId) -> Option<u64> {
        /// What no formula is blamed for.
        const FLOOR: u64 = 256 << 20;
        let percent = self.limits.overrun_percent?;
        let planned = self.accounts.get(model)?.planned;
        let may = planned.saturating_add(self.ledger.held(model.as_str())?.grown);
        Some(may.saturating_add(may / 100 * u64::from(percent)).saturating_add(FLOOR))
    }
}

/// Bytes that are left to others, and bytes that may be promised in all.
fn bounds(limits: &MemoryLimits, machine: Option<MachineMemory>) -> (u64, u64) {
    let total = machine.map_or(0, |memory| memory.total);
    let reserve = limits.reserve.unwrap_or_else(|| mlxd_memory::machine::reserve(total));
    // What other programs take of it now may come back: that only limits what is free.
    let of_machine =
        |memory: MachineMemory| memory.working_set.min(memory.total.saturating_sub(reserve));
    // A machine that says nothing of itself limits nothing.
    let budget = limits.budget.unwrap_or_else(|| machine.map_or(u64::MAX >> 1, of_machine));
    (reserve, budget)
}

fn refuse(model: &ModelId, turn: Turn, failure: &Failure) -> Act {
    match turn {
        Turn::Sequence(journal) => Act::Fail(model.clone(), journal, failure.clone()),
        Turn::Start(reply) => Act::Refuse(reply, failure.clone()),
    }
}

/// The model takes requests: from here on it is known how it runs.
fn loaded(model: &ModelId, account: &mut Account, info: &ModelInfo, now: Instant) {
    account.loaded_at = Some(now);
    account.used_at = account.used_at.max(now);
    account.load_cost = Duration::from_millis(info.load_ms);
    match info.backend.as_str() {
        "cpu" => account.needs.form = Form::Float32,
        "metal" | "cuda" => account.needs.form = Form::Stored,
        _ => {}
    }
    let key = MeasuredKey {
        model: model.to_string(),
        quantization: info.quantization.clone(),
        build: env!("CARGO_PKG_VERSION").to_owned(),
        backend: info.backend.clone(),
    };
    if account.key.as_ref() != Some(&key) {
        // What was known was of another form of it.
        account.measured = Measured::default();
        account.key = Some(key);
    }
    account.measured.load_ms = Some(info.load_ms);
}
