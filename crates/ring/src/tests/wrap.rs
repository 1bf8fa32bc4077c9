//! Wrap-around: frames at every offset of the circle, cursors that overflow, pieces.

use crate::consumer::Consumer;
use crate::frame::frame_bytes;
use crate::memory::RingWords;
use crate::producer::{Cut, Producer, Pushed};

const CAPACITY: usize = 256;
const RECORD_BYTES_MAX: usize = 1 << 20;

fn ring(start: u64) -> (Producer<RingWords>, Consumer<RingWords>) {
    let (ours, theirs) = RingWords::pair_on_heap(CAPACITY);
    // An empty ring whose cursors stand at `start`, as it is after that many bytes.
    use crate::memory::{Control, RingMemory};
    use std::sync::atomic::Ordering;
    ours.store(Control::Tail, start, Ordering::Release);
    ours.store(Control::Head, start, Ordering::Release);
    (Producer::new(ours, start), Consumer::new(theirs, start, RECORD_BYTES_MAX))
}

fn bytes(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|i| (i * 31 + seed * 17 + 5) as u8).collect()
}

#[test]
fn a_frame_of_every_length_crosses_the_end_at_every_offset() {
    let mut out = Vec::new();
    for start in (0..2 * CAPACITY as u64).step_by(8) {
        for len in 0..=CAPACITY / 4 - 8 {
            let (mut producer, mut consumer) = ring(start);
            let sent = bytes(len, start);
            for kind in [1, u16::MAX] {
                let pushed = producer.push(kind, &sent, &mut Cut::default());
                assert_eq!(pushed, Ok(Pushed::Done));
                assert_eq!(consumer.try_recv(&mut out), Ok(Some(kind)));
                assert_eq!(out, sent, "start {start}, length {len}");
            }
            assert_eq!(consumer.try_recv(&mut out), Ok(None));
        }
    }
}

#[test]
fn the_ring_fills_to_its_last_byte_at_every_offset() {
    let mut out = Vec::new();
    for start in (0..CAPACITY as u64).step_by(8) {
        let (mut producer, mut consumer) = ring(start);
        let quarter = bytes(CAPACITY / 4 - 8, start);
        for _ in 0..4 {
            assert_eq!(producer.push(3, &quarter, &mut Cut::default()), Ok(Pushed::Done));
        }
        assert_eq!(producer.push(3, &[], &mut Cut::default()), Ok(Pushed::Full));
        for _ in 0..4 {
            assert_eq!(consumer.try_recv(&mut out), Ok(Some(3)));
            assert_eq!(out, quarter);
        }
        assert_eq!(producer.push(3, &[], &mut Cut::default()), Ok(Pushed::Done));
        assert_eq!(consumer.try_recv(&mut out), Ok(Some(3)));
        assert!(out.is_empty());
    }
}

#[test]
fn cursors_overflow_without_harm() {
    let start = 0_u64.wrapping_sub(4 * CAPACITY as u64);
    let (mut producer, mut consumer) = ring(start);
    let mut out = Vec::new();
    let mut passed = 0;
    while passed < 8 * CAPACITY as u64 {
        let sent = bytes((passed % 50) as usize, passed);
        // Fill, wait for room, drain: the waiting writer's wish wraps too.
        let mut in_ring = 0;
        while producer.push(4, &sent, &mut Cut::default()) == Ok(Pushed::Done) {
            in_ring += 1;
        }
        assert_eq!(producer.prepare_wait(), Ok(true));
        for left in (0..in_ring).rev() {
            assert_eq!(consumer.try_recv(&mut out), Ok(Some(4)));
            assert_eq!(out, sent);
            passed += frame_bytes(sent.len() as u64);
            if left == 0 {
                assert!(producer.prepare_wait() == Ok(false), "an empty ring has room");
            }
        }
    }
}

#[test]
fn a_waiting_writer_is_rung_once_there_is_the_room_it_wants() {
    for start in (0..CAPACITY as u64).step_by(8) {
        let (mut producer, mut consumer) = ring(start.wrapping_sub(CAPACITY as u64 / 2));
        let mut out = Vec::new();
        let mut in_ring = 0;
        while producer.push(0, &[1; 8], &mut Cut::default()) == Ok(Pushed::Done) {
            in_ring += 1;
        }
        let quarter = [2; CAPACITY / 4 - 8];
        assert_eq!(producer.push(0, &quarter, &mut Cut::default()), Ok(Pushed::Full));
        assert_eq!(producer.prepare_wait(), Ok(true));
        // Frames of 16 bytes: room for a quarter of 64 is there with the fourth.
        let mut rung_at = None;
        for taken in 1..=in_ring {
            assert_eq!(consumer.try_recv(&mut out), Ok(Some(0)));
            if consumer.take_bell_due() {
                assert_eq!(rung_at.replace(taken), None, "rung once");
            }
        }
        assert_eq!(rung_at, Some(CAPACITY / 4 / 16));
        assert_eq!(producer.push(0, &quarter, &mut Cut::default()), Ok(Pushed::Done));
    }
}

#[test]
fn records_of_every_length_up_to_five_rings_arrive_in_pieces() {
    let (mut producer, mut consumer) = ring(8);
    let mut out = Vec::new();
    for len in 0..5 * CAPACITY {
        let sent = bytes(len, 3);
        let mut cut = Cut::default();
        let taken = loop {
            let pushed = producer.push(len as u16, &sent, &mut cut).expect("sound");
            let taken = consumer.try_recv(&mut out).expect("sound");
            assert_eq!(taken.is_some(), pushed == Pushed::Done);
            if let Some(kind) = taken {
                break kind;
            }
        };
        assert_eq!(taken, len as u16);
        assert_eq!(out, sent);
    }
}

#[test]
fn one_record_at_a_time() {
    let (mut producer, mut consumer) = ring(0);
    let mut out = Vec::new();
    let long = bytes(3 * CAPACITY, 1);
    let mut first = Cut::default();
    assert_eq!(producer.push(1, &long, &mut first), Ok(Pushed::Full));
    let mut second = Cut::default();
    assert_eq!(producer.push(2, b"other", &mut second), Ok(Pushed::Busy));
    assert_eq!(consumer.try_recv(&mut out), Ok(None));
    assert!(consumer.mid_record());
    producer.abandon(first);
    assert_eq!(producer.push(2, b"other", &mut second), Ok(Pushed::Done));
    assert_eq!(consumer.try_recv(&mut out), Ok(Some(2)));
    assert_eq!(out, b"other");
    assert!(!consumer.mid_record());
}

#[test]
fn abandoning_what_never_began_or_is_in_does_nothing() {
    let (mut producer, mut consumer) = ring(0);
    let mut out = Vec::new();
    producer.abandon(Cut::default());
    let mut cut = Cut::default();
    assert_eq!(producer.push(1, b"whole", &mut cut), Ok(Pushed::Done));
    producer.abandon(cut);
    assert_eq!(producer.push(2, b"next", &mut Cut::default()), Ok(Pushed::Done));
    assert_eq!(consumer.try_recv(&mut out), Ok(Some(1)));
    assert_eq!(out, b"whole");
    assert_eq!(consumer.try_recv(&mut out), Ok(Some(2)));
    assert_eq!(consumer.try_recv(&mut out), Ok(None));
}
