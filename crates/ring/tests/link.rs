//! Both ends of one segment in one process: what each call promises.

use std::time::Duration;

use mlxd_ring::{
    FrontLink, PendingSend, RECORD_BYTES_MAX, RingError, Segment, SegmentSpec, SendError,
    WorkerLink,
};

const SMALL: SegmentSpec = SegmentSpec { commands_bytes: 4096, tokens_bytes: 4096 };

fn linked() -> (FrontLink, WorkerLink) {
    let mut segment = Segment::create(&SMALL).expect("a segment");
    let fds = segment.worker_fds().expect("doorbells");
    let worker = WorkerLink::attach(segment.name(), fds.commands, fds.tokens).expect("attached");
    (segment.into_front(), worker)
}

#[test]
fn a_part_sent_record_holds_the_ring_until_it_is_finished_or_given_up() {
    let (mut front, mut worker) = linked();
    let mut record = Vec::new();

    let mut long = PendingSend::new(1, vec![1; 5_000]);
    assert!(!front.commands.try_send_piece(&mut long).expect("begun"));
    assert!(matches!(front.commands.try_send(2, b"x"), Err(SendError::Busy)));
    assert_eq!(worker.commands.try_recv(&mut record).expect("sound"), None);
    assert!(front.commands.try_send_piece(&mut long).expect("finished"));
    assert_eq!(worker.commands.try_recv(&mut record).expect("sound"), Some(1));
    assert_eq!(record, vec![1; 5_000]);

    let mut given_up = PendingSend::new(3, vec![3; 5_000]);
    assert!(!front.commands.try_send_piece(&mut given_up).expect("begun"));
    front.commands.abandon(given_up);
    assert!(matches!(front.commands.try_send(4, b"four"), Err(SendError::Full)));
    assert_eq!(worker.commands.try_recv(&mut record).expect("sound"), None);
    front.commands.try_send(4, b"four").expect("room");
    assert_eq!(worker.commands.try_recv(&mut record).expect("sound"), Some(4));
    assert_eq!(record, b"four");

    let too_large = vec![0; front.commands.payload_bytes_max() + 1];
    assert!(matches!(front.commands.try_send(5, &too_large), Err(SendError::TooLarge { .. })));
    drop(worker);
    assert!(matches!(front.tokens.woken(), Err(RingError::PeerGone)));
}

#[test]
fn what_goes_down_and_up_is_the_same() {
    let (mut front, mut worker) = linked();
    let mut record = Vec::new();
    front.commands.try_send(5, b"down").expect("sent");
    front.commands.try_send(u16::MAX, &[]).expect("sent");
    assert_eq!(worker.commands.recv(&mut record, None).expect("sound"), Some(5));
    assert_eq!(record, b"down");
    assert_eq!(worker.commands.recv(&mut record, None).expect("sound"), Some(u16::MAX));
    assert!(record.is_empty());
    worker.tokens.try_send(6, b"up").expect("sent");
    assert_eq!(front.tokens.try_recv(&mut record).expect("sound"), Some(6));
    assert_eq!(record, b"up");
}

#[test]
fn a_short_record_reuses_its_buffer() {
    let (mut front, mut worker) = linked();
    let mut record = Vec::with_capacity(64);
    let buffer = record.as_ptr();
    for _ in 0..1_000 {
        worker.tokens.try_send(1, &[7; 24]).expect("sent");
        assert_eq!(front.tokens.try_recv(&mut record).expect("sound"), Some(1));
        assert_eq!((record.as_slice(), record.as_ptr()), ([7; 24].as_slice(), buffer));
    }
}

#[test]
fn a_full_ring_says_so_until_it_is_read() {
    let (mut front, mut worker) = linked();
    let mut record = Vec::new();
    let quarter = vec![1; front.commands.payload_bytes_max()];
    for _ in 0..4 {
        front.commands.try_send(1, &quarter).expect("room");
    }
    assert!(matches!(front.commands.try_send(1, &[]), Err(SendError::Full)));
    let timed = front.commands.send(1, &[], Some(Duration::ZERO));
    assert!(matches!(timed, Err(SendError::TimedOut)), "{timed:?}");
    assert!(front.commands.prepare_wait().expect("sound"), "still full");
    assert_eq!(worker.commands.try_recv(&mut record).expect("sound"), Some(1));
    front.commands.woken().expect("open");
    assert!(!front.commands.prepare_wait().expect("sound"), "room was made");
    front.commands.try_send(1, &[]).expect("room");
}

#[test]
fn an_empty_ring_times_out_with_and_without_spinning() {
    let (mut front, mut worker) = linked();
    let mut record = Vec::new();
    for spin in [Duration::ZERO, Duration::from_micros(50)] {
        front.tokens.set_spin(spin);
        let none = front.tokens.recv(&mut record, Some(Duration::from_millis(1)));
        assert_eq!(none.expect("sound"), None);
        worker.tokens.try_send(3, b"x").expect("sent");
        let some = front.tokens.recv(&mut record, Some(Duration::ZERO));
        assert_eq!(some.expect("sound"), Some(3));
    }
}

#[test]
fn a_record_over_the_readers_limit_condemns_the_ring_for_good() {
    let (mut front, mut worker) = linked();
    let mut record = Vec::new();
    front.tokens.set_record_bytes_max(2_000);
    let mut long = PendingSend::new(1, vec![0; 2_001]);
    assert!(worker.tokens.try_send_piece(&mut long).expect("in pieces"));
    for _ in 0..2 {
        let error = front.tokens.try_recv(&mut record).expect_err("over the limit");
        assert!(matches!(error, RingError::Corrupt { .. }), "{error}");
        let error = front.tokens.prepare_sleep().expect_err("condemned");
        assert!(matches!(error, RingError::Corrupt { .. }), "{error}");
    }
    // The other ring is another ring.
    front.commands.try_send(2, b"still there").expect("sound");
    assert_eq!(worker.commands.try_recv(&mut record).expect("sound"), Some(2));
}

#[test]
fn a_record_over_the_transports_limit_is_refused() {
    let (mut front, _worker) = linked();
    let mut huge = PendingSend::new(1, vec![0; RECORD_BYTES_MAX + 1]);
    let error = front.commands.try_send_piece(&mut huge).expect_err("refused");
    assert!(matches!(error, SendError::TooLarge { .. }), "{error}");
    front.commands.try_send(1, b"nothing was begun").expect("sound");
}

#[test]
fn a_peer_that_goes_is_noticed_in_both_directions_and_what_it_sent_is_read() {
    let (mut front, mut worker) = linked();
    let mut record = Vec::new();
    worker.tokens.try_send(1, b"last words").expect("sent");
    drop(worker);
    front.tokens.woken().expect("something is left");
    assert_eq!(front.tokens.try_recv(&mut record).expect("left"), Some(1));
    assert!(matches!(front.tokens.try_recv(&mut record), Err(RingError::PeerGone)));
    assert!(matches!(front.tokens.recv(&mut record, None), Err(RingError::PeerGone)));
    assert!(matches!(front.commands.woken(), Err(SendError::Closed)));
    assert!(matches!(front.commands.try_send(1, b""), Err(SendError::Closed)));
}

#[test]
fn a_record_cut_short_by_its_writers_end_is_never_given() {
    let (mut front, mut worker) = linked();
    let mut record = Vec::new();
    let mut long = PendingSend::new(1, vec![0; 10_000]);
    assert!(!worker.tokens.try_send_piece(&mut long).expect("begun"));
    drop(worker);
    assert_eq!(front.tokens.try_recv(&mut record).expect("sound"), None);
    assert!(front.tokens.mid_record());
    assert!(matches!(front.tokens.woken(), Err(RingError::PeerGone)));
    assert!(matches!(front.tokens.try_recv(&mut record), Err(RingError::PeerGone)));
}
