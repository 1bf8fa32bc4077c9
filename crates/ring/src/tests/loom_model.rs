//! The ring core under loom: every interleaving of one writer and one reader, up to a bound on
//! preemptions, under the memory model's rules rather than this processor's.
//!
//! The core is generic, so this needs no `--cfg loom` and runs with every other test. The data
//! words are loom cells: reading one that the writer may still be writing fails the model. The
//! last tests take a synchronisation point away and require that the model notices.

use std::sync::atomic::Ordering;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use crate::consumer::Consumer;
use crate::memory::{Control, RingMemory, WORD_BYTES};
use crate::producer::{Cut, Producer, Pushed};

/// Four frames of one word each.
const CAPACITY: u64 = 64;
const RECORD_BYTES_MAX: usize = 1024;

/// What the memory does wrong, to see that the model can fail.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    /// The cursors are published and read without ordering.
    NoRelease,
    /// The fences between "published" and "asleep?" do nothing.
    NoFence,
}

struct Shared {
    control: [AtomicU64; 4],
    data: Vec<UnsafeCell<u64>>,
}

struct LoomRing {
    shared: Arc<Shared>,
    flaw: Flaw,
}

impl LoomRing {
    fn pair(flaw: Flaw) -> (Self, Self) {
        let shared = Arc::new(Shared {
            control: std::array::from_fn(|_| AtomicU64::new(0)),
            data: (0..CAPACITY / WORD_BYTES).map(|_| UnsafeCell::new(0)).collect(),
        });
        let other = Arc::clone(&shared);
        (Self { shared, flaw }, Self { shared: other, flaw })
    }

    fn order(&self, order: Ordering) -> Ordering {
        if self.flaw == Flaw::NoRelease { Ordering::Relaxed } else { order }
    }

    fn cell(&self, cursor: u64) -> &UnsafeCell<u64> {
        &self.shared.data[(cursor / WORD_BYTES) as usize % self.shared.data.len()]
    }
}

#[allow(unsafe_code)] // Loom's cells give out raw pointers.
impl RingMemory for LoomRing {
    fn capacity(&self) -> u64 {
        CAPACITY
    }
    fn load(&self, control: Control, order: Ordering) -> u64 {
        self.shared.control[control as usize].load(self.order(order))
    }
    fn store(&self, control: Control, value: u64, order: Ordering) {
        self.shared.control[control as usize].store(value, self.order(order));
    }
    fn swap(&self, control: Control, value: u64, order: Ordering) -> u64 {
        self.shared.control[control as usize].swap(value, order)
    }
    fn fence(&self) {
        if self.flaw != Flaw::NoFence {
            fence(Ordering::SeqCst);
        }
    }
    fn get(&self, cursor: u64) -> u64 {
        // SAFETY: loom checks that no other thread writes the cell now, and fails the model.
        self.cell(cursor).with(|word| unsafe { *word })
    }
    fn put(&self, cursor: u64, value: u64) {
        // SAFETY: loom checks that no other thread uses the cell now, and fails the model.
        self.cell(cursor).with_mut(|word| unsafe { *word = value });
    }
}

/// A doorbell: rings are kept until somebody waits, as a socket keeps them.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
    }

    /// Waits for a ring; loom reports a deadlock if none can come.
    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.changed.wait(rung).unwrap();
        }
        *rung = false;
    }
}

struct Sender {
    core: Producer<LoomRing>,
    /// Rung for this side, when there is room.
    space: Arc<Bell>,
    /// Rung by this side, when there is a record.
    records: Arc<Bell>,
}

impl Sender {
    fn send(&mut self, kind: u16, payload: &[u8]) {
        let mut cut = Cut::default();
        loop {
            let pushed = self.core.push(kind, payload, &mut cut).unwrap();
            if self.core.take_bell_due() {
                self.records.ring();
            }
            match pushed {
                Pushed::Done => return,
                Pushed::Full => {
                    if self.core.prepare_wait().unwrap() {
                        self.space.wait();
                        self.core.end_wait();
                    }
                }
                Pushed::Busy => panic!("one record at a time"),
            }
        }
    }
}

struct Receiver {
    core: Consumer<LoomRing>,
    space: Arc<Bell>,
    records: Arc<Bell>,
}

impl Receiver {
    fn recv(&mut self, out: &mut Vec<u8>) -> u16 {
        loop {
            let taken = self.core.try_recv(out).unwrap();
            if self.core.take_bell_due() {
                self.space.ring();
            }
            if let Some(kind) = taken {
                return kind;
            }
            if self.core.prepare_sleep().unwrap() {
                self.records.wait();
                self.core.end_sleep();
            }
        }
    }
}

fn link(flaw: Flaw) -> (Sender, Receiver) {
    let (ours, theirs) = LoomRing::pair(flaw);
    let (space, records) = (Arc::new(Bell::default()), Arc::new(Bell::default()));
    let sender = Sender {
        core: Producer::new(ours, 0),
        space: Arc::clone(&space),
        records: Arc::clone(&records),
    };
    let receiver = Receiver { core: Consumer::new(theirs, 0, RECORD_BYTES_MAX), space, records };
    (sender, receiver)
}

fn model(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(run);
}

/// `count` records of one word each, through a ring that holds four, both sides asleep whenever
/// there is nothing to do.
fn one_word_records(flaw: Flaw, count: u64) {
    let (mut sender, mut receiver) = link(flaw);
    let writer = thread::spawn(move || {
        for number in 0..count {
            sender.send(number as u16, &(number + 100).to_ne_bytes());
        }
    });
    let mut record = Vec::new();
    for number in 0..count {
        assert_eq!(receiver.recv(&mut record), number as u16);
        assert_eq!(record, (number + 100).to_ne_bytes());
    }
    writer.join().unwrap();
}

#[test]
fn a_sleeping_reader_gets_every_record_in_order() {
    model(3, || one_word_records(Flaw::None, 2));
}

#[test]
fn a_full_ring_wakes_its_writer() {
    model(2, || one_word_records(Flaw::None, 6));
}

#[test]
fn a_record_longer_than_the_ring_arrives_whole() {
    model(2, || {
        let (mut sender, mut receiver) = link(Flaw::None);
        let long: Vec<u8> = (0..5 * 8 + 3).collect();
        let expected = long.clone();
        let writer = thread::spawn(move || {
            sender.send(1, &long);
            sender.send(2, &[9]);
        });
        let mut record = Vec::new();
        assert_eq!(receiver.recv(&mut record), 1);
        assert_eq!(record, expected);
        assert_eq!(receiver.recv(&mut record), 2);
        assert_eq!(record, [9]);
        writer.join().unwrap();
    });
}

#[test]
fn an_abandoned_record_is_never_seen() {
    model(2, || {
        let (mut sender, mut receiver) = link(Flaw::None);
        let writer = thread::spawn(move || {
            let mut cut = Cut::default();
            let long = [7; 6 * 8];
            let pushed = sender.core.push(1, &long, &mut cut).unwrap();
            if sender.core.take_bell_due() {
                sender.records.ring();
            }
            // The reader takes nothing before the whole is there or given up, so four pieces
            // went in at least; all six when it made room in time.
            if pushed == Pushed::Full {
                sender.core.abandon(cut);
            }
            sender.send(2, &[8]);
            pushed
        });
        let mut record = Vec::new();
        let mut kind = receiver.recv(&mut record);
        let whole = kind == 1;
        if whole {
            assert_eq!(record, [7; 6 * 8]);
            kind = receiver.recv(&mut record);
        }
        assert_eq!((kind, record.as_slice()), (2, [8].as_slice()));
        assert_eq!(writer.join().unwrap() == Pushed::Done, whole);
    });
}

#[test]
fn a_polling_reader_needs_no_bell() {
    model(3, || {
        let (mut sender, mut receiver) = link(Flaw::None);
        let writer = thread::spawn(move || {
            for number in 0..2_u64 {
                sender.send(0, &number.to_ne_bytes());
            }
            assert!(!*sender.records.rung.lock().unwrap(), "nobody slept");
        });
        let mut record = Vec::new();
        for number in 0..2_u64 {
            while receiver.core.try_recv(&mut record).unwrap().is_none() {
                thread::yield_now();
            }
            assert_eq!(record, number.to_ne_bytes());
        }
        writer.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn the_model_notices_a_missing_fence() {
    model(3, || one_word_records(Flaw::NoFence, 2));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn the_model_notices_missing_publication() {
    model(3, || one_word_records(Flaw::NoRelease, 2));
}
