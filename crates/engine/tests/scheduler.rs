//! What the scheduler promises, case by case.

mod common;
#[path = "common/kept.rs"]
mod kept;

use common::{Call, Watched, submit};
use kept::{Kept, Said};
use mlxd_engine::{Limits, Scheduler, SeqId, bench_direct};
use mlxd_protocol::{
    BenchSpec, Command, Phase, Priority, RefusalCode, Report, RequestId, Submit, TokenFlags,
    TokenRecord,
};
use mlxd_testkit::{How, Script, When};
use std::time::{Duration, Instant};

const LIMITS: Limits = Limits {
    prefill_chunk_tokens: 64,
    prefill_chunk_tokens_busy: 64,
    running_max: 4,
    queued_max: 4,
    parked_max: 0,
    ageing: Duration::ZERO,
    whole_chunks: false,
};

struct Bench {
    scheduler: Scheduler<Watched>,
    kept: Kept,
    now: Instant,
}

impl Bench {
    fn new(script: Script, limits: Limits) -> Self {
        Self {
            scheduler: Scheduler::new(Watched::new(script), limits),
            kept: Kept::default(),
            now: Instant::now(),
        }
    }

    fn submit(&mut self, submit: Submit) {
        let command = Command::Submit(submit);
        self.scheduler.command(command, self.now, &mut self.kept);
    }

    fn cancel(&mut self, request: u64) {
        let command = Command::Cancel(RequestId(request));
        self.scheduler.command(command, self.now, &mut self.kept);
    }

    /// One tick, a millisecond later.
    fn tick(&mut self) -> Vec<Said> {
        self.scheduler.tick(self.now, &mut self.kept).unwrap();
        self.now += Duration::from_millis(1);
        self.kept.take()
    }

    fn finish(&mut self) -> Vec<Said> {
        let mut said = Vec::new();
        let mut ticks = 0;
        while !self.scheduler.is_idle() {
            said.extend(self.tick());
            ticks += 1;
            assert!(ticks < 10_000, "it never ends");
        }
        assert_eq!(self.scheduler.engine().inner.open_count(), 0);
        said
    }

    fn calls(&self) -> &[Call] {
        &self.scheduler.engine().calls
    }
}

fn records(said: &[Said]) -> Vec<TokenRecord> {
    let tokens = |said: &Said| match said {
        Said::Tokens(records) => records.clone(),
        Said::Report(_) => Vec::new(),
    };
    said.iter().flat_map(tokens).collect()
}

fn refusals(said: &[Said]) -> Vec<(u64, RefusalCode)> {
    let ended = |said: &Said| match said {
        Said::Report(Report::Ended(ended)) => Some((ended.request.0, ended.refusal.code)),
        _ => None,
    };
    said.iter().filter_map(ended).collect()
}

#[test]
fn one_request_is_prefilled_in_chunks_and_answered() {
    let mut bench = Bench::new(Script::default(), LIMITS);
    let prompt: Vec<u32> = (0..150).collect();
    bench.submit(submit(1, prompt.clone(), 5));
    let said = bench.finish();

    let chunks: Vec<_> =
        bench.calls().iter().filter(|call| matches!(call, Call::Prefill(..))).collect();
    assert_eq!(chunks.len(), 3, "149 tokens in chunks of 64");
    assert_eq!(said[0], Said::Report(Report::Admitted(RequestId(1))));
    let Said::Report(Report::Started(started)) = &said[1] else {
        panic!("started comes before the tokens: {said:?}");
    };
    assert_eq!((started.queued_us, started.prefill_us), (0, 3000));
    let tokens: Vec<_> = records(&said).iter().map(|record| record.token).collect();
    assert_eq!(tokens, Script::default().tokens(&prompt, 0, 5));
    let flags: Vec<_> = records(&said).iter().map(|record| record.flags).collect();
    assert_eq!(flags, [0, 0, 0, 0, TokenFlags::LENGTH]);
    assert!(records(&said).iter().all(|record| record.logprob.is_nan()));
    assert_eq!(bench.scheduler.engine().row_steps[&SeqId(1)], 5, "length wastes no step");
    let counts = bench.scheduler.counts();
    assert_eq!((counts.generated_tokens, counts.prefilled_tokens), (5, 149));
}

#[test]
fn the_next_step_is_submitted_before_the_last_is_collected() {
    for (depth, in_flight_max) in [(1, 1), (2, 2)] {
        let mut bench = Bench::new(Script { depth, ..Script::default() }, LIMITS);
        bench.submit(submit(1, vec![1], 4));
        bench.finish();
        assert_eq!(bench.scheduler.engine().in_flight_max, in_flight_max);
        let row = Call::Submit(vec![SeqId(1)]);
        let steps: Vec<_> = bench.calls()[2..].iter().map(|call| *call == row).collect();
        let expected: &[bool] = match depth {
            1 => &[true, false, true, false, true, false, true, false, false],
            // The first token waits for no second step.
            _ => &[true, false, true, true, false, true, false, false, false],
        };
        assert_eq!(steps, expected, "depth {depth}");
    }
}

#[test]
fn a_stop_token_ends_it_and_wastes_one_step_at_most() {
    let script = Script { end_after_tokens: Some(3), ..Script::default() };
    let mut bench = Bench::new(script, LIMITS);
    bench.submit(submit(1, vec![1, 2], 100));
    let said = bench.finish();
    let last = *records(&said).last().unwrap();
    assert_eq!((last.index, last.token, last.flags), (3, Script::END, TokenFlags::STOP));
    assert_eq!(records(&said).len(), 4);
    assert!(bench.scheduler.engine().row_steps[&SeqId(1)] <= 5);
}

#[test]
fn alternatives_come_before_their_token() {
    let mut bench = Bench::new(Script::default(), LIMITS);
    bench.submit(Submit { logprobs: Some(2), ..submit(1, vec![1], 2) });
    bench.submit(Submit { logprobs: Some(0), ..submit(2, vec![2], 1) });
    let said = bench.finish();
    let mut announced = None;
    for said in &said {
        match said {
            Said::Report(Report::TopLogprobs(top)) => {
                assert_eq!((top.request.0, top.top.len()), (1, 2));
                announced = Some(top.index);
            }
            Said::Tokens(records) => {
                let one = records.iter().find(|record| record.request == 1);
                assert_eq!(one.map(|record| record.index), announced);
                assert!(records.iter().all(|record| record.logprob < 0.0));
            }
            Said::Report(_) => {}
        }
    }
    assert_eq!(announced, Some(1));
}

#[test]
fn running_rows_go_on_between_the_chunks_of_a_long_prompt() {
    let mut bench = Bench::new(Script::default(), LIMITS);
    bench.submit(submit(1, vec![1], 50));
    bench.tick();
    bench.tick();
    bench.submit(submit(2, vec![2; 64 * 4 + 1], 50));
    for _ in 0..4 {
        assert_eq!(bench.scheduler.next_phase(bench.now), Phase::Prefill);
        bench.tick();
        assert_eq!(bench.scheduler.next_phase(bench.now), Phase::Decode);
        assert!(!records(&bench.tick()).is_empty());
    }
    assert_eq!(bench.scheduler.next_phase(bench.now), Phase::Decode);
    bench.finish();
}

#[test]
fn small_prompts_share_a_chunk_but_not_without_end() {
    let limits = Limits { running_max: 8, queued_max: 8, ..LIMITS };
    let mut bench = Bench::new(Script::default(), limits);
    for request in 1..=8 {
        bench.submit(submit(request, vec![1; 4], 2));
    }
    bench.tick();
    let prefills = bench.calls().iter().filter(|call| matches!(call, Call::Prefill(..))).count();
    assert_eq!(prefills, 2, "a call costs 32 of the chunk's 64 tokens at least");
    bench.finish();
}

#[test]
fn an_urgent_prompt_overtakes_at_a_chunk() {
    let mut bench = Bench::new(Script::default(), LIMITS);
    bench.submit(submit(1, vec![1; 200], 1));
    bench.tick();
    bench.submit(Submit { priority: Priority::High, ..submit(2, vec![2; 60], 1) });
    bench.tick();
    assert_eq!(bench.calls().last(), Some(&Call::Prefill(SeqId(2), 64)));
    let said = bench.finish();
    assert_eq!(records(&said)[0].request, 2);
}

#[test]
fn a_free_row_goes_to_the_most_urgent_then_to_the_longest_waiting() {
    let limits = Limits { running_max: 1, queued_max: 9, ..LIMITS };
    let mut bench = Bench::new(Script::default(), limits);
    let classes = [Priority::Low, Priority::Normal, Priority::High];
    bench.submit(submit(1, vec![1], 3));
    bench.tick();
    for request in 2..8 {
        let priority = classes[request as usize % 3];
        bench.submit(Submit { priority, ..submit(request, vec![1], 1) });
    }
    let said = bench.finish();
    let order: Vec<_> = records(&said).iter().map(|record| record.request).collect();
    assert_eq!(order, [1, 1, 1, 2, 5, 4, 7, 3, 6]);
}

/// The pieces in which a prompt of 100 tokens is run, with and without another prompt before it.
fn pieces(limits: Limits, others: bool) -> Vec<usize> {
    let mut bench = Bench::new(Script::default(), limits);
    if others {
        bench.submit(submit(1, vec![1; 21], 3));
    }
    bench.submit(submit(2, vec![1; 100], 3));
    bench.finish();
    let seq = SeqId(if others { 2 } else { 1 });
    let mut left = 99;
    let mut pieces = Vec::new();
    for call in bench.calls() {
        if let Call::Prefill(row, tokens_max) = call
            && *row == seq
        {
            pieces.push(left.min(*tokens_max));
            left -= left.min(*tokens_max);
        }
    }
    pieces
}

#[test]
fn a_prompt_is_cut_into_the_same_pieces_beside_others_where_that_is_asked_for() {
    let fixed = Limits { whole_chunks: true, ..LIMITS };
    assert_eq!(pieces(fixed, false), [64, 35]);
    assert_eq!(pieces(fixed, true), [64, 35]);
    assert_eq!(pieces(LIMITS, false), [64, 35]);
    assert_eq!(pieces(LIMITS, true), [32, 64, 3], "else what is left of a chunk is used");
}

#[test]
fn what_is_over_the_limits_is_refused_as_busy() {
    let limits = Limits { running_max: 2, queued_max: 1, ..LIMITS };
    let mut bench = Bench::new(Script::default(), limits);
    for request in 1..=4 {
        bench.submit(submit(request, vec![1], 2));
    }
    assert_eq!(refusals(&bench.kept.take()), [(4, RefusalCode::Busy)]);
    assert_eq!(bench.scheduler.counts().queued, 3, "none admitted before the first tick");
    bench.tick();
    assert_eq!((bench.scheduler.counts().queued, bench.scheduler.counts().running), (1, 2));
    assert_eq!(records(&bench.finish()).len(), 6);
}

#[test]
fn a_draining_worker_finishes_what_it_has() {
    let mut bench = Bench::new(Script::default(), Limits { running_max: 1, ..LIMITS });
    bench.submit(submit(1, vec![1], 2));
    bench.submit(submit(2, vec![1], 2));
    bench.scheduler.drain();
    bench.submit(submit(3, vec![1], 2));
    assert_eq!(refusals(&bench.kept.take()), [(3, RefusalCode::Draining)]);
    assert_eq!(records(&bench.finish()).len(), 4);
}

#[test]
fn a_cancelled_request_says_nothing_more() {
    let mut bench = Bench::new(Script::default(), LIMITS);
    bench.submit(submit(1, vec![1], 50));
    bench.submit(submit(2, vec![2], 8));
    bench.tick();
    bench.tick();
    bench.cancel(1);
    bench.cancel(77);
    let said = bench.finish();
    assert!(records(&said).iter().all(|record| record.request == 2));
    assert_eq!(records(&said).len(), 7);
    assert!(refusals(&said).is_empty());
}

#[test]
fn a_replayed_request_goes_on_where_it_stopped() {
    let script = Script::default();
    let prompt = vec![5, 6, 7];
    let answer = script.tokens(&prompt, 9, 10);
    let mut bench = Bench::new(script, LIMITS);
    let mut replay = submit(1, prompt.clone(), 10);
    replay.sampling.seed = 9;
    replay.tokens.extend(&answer[..6]);
    bench.submit(replay);
    let said = bench.finish();
    let got: Vec<_> = records(&said).iter().map(|record| (record.index, record.token)).collect();
    let expected: Vec<_> = (6..).zip(answer[6..].iter().copied()).collect();
    assert_eq!(got, expected);
    assert_eq!(records(&said).last().unwrap().flags, TokenFlags::LENGTH);
    let Call::Open(_, spec) = &bench.calls()[0] else {
        panic!("opened first");
    };
    assert_eq!((spec.prompt_len, spec.tokens.len(), spec.capacity), (3, 9, 13));
}

#[test]
fn the_context_ends_an_answer() {
    let script = Script { context_tokens: 8, ..Script::default() };
    let mut bench = Bench::new(script, LIMITS);
    bench.submit(submit(1, vec![1; 5], 100));
    bench.submit(submit(2, vec![1; 8], 100));
    let refused = bench.kept.take();
    assert_eq!(refusals(&refused), [(2, RefusalCode::ContextOverflow)]);
    let said = bench.finish();
    assert_eq!(records(&said).len(), 3);
    assert_eq!(records(&said)[2].flags, TokenFlags::LENGTH);
}

#[test]
fn the_same_name_twice_does_not_disturb_the_first() {
    let mut bench = Bench::new(Script::default(), LIMITS);
    bench.submit(submit(1, vec![1], 4));
    bench.submit(submit(1, vec![9], 4));
    let said = bench.finish();
    let tokens: Vec<_> = records(&said).iter().map(|record| record.token).collect();
    assert_eq!(tokens, Script::default().tokens(&[1], 0, 4));
    assert!(refusals(&said).is_empty());
}

#[test]
fn a_fault_comes_out_with_what_was_being_done() {
    let script = Script::default();
    let mut engine = mlxd_testkit::ScriptedEngine::new(script.clone());
    engine.plan_faults(&[mlxd_testkit::Fault {
        when: When::Tokens(2),
        how: How::Fault,
        times_max: None,
    }]);
    let mut scheduler = Scheduler::new(engine, LIMITS);
    let mut kept = Kept::default();
    let now = Instant::now();
    scheduler.command(Command::Submit(submit(1, vec![1], 9)), now, &mut kept);
    let fault = loop {
        if let Err(fault) = scheduler.tick(now, &mut kept) {
            break fault;
        }
    };
    assert_eq!(fault.reason, "the script says fault");
    assert_eq!(records(&kept.0).len(), 2);
    assert_eq!(scheduler.running_traces().collect::<Vec<_>>(), ["t1"]);
}

#[test]
fn a_direct_run_keeps_the_pipeline_full_and_leaves_the_engine_empty() {
    let script = Script::default();
    let mut engine = Watched::new(script.clone());
    let spec = BenchSpec { prompt: vec![3; 100], new_tokens: 9, warmup_runs: 1, runs: 2 };
    let mut alive = 0;
    let leg = bench_direct(&mut engine, &spec, 64, &mut || alive += 1).unwrap();
    assert_eq!(leg.tokens, script.tokens(&spec.prompt, 0, 9));
    assert_eq!((leg.seconds.len(), leg.first_token_seconds.len()), (2, 2));
    assert_eq!(alive, 3 * (1 + 9));
    assert_eq!(engine.in_flight_max, 2);
    assert_eq!(engine.inner.open_count(), 0);
    assert_eq!(engine.inner.in_flight_count(), 0);
    assert_eq!(engine.row_steps.len(), 3, "every run is a sequence of its own");
}
