//! The worker's loop as a process, driven by a front made of nothing but rings and channels.

use mlxd_protocol::{
    BenchSpec, FromWorker, LoadFaultKind, PROTOCOL_VERSION, Phase, Priority, RefusalCode, Report,
    RequestId, Sampling, Submit, ToWorker, TokenFlags, TokenRecord, exit_code, kind,
};
use mlxd_testkit::{
    FrontHalf, How, LoadFailure, ModelFolder, PROTOCOL_VARIABLE, Said, Script, When, until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

const WORKER: &str = env!("CARGO_BIN_EXE_mlxd-scripted-worker");

fn start(script: &Script) -> (FrontHalf, ModelFolder) {
    let folder = ModelFolder::new(script);
    let front = FrontHalf::start_loaded(Path::new(WORKER), folder.path());
    (front, folder)
}

fn submit(request: u64, prompt: &[u32], max_new: u32) -> Submit {
    Submit {
        request: RequestId(request),
        trace: format!("trace-{request}"),
        tokens: prompt.to_vec(),
        prompt_len: prompt.len() as u32,
        max_new,
        stop_tokens: vec![Script::END],
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

fn signal(front: &FrontHalf, signal: Signal) {
    kill(Pid::from_raw(front.hello().pid as i32), signal).expect("the worker is there");
}

/// A script slow enough for a test to act in the middle of an answer.
fn slow() -> Script {
    Script { step_us: 2_000, ..Script::default() }
}

#[test]
fn it_greets_loads_and_answers() {
    let script = Script { answer: Some("Hello, world".into()), ..Script::default() };
    let folder = ModelFolder::new(&script);
    let mut front = FrontHalf::start(Path::new(WORKER));
    let hello = front.hello().clone();
    assert_eq!(hello.protocol, PROTOCOL_VERSION);
    assert_eq!(hello.pid, front.child().id());
    assert_eq!(hello.incarnation.0, 1);
    assert_eq!(front.phase(), Some(Phase::Starting));

    let info = front.load(folder.path());
    assert_eq!((info.vocab_size, info.context_tokens), (script.vocab_size, 4096));
    front.submit(submit(1, &[1, 2, 3], 50));
    assert_eq!(front.hear().unwrap(), Said::Report(Report::Admitted(RequestId(1))));
    let Said::Report(Report::Started(started)) = front.hear().unwrap() else {
        panic!("started comes before the tokens");
    };
    assert_eq!(started.request, RequestId(1));
    let answer = front.answer(1);
    let text: Vec<u8> = tokens(&answer)[..12].iter().map(|&token| token as u8).collect();
    assert_eq!(text, b"Hello, world");
    assert_eq!(answer.last().unwrap().flags, TokenFlags::STOP);

    front.wait_phase(Phase::Idle);
    let progress = front.progress();
    assert_eq!((progress.tokens_generated, progress.prompt_tokens), (13, 2));
    assert_eq!((progress.sequences_running, progress.sequences_queued), (0, 0));
    assert!(progress.step >= 14);
}

#[test]
fn progress_of_a_load_is_on_the_page() {
    let script = Script { load_steps: 1000, load_ms: 1000, ..Script::default() };
    let folder = ModelFolder::new(&script);
    let front = FrontHalf::start(Path::new(WORKER));
    front.say(ToWorker::Load(FrontHalf::load_spec(folder.path())));
    until("some progress", || {
        let progress = front.progress();
        (progress.load_done > 0 && progress.load_done < progress.load_total)
            .then(|| assert_eq!(front.phase(), Some(Phase::Loading)))
    });
    assert!(matches!(front.message(), FromWorker::Ready(_)));
    assert_eq!(front.progress().load_done, 1000);
}

#[test]
fn a_failed_load_is_told_and_ends_the_process() {
    let script = Script {
        load_failure: Some(LoadFailure {
            kind: LoadFaultKind::Corrupt,
            message: "model.layers.0 is missing".into(),
        }),
        ..Script::default()
    };
    let folder = ModelFolder::new(&script);
    let mut front = FrontHalf::start(Path::new(WORKER));
    front.say(ToWorker::Load(FrontHalf::load_spec(folder.path())));
    let FromWorker::LoadFailed(fault) = front.message() else {
        panic!("the load fails");
    };
    assert_eq!(fault.kind, LoadFaultKind::Corrupt);
    assert_eq!(fault.message, "model.layers.0 is missing");
    assert_eq!(front.wait_exit().code(), Some(exit_code::LOAD_FAILED));
}

#[test]
fn sixty_four_sequences_get_their_own_tokens() {
    let (mut front, _folder) = start(&Script::default());
    let script = Script::default();
    let prompt = |request: u64| vec![request as u32, 7];
    for request in 0..64 {
        front.submit(submit(request, &prompt(request), 200));
    }
    let mut answers = vec![Vec::new(); 64];
    while answers.iter().any(|answer: &Vec<u32>| answer.len() < 200) {
        if let Said::Tokens(records) = front.hear().unwrap() {
            for record in records {
                let answer = &mut answers[record.request as usize];
                assert_eq!(record.index as usize, answer.len());
                answer.push(record.token);
            }
        }
    }
    for (request, answer) in answers.iter().enumerate() {
        assert_eq!(*answer, script.tokens(&prompt(request as u64), 0, 200));
    }
}

#[test]
fn a_cancelled_sequence_says_nothing_after_the_next() {
    let (mut front, _folder) = start(&slow());
    front.submit(submit(1, &[1], 4000));
    while !matches!(front.hear().unwrap(), Said::Tokens(_)) {}
    front.cancel(1);
    front.submit(submit(2, &[2], 3));
    let mut second_spoke = false;
    loop {
        let Said::Tokens(records) = front.hear().unwrap() else {
            continue;
        };
        second_spoke |= records.iter().any(|record| record.request == 2);
        assert!(!second_spoke || records.iter().all(|record| record.request == 2));
        if records.iter().any(|record| record.flags != 0) {
            break;
        }
    }
    front.wait_phase(Phase::Idle);
}

#[test]
fn a_sequence_that_cannot_run_is_refused_and_the_worker_goes_on() {
    let (mut front, _folder) = start(&Script::default());
    front.submit(submit(1, &[99_999], 3));
    let Said::Report(Report::Ended(ended)) = front.hear().unwrap() else {
        panic!("it is refused");
    };
    assert_eq!(ended.refusal.code, RefusalCode::Invalid);
    front.submit(submit(2, &[1], 3));
    assert_eq!(front.answer(2).len(), 3);
}

#[test]
fn drain_finishes_what_runs_and_refuses_what_comes() {
    let (mut front, _folder) = start(&slow());
    front.submit(submit(1, &[1], 100));
    while !matches!(front.hear().unwrap(), Said::Tokens(_)) {}
    front.say(ToWorker::Drain);
    front.wait_phase(Phase::Draining);
    front.submit(submit(2, &[2], 3));
    let mut refused = false;
    loop {
        match front.hear().unwrap() {
            Said::Report(Report::Ended(ended)) => {
                assert_eq!(ended.refusal.code, RefusalCode::Draining);
                refused = true;
            }
            Said::Tokens(records) if records.iter().any(|record| record.flags != 0) => break,
            _ => {}
        }
    }
    assert!(refused, "the second is refused");
    assert_eq!(front.message(), FromWorker::Drained);
    front.say(ToWorker::Shutdown);
    assert_eq!(front.wait_exit().code(), Some(exit_code::DONE));
}

#[test]
fn sigterm_drains_and_ends_and_sigint_does_nothing() {
    let (mut front, _folder) = start(&slow());
    front.submit(submit(1, &[1], 100));
    while !matches!(front.hear().unwrap(), Said::Tokens(_)) {}
    signal(&front, Signal::SIGINT);
    signal(&front, Signal::SIGTERM);
    let answer = front.answer(1);
    assert_eq!(answer.last().unwrap().index, 99);
    assert_eq!(front.message(), FromWorker::Drained);
    assert_eq!(front.wait_exit().code(), Some(exit_code::DONE));
}

#[test]
fn sigterm_ends_a_load_at_once() {
    let script = Script { load_steps: 1, ..Script::default() }.with_fault(When::Load, How::Hang);
    let folder = ModelFolder::new(&script);
    let mut front = FrontHalf::start(Path::new(WORKER));
    front.say(ToWorker::Load(FrontHalf::load_spec(folder.path())));
    front.wait_phase(Phase::Loading);
    signal(&front, Signal::SIGTERM);
    assert_eq!(front.wait_exit().code(), Some(exit_code::DONE));
}

#[test]
fn shutdown_ends_it_even_while_the_engine_hangs() {
    let script = Script::default().with_fault(When::Tokens(3), How::Hang);
    let (mut front, _folder) = start(&script);
    front.submit(submit(1, &[1], 10));
    while !matches!(front.hear().unwrap(), Said::Tokens(_)) {}
    front.say(ToWorker::Shutdown);
    assert_eq!(front.wait_exit().code(), Some(exit_code::DONE));
}

#[test]
fn a_front_that_hangs_up_ends_it_even_while_the_engine_hangs() {
    let script = Script::default().with_fault(When::Prefill, How::Hang);
    let (mut front, _folder) = start(&script);
    front.submit(submit(1, &[1], 10));
    front.wait_phase(Phase::Prefill);
    front.hang_up();
    assert_eq!(front.wait_exit().code(), Some(exit_code::FRONT_GONE));
}

#[test]
fn a_refused_version_ends_it() {
    let mut command = Command::new(WORKER);
    command.env(PROTOCOL_VARIABLE, "4711");
    let mut front = FrontHalf::start_with(command);
    assert_eq!(front.hello().protocol, 4711);
    front.hang_up();
    assert_eq!(front.wait_exit().code(), Some(exit_code::FRONT_GONE));
}

#[test]
fn what_it_published_before_its_death_can_be_read() {
    for (how, died) in [
        (How::Kill, Err(Signal::SIGKILL as i32)),
        (How::Segv, Err(Signal::SIGSEGV as i32)),
        (How::Abort, Err(Signal::SIGABRT as i32)),
        (How::Fault, Ok(exit_code::FAULT)),
        (How::Panic, Ok(exit_code::FAULT)),
        (How::Exit(9), Ok(9)),
    ] {
        let script = Script::default().with_fault(When::Tokens(7), how);
        let (mut front, _folder) = start(&script);
        front.submit(submit(1, &[1, 2], 100));
        let answer = front.drain(1);
        assert_eq!(tokens(&answer), script.tokens(&[1, 2], 0, 7), "{how:?}");
        let status = front.wait_exit();
        match died {
            Ok(code) => assert_eq!(status.code(), Some(code), "{how:?}"),
            Err(signal) => assert_eq!(status.signal(), Some(signal), "{how:?}"),
        }
    }
}

#[test]
fn a_counted_fault_happens_once_and_the_next_life_goes_on() {
    let script = Script::default().with_fault_once(When::Tokens(5), How::Kill);
    let (mut first, folder) = start(&script);
    first.submit(submit(1, &[8], 20));
    let before = tokens(&first.drain(1));
    assert_eq!(before.len(), 5);

    let mut second = FrontHalf::start_loaded(Path::new(WORKER), folder.path());
    let mut replay = submit(1, &[8], 20);
    replay.tokens.extend(&before);
    second.submit(replay);
    let after = second.answer(1);
    assert_eq!(after[0].index, 5);
    let whole: Vec<_> = before.into_iter().chain(tokens(&after)).collect();
    assert_eq!(whole, script.tokens(&[8], 0, 20));
}

#[test]
fn a_corrupt_command_ends_it() {
    let (mut front, _folder) = start(&Script::default());
    front.send(kind::COMMAND, &[0xff; 40]);
    assert_eq!(front.wait_exit().code(), Some(exit_code::RING_CORRUPT));
}

#[test]
fn a_direct_run_is_timed() {
    let (front, _folder) = start(&Script::default());
    let spec = BenchSpec { prompt: vec![1, 2, 3], new_tokens: 20, warmup_runs: 1, runs: 3 };
    front.say(ToWorker::Bench(spec));
    let FromWorker::BenchDone(leg) = front.message() else {
        panic!("the run is done");
    };
    assert_eq!((leg.seconds.len(), leg.first_token_seconds.len()), (3, 3));
    assert_eq!(leg.tokens, Script::default().tokens(&[1, 2, 3], 0, 20));
    // A page that goes on saying "decode" would look like a hang.
    front.wait_phase(Phase::Idle);
}

#[test]
fn it_outlives_the_thread_that_started_it() {
    let folder = ModelFolder::new(&Script::default());
    let start = || FrontHalf::start_loaded(Path::new(WORKER), folder.path());
    let mut front = std::thread::scope(|scope| scope.spawn(start).join().unwrap());
    front.submit(submit(1, &[1], 500));
    assert_eq!(front.answer(1).len(), 500);
}

/// Rings and channels stay open here: only the system can tell the worker of its parent's death.
#[test]
fn it_does_not_outlive_its_parent() {
    let mut shell = Command::new("sh");
    shell.args(["-c", "\"$0\" \"$@\" & wait", WORKER]);
    let mut front = FrontHalf::start_with(shell);
    let shell = front.child().id();
    assert_ne!(front.hello().pid, shell);
    front.child().kill().unwrap();
    front.wait_disconnected();
}

const ROLE: &str = "MLXD_TEST_ROLE";

/// Not a test of its own: the process that [`a_killed_front_takes_its_worker_along`] kills.
#[test]
fn front_to_be_killed() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let (mut front, _folder) = start(&slow());
    front.submit(submit(1, &[1], 4000));
    while !matches!(front.hear().unwrap(), Said::Tokens(_)) {}
    eprintln!("worker works");
    loop {
        std::thread::park();
    }
}

#[test]
fn a_killed_front_takes_its_worker_along() {
    let mut front = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "front_to_be_killed", "--nocapture"])
        .env(ROLE, "front")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The worker has the other end too: end of file means that both are gone.
    let mut errors = front.stderr.take().unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("worker works") {
        let mut byte = [0; 64];
        let count = errors.read(&mut byte).unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&byte[..count]);
    }
    front.kill().unwrap();
    let killed = Instant::now();
    // Comes to an end only when the worker does.
    errors.read_to_end(&mut seen).unwrap();
    println!("the worker went {:?} after its front", killed.elapsed());
    front.wait().unwrap();
}

#[test]
fn started_by_hand_it_explains_itself() {
    let output = Command::new(WORKER).output().unwrap();
    assert_eq!(output.status.code(), Some(exit_code::USAGE));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("started by mlxd") && text.contains("mlxd serve"), "{text}");
    let output = Command::new(WORKER).arg("--version").output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, format!("mlxd-scripted-worker {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_segment_that_is_not_there_is_named() {
    let line = "--bootstrap x --segment /mlxd-00 --commands-fd 7 --tokens-fd 8 --incarnation 1";
    let output = Command::new(WORKER).args(line.split(' ')).output().unwrap();
    assert_eq!(output.status.code(), Some(exit_code::ATTACH_FAILED));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("descriptor 7"), "{text}");
}
