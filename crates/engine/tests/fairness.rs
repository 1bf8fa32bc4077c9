//! Order and fairness, on a clock that only the work done moves.

mod common;

use common::{Call, Watched, submit};
use mlxd_engine::{Limits, Scheduler, SeqId, Sink};
use mlxd_protocol::{Command, Priority, RefusalCode, Report, Submit, TokenRecord};
use mlxd_testkit::Script;
use proptest::prelude::*;
use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What a decode step and a prompt token take.
const STEP: Duration = Duration::from_millis(10);
const PROMPT_TOKEN: Duration = Duration::from_micros(100);
const AGEING: Duration = Duration::from_secs(2);

const LIMITS: Limits = Limits {
    prefill_chunk_tokens: 512,
    prefill_chunk_tokens_busy: 128,
    running_max: 4,
    queued_max: 1_000,
    parked_max: 4,
    ageing: AGEING,
    whole_chunks: false,
};

/// A scheduler whose clock the simulated device moves.
struct World {
    scheduler: Scheduler<Watched>,
    script: Script,
    begun: Instant,
    now: Instant,
    prompts: HashMap<u64, (Vec<u32>, u64)>,
    arrived: HashMap<u64, Instant>,
    seen: Seen,
}

/// What was published, and when.
struct Seen {
    begun: Instant,
    clock: Rc<Cell<Duration>>,
    tokens: HashMap<u64, Vec<u32>>,
    times: HashMap<u64, Vec<Instant>>,
    ended: HashMap<u64, Instant>,
    refused: HashMap<u64, RefusalCode>,
    /// Requests in the order of their first tokens.
    started: Vec<u64>,
}

impl Seen {
    fn now(&self) -> Instant {
        self.begun + self.clock.get()
    }
}

impl Sink for Seen {
    fn report(&mut self, report: Report) {
        match report {
            Report::Started(started) => self.started.push(started.request.0),
            Report::Ended(ended) => {
                self.refused.insert(ended.request.0, ended.refusal.code);
                self.ended.insert(ended.request.0, self.now());
            }
            _ => {}
        }
    }

    fn tokens(&mut self, records: &[TokenRecord]) {
        let now = self.now();
        for record in records {
            self.tokens.entry(record.request).or_default().push(record.token);
            self.times.entry(record.request).or_default().push(now);
            if record.flags != 0 {
                self.ended.insert(record.request, now);
            }
        }
    }
}

impl std::ops::Deref for World {
    type Target = Seen;
    fn deref(&self) -> &Seen {
        &self.seen
    }
}

impl World {
    fn new(limits: Limits) -> Self {
        let script = Script { context_tokens: 40_000, ..Script::default() };
        let now = Instant::now();
        let mut engine = Watched::new(script.clone());
        engine.step_cost = STEP;
        engine.prompt_token_cost = PROMPT_TOKEN;
        let seen = Seen {
            begun: now,
            clock: Rc::clone(&engine.clock),
            tokens: HashMap::new(),
            times: HashMap::new(),
            ended: HashMap::new(),
            refused: HashMap::new(),
            started: Vec::new(),
        };
        Self {
            scheduler: Scheduler::new(engine, limits),
            script,
            begun: now,
            now,
            prompts: HashMap::new(),
            arrived: HashMap::new(),
            seen,
        }
    }

    fn submit(&mut self, submit: Submit) {
        let request = submit.request.0;
        self.prompts.insert(request, (submit.tokens.clone(), submit.sampling.seed));
        self.arrived.insert(request, self.now);
        self.scheduler.command(Command::Submit(submit), self.now, &mut self.seen);
    }

    /// One unit of work, in the time that it takes.
    fn tick(&mut self) {
        self.scheduler.tick(self.now, &mut self.seen).unwrap();
        self.now = self.seen.now();
    }

    fn finish(&mut self) {
        let mut ticks = 0;
        while !self.scheduler.is_idle() {
            self.tick();
            ticks += 1;
            assert!(ticks < 100_000, "it never ends");
        }
        for (request, tokens) in &self.tokens {
            let (prompt, seed) = &self.prompts[request];
            let right = self.script.tokens(prompt, *seed, tokens.len() as u32);
            assert_eq!(tokens, &right, "request {request}");
        }
        assert_eq!(self.scheduler.engine().inner.open_count(), 0);
    }

    fn given(&self, request: u64) -> usize {
        self.tokens.get(&request).map_or(0, Vec::len)
    }

    fn first_token_after(&self, request: u64) -> Duration {
        self.times[&request][0] - self.arrived[&request]
    }
}

fn with(priority: Priority, submit: Submit) -> Submit {
    Submit { priority, ..submit }
}

#[test]
fn an_urgent_request_takes_the_place_of_the_least_urgent_and_nothing_is_lost() {
    let mut world = World::new(LIMITS);
    for request in 1..=4 {
        let priority = if request == 3 { Priority::Low } else { Priority::Normal };
        world.submit(with(priority, submit(request, vec![request as u32; 40], 100)));
    }
    while world.given(3) < 5 {
        world.tick();
    }
    world.submit(with(Priority::High, submit(5, vec![9; 100], 10)));
    world.submit(with(Priority::Normal, submit(6, vec![8; 100], 10)));
    world.tick();
    let counts = world.scheduler.counts();
    assert_eq!((counts.running, counts.parked, counts.preemptions, counts.queued), (4, 1, 1, 1));
    let parked: Vec<_> =
        world.scheduler.engine().calls.iter().filter(|c| matches!(c, Call::Park(_))).collect();
    assert_eq!(parked, [&Call::Park(SeqId(4))], "the low one came last to a place");
    world.finish();
    assert!(world.first_token_after(5) <= STEP * 3 + PROMPT_TOKEN * 100);
    assert_eq!((world.given(3), world.given(5)), (100, 10));
    assert_eq!(world.scheduler.counts().parked, 0);
    let opened = world.scheduler.engine().calls.iter().filter(|c| matches!(c, Call::Open(..)));
    assert_eq!(opened.count(), 6, "a parked sequence is not opened again");
}

#[test]
fn a_prompt_in_the_middle_is_parked_at_a_chunk_and_goes_on_there() {
    let mut world = World::new(Limits { running_max: 1, ..LIMITS });
    world.submit(with(Priority::Low, submit(1, vec![1; 4 * 512 + 1], 5)));
    world.tick();
    world.submit(with(Priority::High, submit(2, vec![2; 10], 5)));
    world.finish();
    assert_eq!(world.started, [2, 1]);
    assert_eq!(world.scheduler.counts().prefilled_tokens, 4 * 512 + 9, "nothing twice");
}

#[test]
fn parking_has_a_bound_and_equals_do_not_push_each_other_out() {
    let mut world = World::new(Limits { parked_max: 1, ..LIMITS });
    for request in 1..=4 {
        world.submit(with(Priority::Low, submit(request, vec![1; 4], 50)));
    }
    world.tick();
    for request in 5..=8 {
        world.submit(with(Priority::Normal, submit(request, vec![2; 4], 50)));
    }
    for _ in 0..10 {
        world.tick();
    }
    let counts = world.scheduler.counts();
    assert_eq!((counts.parked, counts.preemptions, counts.queued), (1, 1, 3));
    world.finish();

    let mut world = World::new(LIMITS);
    for request in 1..=8 {
        world.submit(submit(request, vec![1; 4], 50));
    }
    world.finish();
    assert_eq!(world.scheduler.counts().preemptions, 0);
}

#[test]
fn a_deadline_ends_what_has_no_token_by_then_and_nothing_else() {
    let mut world = World::new(Limits { running_max: 1, ..LIMITS });
    let deadline = |ms, submit| Submit { deadline_ms: Some(ms), ..submit };
    world.submit(deadline(50, submit(1, vec![1; 4], 100)));
    world.submit(deadline(300, submit(2, vec![2; 4], 5)));
    world.submit(deadline(60_000, submit(3, vec![3; 4], 5)));
    world.tick();
    world.finish();
    assert_eq!(world.given(1), 100, "it had begun in time");
    assert_eq!(world.refused, HashMap::from([(2, RefusalCode::Deadline)]));
    let ended_after = world.ended[&2] - world.begun;
    assert!((Duration::from_millis(300)..Duration::from_millis(330)).contains(&ended_after));
    assert_eq!(world.given(3), 5);
    assert_eq!(world.scheduler.counts().expired, 1);
    // A long prompt is given up in its middle.
    world.submit(deadline(100, submit(4, vec![4; 30_000], 5)));
    world.finish();
    assert_eq!((world.refused[&4], world.given(4)), (RefusalCode::Deadline, 0));
    assert!(world.scheduler.counts().prefilled_tokens < 3_000);
}

#[test]
fn an_aged_request_keeps_its_place_for_a_while_against_urgent_ones() {
    let mut world = World::new(Limits { running_max: 1, ..LIMITS });
    let mut request = 1;
    world.submit(with(Priority::Low, submit(0, vec![1; 4], 400)));
    // There is always an urgent one waiting; each takes half a second.
    while !world.ended.contains_key(&0) {
        if world.scheduler.counts().queued == 0 {
            world.submit(with(Priority::High, submit(request, vec![1; 4], 50)));
            request += 1;
        }
        world.tick();
        assert!(world.now - world.begun < AGEING * 20, "it starves");
    }
    assert!(world.scheduler.counts().preemptions >= 2);
    let gaps: Vec<_> = world.times[&0].windows(2).map(|pair| pair[1] - pair[0]).collect();
    let longest = gaps.iter().max().unwrap();
    assert!(*longest <= AGEING * 2 + Duration::from_secs(1), "{longest:?}");
    // Turns of at least one ageing each.
    let pauses = gaps.iter().filter(|gap| **gap > STEP * 3).count();
    assert!(pauses <= 3, "{pauses} pauses in four seconds of work");
}

#[test]
fn a_long_prompt_leaves_the_others_their_tokens() {
    for chunk in [512, 128] {
        let limits = Limits { prefill_chunk_tokens_busy: chunk, ..LIMITS };
        let mut world = World::new(limits);
        world.submit(submit(1, vec![1; 10], 700));
        world.submit(submit(2, vec![2; 10], 700));
        while world.given(1) < 3 {
            world.tick();
        }
        world.submit(submit(3, vec![3; 30_000], 5));
        world.finish();
        let bound = STEP * 2 + PROMPT_TOKEN * chunk as u32;
        for request in [1, 2] {
            let gaps = world.times[&request].windows(2).map(|pair| pair[1] - pair[0]);
            let longest = gaps.max().unwrap();
            assert!(longest <= bound, "{longest:?}");
        }
    }
    // Alone it runs in the large pieces.
    let mut world = World::new(LIMITS);
    world.submit(submit(3, vec![3; 30_000], 5));
    world.finish();
    let chunks = world.scheduler.engine().calls.iter().filter(|c| matches!(c, Call::Prefill(..)));
    assert_eq!(chunks.count(), 29_999usize.div_ceil(512));
}

fn priority() -> impl Strategy<Value = Priority> {
    prop_oneof![Just(Priority::High), Just(Priority::Normal), Just(Priority::Low)]
}

/// Requests that keep four places busy for ever: priority, tenant, prompt, answer.
fn flood() -> impl Strategy<Value = Vec<(Priority, u32, usize, u32)>> {
    prop::collection::vec((priority(), 0u32..3, 1usize..300, 1u32..40), 8..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever keeps coming, a request of any kind gets its first token within a bound that
    /// has nothing to do with how long the others go on coming.
    #[test]
    fn nobody_starves(
        flood in flood(),
        mine in priority(),
        tenant in 0u32..4,
        running_max in 1usize..5,
        parked_max in 0usize..4,
    ) {
        let mut world = World::new(Limits { running_max, parked_max, ..LIMITS });
        let mut coming = flood.iter().cycle();
        let mut request = 1;
        let mut feed = |world: &mut World| {
            while world.scheduler.counts().queued < 6 {
                let (priority, tenant, prompt, answer) = *coming.next().unwrap();
                let submit = submit(request, vec![5; prompt], answer);
                world.submit(Submit { priority, tenant, weight: 1 + tenant, ..submit });
                request += 1;
            }
        };
        for _ in 0..50 {
            feed(&mut world);
            world.tick();
        }
        let own = submit(0, vec![6; 200], 60);
        world.submit(Submit { priority: mine, tenant, weight: 1, ..own });
        let from = world.now;
        while !world.ended.contains_key(&0) {
            feed(&mut world);
            world.tick();
            prop_assert!(world.now - from < AGEING * 40, "no end after {:?}", world.now - from);
        }
        prop_assert_eq!(world.given(0), 60);
        // Two ageings lift it to the top; there, the shares of its tenant's rivals (weights 1 to
        // 3) and one place's time go before it.
        prop_assert!(world.first_token_after(0) < AGEING * 10, "{:?}", world.first_token_after(0));
        world.finish();
    }

    /// Tenants that all have work waiting are served by their weights.
    #[test]
    fn work_is_shared_by_weight(
        weights in prop::collection::vec(1u32..6, 2..4),
        prompt in 1usize..200,
        answer in 10u32..60,
        running_max in 1usize..6,
    ) {
        let limits = Limits { running_max, ageing: Duration::ZERO, ..LIMITS };
        let mut world = World::new(limits);
        let mut request = 0;
        let mut waiting = vec![0usize; weights.len()];
        let mut of: HashMap<u64, usize> = HashMap::new();
        while world.started.len() < 60 * weights.len() {
            for at in 0..weights.len() {
                while waiting[at] < 8 {
                    let submit = submit(request, vec![at as u32; prompt], answer);
                    world.submit(Submit { tenant: at as u32, weight: weights[at], ..submit });
                    of.insert(request, at);
                    waiting[at] += 1;
                    request += 1;
                }
            }
            let before = world.started.len();
            world.tick();
            for request in &world.started[before..] {
                waiting[of[request]] -= 1;
            }
        }
        let mut got = vec![0f64; weights.len()];
        for request in &world.started {
            got[of[request]] += 1.0;
        }
        let all: f64 = got.iter().sum();
        let weight_all: u32 = weights.iter().sum();
        for (got, weight) in got.iter().zip(&weights) {
            let right = all * f64::from(*weight) / f64::from(weight_all);
            prop_assert!((got - right).abs() <= right * 0.15 + 3.0, "{got} for {right}");
        }
    }

    /// Rows that decode never wait for more than two steps and one busy chunk.
    #[test]
    fn gaps_between_tokens_are_bounded(
        arrivals in prop::collection::vec((1usize..3_000, 1u32..80, 0u8..20), 1..25),
        busy in 32usize..300,
        running_max in 1usize..6,
    ) {
        let limits = Limits { prefill_chunk_tokens_busy: busy, running_max, ..LIMITS };
        let mut world = World::new(limits);
        for (request, (prompt, answer, ticks)) in arrivals.into_iter().enumerate() {
            world.submit(submit(request as u64, vec![7; prompt], answer));
            for _ in 0..ticks {
                world.tick();
            }
        }
        world.finish();
        let bound = STEP * 2 + PROMPT_TOKEN * busy as u32;
        for times in world.times.values() {
            for pair in times.windows(2) {
                prop_assert!(pair[1] - pair[0] <= bound, "{:?}", pair[1] - pair[0]);
            }
        }
    }

    /// The more urgent class is never behind, as long as nobody has aged.
    #[test]
    fn without_ageing_the_urgent_go_first(
        classes in prop::collection::vec(priority(), 1..40),
        running_max in 1usize..5,
    ) {
        let limits = Limits { running_max, parked_max: 0, ageing: Duration::ZERO, ..LIMITS };
        let mut world = World::new(limits);
        for (request, class) in classes.iter().enumerate() {
            world.submit(with(*class, submit(request as u64, vec![7; 600], 1)));
        }
        world.finish();
        let order: Vec<_> = world.started.iter().map(|r| (classes[*r as usize], *r)).collect();
        prop_assert!(order.is_sorted(), "{order:?}");
    }
}
