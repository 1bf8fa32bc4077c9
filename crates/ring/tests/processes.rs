//! Two real processes over one segment: in order, whole, asleep and awake, killed at any moment.

mod peer;

use std::time::{Duration, Instant};

use mlxd_ring::{RingError, SegmentSpec, SendError, WorkerLink, leftovers, monotonic_ns};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use peer::{PATIENCE, Peer, SMALL, numbered};

/// What the child does; run by `Peer::start`.
#[test]
#[ignore = "the other process of the tests here"]
fn as_child() {
    match peer::role().as_deref() {
        Some("echo") => echo(&mut peer::attach()),
        Some("count") => count(&mut peer::attach()),
        Some("swallow") => swallow(&mut peer::attach()),
        Some("three and park") => three_and_park(&mut peer::attach()),
        Some("progress") => progress(&mut peer::attach()),
        Some("front") => front_that_waits_to_be_killed(),
        Some(other) => panic!("no such role: {other}"),
        None => {}
    }
}

/// Sends back what comes, until the front is gone.
fn echo(link: &mut WorkerLink) {
    let mut record = Vec::new();
    loop {
        match link.commands.recv(&mut record, Some(PATIENCE)) {
            Ok(Some(kind)) => link.tokens.send(kind, &record, Some(PATIENCE)).expect("sent"),
            Ok(None) => panic!("the front is alive and silent"),
            Err(RingError::PeerGone) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Sends numbered records for ever.
fn count(link: &mut WorkerLink) {
    for number in 0.. {
        let (kind, payload) = numbered(number);
        if link.tokens.send(kind, &payload, Some(PATIENCE)).is_err() {
            return;
        }
    }
}

/// Takes numbered records, checks them and says nothing.
fn swallow(link: &mut WorkerLink) {
    let mut record = Vec::new();
    let mut number = 0;
    while let Ok(Some(kind)) = link.commands.recv(&mut record, Some(PATIENCE)) {
        assert_eq!((kind, record.clone()), numbered(number));
        number += 1;
    }
}

fn three_and_park(link: &mut WorkerLink) {
    for number in 0..3_u16 {
        link.tokens.send(number, b"x", Some(PATIENCE)).expect("sent");
    }
    link.progress.step();
    let mut record = Vec::new();
    let _front_gone = link.commands.recv(&mut record, Some(PATIENCE));
}

fn progress(link: &mut WorkerLink) {
    link.progress.set_phase(9);
    link.progress.set_load(3, 4);
    link.progress.step();
    link.tokens.send(0, &[], Some(PATIENCE)).expect("sent");
    let mut record = Vec::new();
    let _front_gone = link.commands.recv(&mut record, Some(PATIENCE));
}

/// A front with recorded segments; tells that it has them by a file, then waits for its end.
fn front_that_waits_to_be_killed() {
    let dir = std::env::var_os("MLXD_RING_TEST_DIR").expect("a folder");
    let dir = std::path::PathBuf::from(dir);
    let segments: Vec<_> =
        (0..3).map(|_| mlxd_ring::Segment::create_recorded(&SMALL, &dir).expect("made")).collect();
    let names: Vec<_> = segments.iter().map(|segment| segment.name()).collect();
    std::fs::write(dir.join("names.tmp"), names.join("\n")).expect("written");
    std::fs::rename(dir.join("names.tmp"), dir.join("names")).expect("renamed");
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        std::thread::park_timeout(PATIENCE);
    }
}

#[test]
fn records_of_all_sizes_come_back_as_they_went() {
    let mut peer = Peer::start("echo", &SMALL);
    let mut record = Vec::new();
    for number in 0..2_000 {
        let (kind, payload) = numbered(number);
        peer.link.commands.send(kind, &payload, Some(PATIENCE)).expect("sent");
        let back = peer.link.tokens.recv(&mut record, Some(PATIENCE)).expect("sound");
        assert_eq!(back, Some(kind));
        assert_eq!(record, payload);
    }
    assert!(peer.finish());
}

#[test]
fn neither_side_oversleeps() {
    // Both sides sleep before every record, so each round has two chances for a lost ring.
    let mut peer = Peer::start("echo", &SegmentSpec::default());
    let mut record = Vec::new();
    for round in 0..10_000_u64 {
        let sent = round.to_ne_bytes();
        peer.link.commands.send(1, &sent, Some(PATIENCE)).expect("sent");
        let back = peer.link.tokens.recv(&mut record, Some(PATIENCE)).expect("sound");
        assert_eq!((back, record.as_slice()), (Some(1), sent.as_slice()), "round {round}");
    }
    assert!(peer.finish());
}

#[test]
fn a_full_ring_holds_the_writer_back_and_loses_nothing() {
    let mut peer = Peer::start("swallow", &SMALL);
    for number in 0..5_000 {
        let (kind, payload) = numbered(number);
        peer.link.commands.send(kind, &payload, Some(PATIENCE)).expect("sent");
    }
    assert!(peer.finish());
}

#[test]
fn a_writer_killed_at_any_point_leaves_whole_records_and_an_end() {
    let mut random = fastrand::Rng::with_seed(11);
    let mut record = Vec::new();
    let mut after_death = 0;
    for round in 0..60 {
        let mut peer = Peer::start("count", &SMALL);
        let mut number = 0;
        let kill_at = random.u64(1..400);
        let error = loop {
            match peer.link.tokens.recv(&mut record, Some(PATIENCE)) {
                Ok(Some(kind)) => {
                    assert_eq!((kind, record.clone()), numbered(number), "round {round}");
                    number += 1;
                }
                Ok(None) => panic!("silence in round {round}"),
                Err(error) => break error,
            }
            if number == kill_at {
                peer.kill();
            }
            after_death += u64::from(number > kill_at);
        };
        assert!(matches!(error, RingError::PeerGone), "round {round}: {error}");
        assert!(number >= kill_at);
        // And it stays so.
        let again = peer.link.tokens.try_recv(&mut record);
        assert!(matches!(again, Err(RingError::PeerGone)));
        peer.finish();
    }
    assert!(after_death > 0, "no record outlived its writer; the test looked too late");
}

#[test]
fn a_reader_killed_at_any_point_stops_the_writer() {
    let mut random = fastrand::Rng::with_seed(12);
    for round in 0..40 {
        let mut peer = Peer::start("swallow", &SMALL);
        let kill_at = random.u64(1..200);
        let mut number = 0;
        let error = loop {
            let (kind, payload) = numbered(number);
            if let Err(error) = peer.link.commands.send(kind, &payload, Some(PATIENCE)) {
                break error;
            }
            number += 1;
            if number == kill_at {
                peer.kill();
            }
        };
        assert!(matches!(error, SendError::Closed), "round {round}: {error}");
        assert!(peer.link.commands.is_closed());
        peer.finish();
    }
}

#[test]
fn death_wakes_a_sleeping_reader_after_the_last_record() {
    let mut peer = Peer::start("three and park", &SMALL);
    let mut record = Vec::new();
    // All three are there before the first is taken, and the death is known before the second.
    let deadline = Instant::now() + PATIENCE;
    while peer.link.progress.snapshot().step == 0 {
        assert!(Instant::now() < deadline, "the child never sent its three");
        std::thread::yield_now();
    }
    for number in 0..3_u16 {
        let taken = peer.link.tokens.recv(&mut record, Some(PATIENCE));
        assert_eq!(taken.expect("sound"), Some(number));
        if number == 0 {
            peer.kill();
            peer.child.wait().expect("waited");
            peer.link.tokens.woken().expect("two are left");
        }
    }
    let error = peer.link.tokens.recv(&mut record, None).expect_err("the end");
    assert!(matches!(error, RingError::PeerGone), "{error}");
    assert!(Instant::now() < deadline);
    assert!(matches!(peer.link.tokens.prepare_sleep(), Err(RingError::PeerGone)));
    assert!(matches!(peer.link.tokens.woken(), Err(RingError::PeerGone)));
    assert!(matches!(peer.link.commands.woken(), Err(SendError::Closed)));
}

#[test]
fn the_progress_page_is_seen_across_processes_on_one_clock() {
    let before = monotonic_ns();
    let mut peer = Peer::start("progress", &SMALL);
    let mut record = Vec::new();
    let told = peer.link.tokens.recv(&mut record, Some(PATIENCE)).expect("sound");
    assert_eq!(told, Some(0));
    let seen = peer.link.progress.snapshot();
    assert_eq!((seen.phase, seen.load_done, seen.load_total, seen.step), (9, 3, 4, 1));
    assert!((before..=monotonic_ns()).contains(&seen.last_step_ns), "{seen:?}");
    assert!(peer.finish());
}

#[test]
fn a_time_out_half_way_leaves_the_ring_usable() {
    let mut peer = Peer::start("three and park", &SMALL);
    let mut record = Vec::new();
    for number in 0..3_u16 {
        assert_eq!(
            peer.link.tokens.recv(&mut record, Some(PATIENCE)).expect("sound"),
            Some(number)
        );
    }
    // A stopped child reads nothing.
    let pid = Pid::from_raw(peer.child.id() as i32);
    kill(pid, Signal::SIGSTOP).expect("stopped");
    let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).expect("waited");
    assert!(matches!(stopped, WaitStatus::Stopped(..)), "{stopped:?}");
    let long = vec![1; 100_000];
    let mut sent = peer.link.commands.send(1, &long, Some(Duration::ZERO));
    assert!(matches!(sent, Err(SendError::TimedOut)), "{sent:?}");
    kill(pid, Signal::SIGCONT).expect("goes on");
    // The child is still there and gets the next one whole, which ends it.
    sent = peer.link.commands.send(2, b"short", Some(PATIENCE));
    assert!(sent.is_ok(), "{sent:?}");
    assert!(peer.child.wait().expect("waited").success());
}

#[test]
fn what_a_killed_front_leaves_is_swept_by_the_next() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut front =
        peer::command("front").env("MLXD_RING_TEST_DIR", dir.path()).spawn().expect("a front");
    let names = dir.path().join("names");
    let deadline = Instant::now() + PATIENCE;
    while !names.exists() {
        assert!(Instant::now() < deadline, "the front never came up");
        assert!(front.try_wait().expect("looked").is_none(), "the front ended");
        std::thread::yield_now();
    }
    assert_eq!(leftovers::sweep(dir.path()).expect("swept"), Vec::<String>::new());
    front.kill().expect("killed");
    front.wait().expect("waited");
    let mut left = leftovers::sweep(dir.path()).expect("swept");
    left.sort();
    let text = std::fs::read_to_string(&names).expect("names");
    let mut expected: Vec<_> = text.lines().map(str::to_owned).collect();
    expected.sort();
    assert_eq!(left, expected);
    assert_eq!(leftovers::sweep(dir.path()).expect("swept"), Vec::<String>::new());
}
