//! `mlxd-worker` itself, with the built-in model on the CPU.

use mlxd_protocol::{
    BenchSpec, FromWorker, LoadFaultKind, PROTOCOL_VERSION, Priority, RefusalCode, Report,
    RequestId, Sampling, Submit, ToWorker, TokenFlags, TokenRecord, exit_code,
};
use mlxd_testkit::{FrontHalf, ModelFolder, Said, Script};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::Command;

const WORKER: &str = env!("CARGO_BIN_EXE_mlxd-worker");

fn built_in_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/model")
}

fn start() -> FrontHalf {
    FrontHalf::start_loaded(Path::new(WORKER), &built_in_model())
}

fn submit(request: u64, prompt: &[u32], max_new: u32) -> Submit {
    Submit {
        request: RequestId(request),
        trace: format!("trace-{request}"),
        tokens: prompt.to_vec(),
        prompt_len: prompt.len() as u32,
        max_new,
        stop_tokens: Vec::new(),
        sampling: Sampling::default(),
        logprobs: None,
        priority: Priority::Normal,
        tenant: 0,
        weight: 1,
        deadline_ms: None,
    }
}

fn tokens(records: &[TokenRecord]) -> Vec<u32> {
    records.iter().map(|record| record.token).collect()
}

const PROMPT: [u32; 6] = [10, 20, 30, 40, 50, 60];

#[test]
fn it_loads_answers_and_drains() {
    let mut front = FrontHalf::start(Path::new(WORKER));
    assert_eq!(front.hello().protocol, PROTOCOL_VERSION);
    assert_eq!(front.hello().version, env!("CARGO_PKG_VERSION"));
    let info = front.load(&built_in_model());
    assert_eq!(info.backend, "cpu");
    let progress = front.progress();
    assert!(progress.load_total > 0 && progress.load_done == progress.load_total);
    assert!(progress.memory_active_bytes > 0);

    front.submit(submit(1, &PROMPT, 24));
    let answer = front.answer(1);
    assert_eq!(answer.len(), 24);
    assert_eq!(answer[23].flags, TokenFlags::LENGTH);
    assert!(answer.iter().all(|record| record.token < info.vocab_size));

    // Greedy is greedy: the same again, alone and beside another.
    front.submit(submit(2, &PROMPT, 24));
    assert_eq!(tokens(&front.answer(2)), tokens(&answer));

    front.say(ToWorker::Drain);
    assert_eq!(front.message(), FromWorker::Drained);
    let worker = Pid::from_raw(front.hello().pid as i32);
    kill(worker, Signal::SIGTERM).expect("the worker is there");
    let status = front.wait_exit();
    assert_eq!(status.code(), Some(exit_code::DONE), "{status}");
}

#[test]
fn a_second_life_goes_on_where_the_first_was_killed() {
    let sampling = Sampling { temperature: 0.8, seed: 7, ..Sampling::default() };
    let request = |request| Submit { sampling: sampling.clone(), ..submit(request, &PROMPT, 40) };
    let mut first = start();
    first.submit(request(1));
    let whole = tokens(&first.answer(1));
    first.submit(request(2));
    while !matches!(first.hear().unwrap(), Said::Tokens(_)) {}
    first.child().kill().unwrap();

    let mut second = start();
    let mut replay = request(2);
    replay.tokens.extend(&whole[..15]);
    second.submit(replay);
    let rest = second.answer(2);
    assert_eq!(rest[0].index, 15);
    assert_eq!(tokens(&rest), whole[15..]);
}

#[test]
fn sequences_run_side_by_side_and_bad_ones_are_refused() {
    let mut front = start();
    front.submit(submit(1, &PROMPT, 30));
    let alone = tokens(&front.answer(1));
    front.submit(submit(2, &PROMPT, 30));
    front.submit(submit(3, &[u32::MAX], 30));
    front.submit(submit(4, &[7, 8, 9], 60));
    front.cancel(4);
    let mut beside = Vec::new();
    let mut refused = None;
    while beside.len() < 30 {
        match front.hear().unwrap() {
            Said::Tokens(records) => {
                let own = records.iter().filter(|record| record.request == 2);
                beside.extend(own.map(|record| record.token));
            }
            Said::Report(Report::Ended(ended)) => {
                assert_eq!(ended.request, RequestId(3));
                refused = Some(ended.refusal.code);
            }
            Said::Report(_) => {}
        }
    }
    assert_eq!(beside, alone);
    assert_eq!(refused, Some(RefusalCode::Invalid));
}

#[test]
fn a_direct_run_gives_what_the_ring_gives() {
    let mut front = start();
    front.submit(submit(1, &PROMPT, 20));
    let answer = tokens(&front.answer(1));
    front.say(ToWorker::Bench(BenchSpec {
        prompt: PROMPT.to_vec(),
        new_tokens: 20,
        warmup_runs: 0,
        runs: 2,
    }));
    let FromWorker::BenchDone(leg) = front.message() else {
        panic!("the run is done");
    };
    assert_eq!(leg.tokens, answer);
    assert_eq!(leg.seconds.len(), 2);
}

#[test]
fn a_folder_that_is_no_model_is_told_and_ends_it() {
    let empty = tempfile::tempdir().unwrap();
    let lying = ModelFolder::new(&Script::default());
    for (folder, kind) in
        [(empty.path(), LoadFaultKind::Missing), (lying.path(), LoadFaultKind::Corrupt)]
    {
        let mut front = FrontHalf::start(Path::new(WORKER));
        front.say(ToWorker::Load(FrontHalf::load_spec(folder)));
        let FromWorker::LoadFailed(fault) = front.message() else {
            panic!("nothing to load");
        };
        assert_eq!(fault.kind, kind, "{fault}");
        assert_eq!(front.wait_exit().code(), Some(exit_code::LOAD_FAILED));
    }
}

#[test]
fn started_by_hand_it_explains_itself() {
    let output = Command::new(WORKER).output().unwrap();
    assert_eq!(output.status.code(), Some(exit_code::USAGE));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("started by mlxd"), "{text}");
    let output = Command::new(WORKER).arg("--version").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, format!("mlxd-worker {}\n", env!("CARGO_PKG_VERSION")));
}
