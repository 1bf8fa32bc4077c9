//! Random operations on a ring and on a `VecDeque`, which must agree.

use std::collections::VecDeque;

use proptest::prelude::*;

use crate::consumer::Consumer;
use crate::memory::RingWords;
use crate::producer::{Cut, Producer, Pushed};

const RECORD_BYTES_MAX: usize = 1 << 16;

#[derive(Clone, Debug)]
enum Operation {
    /// Begin a record, or go on with the one begun.
    Push {
        kind: u16,
        len: usize,
    },
    /// Give up the record begun.
    Abandon,
    /// Take records until this many, or none is left.
    Take(usize),
    PrepareWait,
    PrepareSleep,
}

fn operations(capacity: usize) -> impl Strategy<Value = Vec<Operation>> {
    let operation = prop_oneof![
        6 => (any::<u16>(), prop_oneof![0..64_usize, 0..capacity * 3])
            .prop_map(|(kind, len)| Operation::Push { kind, len }),
        1 => Just(Operation::Abandon),
        5 => (1..6_usize).prop_map(Operation::Take),
        1 => Just(Operation::PrepareWait),
        1 => Just(Operation::PrepareSleep),
    ];
    prop::collection::vec(operation, 1..200)
}

fn capacities() -> impl Strategy<Value = usize> {
    (6..13_u32).prop_map(|power| 1 << power)
}

fn rings_and_operations() -> impl Strategy<Value = (usize, Vec<Operation>)> {
    capacities().prop_flat_map(|capacity| (Just(capacity), operations(capacity)))
}

struct Pending {
    kind: u16,
    payload: Vec<u8>,
    cut: Cut,
}

struct Pair {
    producer: Producer<RingWords>,
    consumer: Consumer<RingWords>,
    pending: Option<Pending>,
    /// The plain model: what is in and not yet out.
    queue: VecDeque<(u16, Vec<u8>)>,
    asleep: bool,
    out: Vec<u8>,
}

impl Pair {
    fn new(capacity: usize) -> Self {
        let (ours, theirs) = RingWords::pair_on_heap(capacity);
        Self {
            producer: Producer::new(ours, 0),
            consumer: Consumer::new(theirs, 0, RECORD_BYTES_MAX),
            pending: None,
            queue: VecDeque::new(),
            asleep: false,
            out: Vec::new(),
        }
    }

    /// Goes on with the record begun, or begins this one.
    fn push(&mut self, kind: u16, payload: Vec<u8>) -> Result<(), TestCaseError> {
        let was_empty = self.consumer.is_empty() == Ok(true);
        let mut pending =
            self.pending.take().unwrap_or(Pending { kind, payload, cut: Cut::default() });
        let pushed = self.producer.push(pending.kind, &pending.payload, &mut pending.cut);
        match pushed {
            Ok(Pushed::Done) => self.queue.push_back((pending.kind, pending.payload)),
            Ok(Pushed::Full) => {
                prop_assert_eq!(self.consumer.is_empty(), Ok(false), "full and empty");
                self.pending = Some(pending);
            }
            other => return Err(TestCaseError::fail(format!("push: {other:?}"))),
        }
        let published = was_empty && self.consumer.is_empty() == Ok(false);
        let rung = self.producer.take_bell_due();
        prop_assert!(self.asleep || !rung, "rung for a reader that did not sleep");
        prop_assert!(!(self.asleep && published) || rung, "a sleeper was not rung");
        self.asleep &= !rung;
        Ok(())
    }

    fn take(&mut self) -> Result<bool, TestCaseError> {
        let taken = self.consumer.try_recv(&mut self.out);
        match (taken, self.queue.pop_front()) {
            (Ok(Some(kind)), Some((expected_kind, expected))) => {
                prop_assert_eq!(kind, expected_kind);
                prop_assert_eq!(&self.out, &expected);
                Ok(true)
            }
            // The reader looks at the tail once a call: pieces given up may hide what follows.
            (Ok(None), front) if self.consumer.is_empty() == Ok(false) => {
                if let Some(front) = front {
                    self.queue.push_front(front);
                }
                self.take()
            }
            (Ok(None), None) => Ok(false),
            (taken, front) => Err(TestCaseError::fail(format!("{taken:?} for {front:?}"))),
        }
    }

    fn run(&mut self, operation: Operation) -> Result<(), TestCaseError> {
        match operation {
            Operation::Push { kind, len } => {
                let payload = (0..len).map(|i| (i as u16 ^ kind) as u8).collect();
                self.push(kind, payload)?;
            }
            Operation::Abandon => {
                if let Some(pending) = self.pending.take() {
                    self.producer.abandon(pending.cut);
                }
            }
            Operation::Take(count) => {
                for _ in 0..count {
                    if !self.take()? {
                        break;
                    }
                }
            }
            Operation::PrepareWait => {
                if self.producer.prepare_wait().is_err() {
                    return Err(TestCaseError::fail("a sound ring condemned"));
                }
            }
            Operation::PrepareSleep => {
                let empty = self.consumer.is_empty();
                prop_assert_eq!(self.consumer.prepare_sleep(), empty);
                self.asleep = empty == Ok(true);
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_ring_is_a_queue((capacity, operations) in rings_and_operations()) {
        let mut pair = Pair::new(capacity);
        for operation in operations {
            pair.run(operation)?;
        }
        while pair.pending.is_some() {
            pair.push(0, Vec::new())?;
            while pair.take()? {}
        }
        while pair.take()? {}
        prop_assert_eq!(pair.consumer.is_empty(), Ok(true));
    }
}
