//! A peer that writes whatever it likes, wherever it likes.
//!
//! Whatever is in the ring, each call ends in a record within the limits, in nothing, or in
//! `Corrupt`, which is final. It never panics (indices would), never loops, never gives a record
//! longer than the limit. Reading out of bounds is impossible by construction: the core indexes
//! checked slices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::consumer::Consumer;
use crate::error::Corrupt;
use crate::frame::{ABANDON, FIRST, Header, LAST};
use crate::memory::{CONTROL_BYTES, LINE_BYTES, RingWords, WORD_BYTES, Words};
use crate::producer::{Cut, Producer};

const MUTATIONS: u64 = 1_000_000;
const RECORD_BYTES_MAX: usize = 300;
const CONTROL_WORDS: usize = CONTROL_BYTES / WORD_BYTES as usize;
const LINE_WORDS: usize = LINE_BYTES / WORD_BYTES as usize;

/// A ring whose words the peer can reach.
struct Victim {
    words: Words,
    producer: Producer<RingWords>,
    consumer: Consumer<RingWords>,
    out: Vec<u8>,
}

impl Victim {
    fn new(capacity: usize) -> Self {
        let words = Words::on_heap(CONTROL_WORDS + capacity / WORD_BYTES as usize);
        Self {
            producer: Producer::new(RingWords::new(&words), 0),
            consumer: Consumer::new(RingWords::new(&words), 0, RECORD_BYTES_MAX),
            words,
            out: Vec::new(),
        }
    }

    /// Uses the reader once, in every way. Gives what condemned it.
    fn read(&mut self) -> Option<Corrupt> {
        match self.consumer.try_recv(&mut self.out) {
            Ok(_) => {
                assert!(self.out.len() <= RECORD_BYTES_MAX);
                self.consumer.prepare_sleep().err()
            }
            Err(corrupt) => {
                assert_eq!(self.consumer.try_recv(&mut self.out), Err(corrupt));
                assert_eq!(self.consumer.prepare_sleep(), Err(corrupt));
                Some(corrupt)
            }
        }
    }

    /// Uses the writer once, in every way. Gives what condemned it.
    fn write(&mut self, random: &mut fastrand::Rng) -> Option<Corrupt> {
        let payload = [0x5a; RECORD_BYTES_MAX + 20];
        let payload = &payload[..random.usize(..payload.len())];
        let mut cut = Cut::default();
        let pushed = self.producer.push(random.u16(..), payload, &mut cut);
        let waited = self.producer.prepare_wait();
        match pushed.and(waited) {
            Ok(_) => {
                self.producer.abandon(cut);
                None
            }
            Err(corrupt) => {
                assert_eq!(self.producer.prepare_wait(), Err(corrupt));
                Some(corrupt)
            }
        }
    }
}

/// A value that has a chance to be believed.
fn spite(random: &mut fastrand::Rng, old: u64) -> u64 {
    match random.u8(..8) {
        0 => random.u64(..),
        1 => old ^ 1 << random.u32(..64),
        2 => old.wrapping_add(8 * random.u64(..64)),
        3 => old.wrapping_sub(8 * random.u64(..64)),
        4 => [0, 1, 8, u64::MAX, i64::MAX as u64, 1 << 32][random.usize(..6)],
        _ => {
            let flags = [0, FIRST, LAST, FIRST | LAST, ABANDON, ABANDON | FIRST, 8, u16::MAX];
            Header {
                len: [0, 1, 8, 56, 64, 4096, u32::MAX][random.usize(..7)],
                kind: random.u16(..3),
                flags: flags[random.usize(..flags.len())],
            }
            .to_word()
        }
    }
}

fn mutate(words: &[AtomicU64], random: &mut fastrand::Rng) {
    let index = if random.bool() {
        random.usize(..4) * LINE_WORDS
    } else {
        random.usize(CONTROL_WORDS..words.len())
    };
    let old = words[index].load(Ordering::Relaxed);
    words[index].store(spite(random, old), Ordering::Relaxed);
}

#[test]
fn a_million_mutations_are_survived() {
    let mut random = fastrand::Rng::with_seed(0x6d6c_7864);
    let mut verdicts = std::collections::BTreeMap::<&str, u64>::new();
    let mut victim = Victim::new(64);
    for _ in 0..MUTATIONS {
        if random.u8(..4) > 0 {
            // A peer that is half sound gets further in than one that is all noise.
            let _condemned = victim.write(&mut random);
        }
        mutate(victim.words.as_slice(), &mut random);
        let corrupt = if random.bool() { victim.write(&mut random) } else { None };
        if let Some(corrupt) = corrupt.or_else(|| victim.read()) {
            *verdicts.entry(corrupt.what).or_default() += 1;
            victim = Victim::new(64 << random.u32(..6));
        }
    }
    // Every check was reached: the test would be weaker than it looks if one were not.
    for what in [
        "more bytes are published than the ring holds",
        "the writer's cursor is not on a word",
        "a frame is longer than a quarter of the ring",
        "a frame is longer than what is published",
        "a frame has unknown flags",
        "a frame's flags or kind do not follow from the last frame's",
        "a piece of a record is empty",
        "a record is over the size limit",
        "the reader's cursor is not on a word",
        "the reader's cursor is outside the published bytes",
    ] {
        assert!(verdicts.contains_key(what), "never seen: {what}; {verdicts:?}");
    }
}

#[test]
fn forged_frames_are_joined_or_condemned() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut records = 0;
    for _ in 0..100_000 {
        let mut victim = Victim::new(512);
        let words = victim.words.as_slice();
        let mut cursor = CONTROL_WORDS;
        while cursor < words.len() {
            let flags = [0, FIRST, LAST, FIRST | LAST, ABANDON];
            let len = random.u32(..40);
            let header =
                Header { len, kind: random.u16(..2), flags: flags[random.usize(..flags.len())] };
            words[cursor].store(header.to_word(), Ordering::Relaxed);
            cursor += 1 + len.div_ceil(8) as usize;
        }
        let tail = 8 * random.u64(..=64);
        words[0].store(tail, Ordering::Release);
        // No more calls than words: each takes something, says "nothing", or condemns.
        for _ in 0..=64 {
            match victim.consumer.try_recv(&mut victim.out) {
                Ok(Some(_)) => records += 1,
                Ok(None) | Err(_) => break,
            }
        }
        assert!(victim.consumer.is_empty() != Ok(false), "the reader went astray");
    }
    assert!(records > 10_000, "the forgery was too clumsy: {records}");
}

#[test]
fn a_peer_that_scribbles_meanwhile_is_survived() {
    let stop = Arc::new(AtomicBool::new(false));
    let words = Words::on_heap(CONTROL_WORDS + 64);
    let scribbler = {
        let (words, stop) = (words.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut random = fastrand::Rng::with_seed(3);
            let mut scribbles = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                mutate(words.as_slice(), &mut random);
                scribbles += 1;
            }
            scribbles
        })
    };
    let mut out = Vec::new();
    let mut random = fastrand::Rng::with_seed(4);
    let mut condemned = 0_u64;
    while condemned < 50_000 {
        let start = words.as_slice()[0].load(Ordering::Relaxed) & !7;
        let mut consumer = Consumer::new(RingWords::new(&words), start, RECORD_BYTES_MAX);
        let mut producer = Producer::new(RingWords::new(&words), start);
        for _ in 0..8 {
            let read = consumer.try_recv(&mut out);
            assert!(out.len() <= RECORD_BYTES_MAX);
            let pushed = producer.push(1, &[1; 100][..random.usize(..100)], &mut Cut::default());
            condemned += u64::from(read.is_err()) + u64::from(pushed.is_err());
        }
    }
    stop.store(true, Ordering::Relaxed);
    assert!(scribbler.join().expect("the scribbler") > 0);
}
