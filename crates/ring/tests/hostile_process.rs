//! A worker process that scribbles over its whole segment and over its doorbells.

#![allow(unsafe_code)] // The hostile process writes shared memory past every check.

mod peer;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mlxd_ring::{RECORD_BYTES_MAX, RingError, SegmentSpec, SendError};
use peer::{PATIENCE, Peer, SMALL};

const SCRIBBLES: u64 = 1_000_000;

/// The hostile process; run by `Peer::start`.
#[test]
#[ignore = "the other process of the tests here"]
fn as_child() {
    if peer::role().as_deref() == Some("scribble") {
        scribble();
    }
}

fn scribble() {
    let shmem =
        shared_memory::ShmemConf::new().os_id(peer::segment_name()).open().expect("the segment");
    // SAFETY: mapped, aligned to a page, of this length, as long as `shmem` lives; atomics only.
    let words =
        unsafe { std::slice::from_raw_parts(shmem.as_ptr().cast::<AtomicU64>(), shmem.len() / 8) };
    // It also says that everybody sleeps, so that the front rings and rings.
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..SCRIBBLES {
        let word = &words[random.usize(..words.len())];
        let old = word.load(Ordering::Relaxed);
        let new = match random.u8(..4) {
            0 => random.u64(..),
            1 => old.wrapping_add(8 * random.u64(..16)),
            2 => 3 << 48 | random.u64(..100),
            _ => 0,
        };
        word.store(new, Ordering::Relaxed);
    }
}

/// Uses everything the front has until the peer's end; counts what was refused as corrupt.
fn use_until_gone(peer: &mut Peer) -> u64 {
    let mut corrupt = 0;
    let mut record = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "the peer or the front hangs");
        let _claims = peer.link.progress.snapshot();
        match peer.link.tokens.recv(&mut record, Some(Duration::from_micros(100))) {
            Ok(_) => assert!(record.len() <= RECORD_BYTES_MAX),
            Err(RingError::PeerGone) => return corrupt,
            Err(_) => corrupt += 1,
        }
        match peer.link.commands.send(1, &[7; 3000], Some(Duration::from_micros(100))) {
            Ok(()) | Err(SendError::TimedOut) => {}
            Err(SendError::Closed) => return corrupt,
            Err(_) => corrupt += 1,
        }
        if peer.child.try_wait().expect("looked").is_some() {
            return corrupt;
        }
    }
}

#[test]
fn the_front_survives_and_the_next_incarnation_is_sound() {
    let mut corrupt = 0;
    for _ in 0..5 {
        let mut peer = Peer::start("scribble", &SMALL);
        corrupt += use_until_gone(&mut peer);
        assert!(peer.finish(), "the hostile process failed before it was done");
    }
    assert!(corrupt > 0, "five million scribbles went unnoticed");
    let segment = mlxd_ring::Segment::create(&SegmentSpec::default()).expect("sound");
    assert!(!segment.is_attached());
}
