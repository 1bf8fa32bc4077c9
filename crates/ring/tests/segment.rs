//! Segments: sizes, names, modes, who may attach and who may not.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mlxd_ring::{
    NAME_BYTES_MAX, NAME_PREFIX, RING_BYTES_MAX, RING_BYTES_MIN, Segment, SegmentError,
    SegmentSpec, WorkerLink,
};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::mman::shm_open;
use nix::sys::stat::{Mode, fstat};

fn attach(name: &str) -> Result<WorkerLink, SegmentError> {
    let fd = || OwnedFd::from(std::os::unix::net::UnixStream::pair().expect("a pair").0);
    WorkerLink::attach(name, fd(), fd())
}

fn is_closed_on_exec(fd: BorrowedFd<'_>) -> bool {
    let flags = fcntl(fd, FcntlArg::F_GETFD).expect("open");
    FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC)
}

#[test]
fn sizes_outside_the_limits_are_refused_by_name() {
    for bytes in [0, 1, 4095, 4097, 6000, RING_BYTES_MIN / 2, RING_BYTES_MAX * 2, usize::MAX] {
        for (name, spec) in [
            ("commands_bytes", SegmentSpec { commands_bytes: bytes, ..Default::default() }),
            ("tokens_bytes", SegmentSpec { tokens_bytes: bytes, ..Default::default() }),
        ] {
            let error = Segment::create(&spec).expect_err("refused").to_string();
            assert!(error.contains(name) && error.contains(&bytes.to_string()), "{error}");
        }
    }
}

#[test]
fn names_are_short_and_never_the_same() {
    let first = Segment::create(&SegmentSpec::default()).expect("made");
    let second = Segment::create(&SegmentSpec::default()).expect("made");
    for name in [first.name(), second.name()] {
        assert!(name.len() <= NAME_BYTES_MAX && name.starts_with(NAME_PREFIX), "{name}");
        assert_eq!(name.matches('/').count(), 1);
    }
    assert_ne!(first.name(), second.name());
}

#[test]
fn only_its_owner_may_open_it() {
    let segment = Segment::create(&SegmentSpec::default()).expect("made");
    let fd = shm_open(segment.name(), OFlag::O_RDWR, Mode::empty()).expect("opened");
    assert_eq!(fstat(&fd).expect("known").st_mode & 0o777, 0o600);
}

#[test]
fn every_descriptor_is_closed_on_exec() {
    let mut segment = Segment::create(&SegmentSpec::default()).expect("made");
    let fds = segment.worker_fds().expect("doorbells");
    assert!(segment.worker_fds().is_none(), "given once");
    assert!(is_closed_on_exec(fds.commands.as_fd()));
    assert!(is_closed_on_exec(fds.tokens.as_fd()));
    // As they come out of exec in the worker: open, for attach to close.
    for fd in [&fds.commands, &fds.tokens] {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).expect("set");
    }
    let worker = WorkerLink::attach(segment.name(), fds.commands, fds.tokens).expect("attached");
    let front = segment.into_front();
    for fd in [
        front.commands.as_fd(),
        front.tokens.as_fd(),
        worker.commands.as_fd(),
        worker.tokens.as_fd(),
    ] {
        assert!(is_closed_on_exec(fd));
    }
}

#[test]
fn one_worker_attaches_and_takes_the_name_away() {
    let mut segment = Segment::create(&SegmentSpec::default()).expect("made");
    assert!(!segment.is_attached());
    let _worker = attach(segment.name()).expect("attached");
    assert!(segment.is_attached());
    let error = attach(segment.name()).expect_err("a second one");
    assert!(matches!(error, SegmentError::Open { .. }), "{error}");
    segment.unlink();
}

#[test]
fn none_attaches_after_the_front_took_the_name_away() {
    let mut segment = Segment::create(&SegmentSpec::default()).expect("made");
    segment.unlink();
    let error = attach(segment.name()).expect_err("after the unlink");
    assert!(matches!(error, SegmentError::Open { .. }), "{error}");
}

#[test]
fn a_dropped_segment_or_link_leaves_no_name() {
    let segment = Segment::create(&SegmentSpec::default()).expect("made");
    let name = segment.name().to_owned();
    drop(segment);
    assert!(matches!(attach(&name), Err(SegmentError::Open { .. })));

    let segment = Segment::create(&SegmentSpec::default()).expect("made");
    let name = segment.name().to_owned();
    drop(segment.into_front());
    assert!(matches!(attach(&name), Err(SegmentError::Open { .. })));
}

#[test]
fn the_link_works_after_the_name_is_gone() {
    let mut segment = Segment::create(&SegmentSpec::default()).expect("made");
    let fds = segment.worker_fds().expect("doorbells");
    let mut worker =
        WorkerLink::attach(segment.name(), fds.commands, fds.tokens).expect("attached");
    let mut front = segment.into_front();
    front.name.unlink();
    let mut record = Vec::new();
    front.commands.try_send(5, b"down").expect("sent");
    assert_eq!(worker.commands.try_recv(&mut record).expect("sound"), Some(5));
    assert_eq!(record, b"down");
    worker.tokens.try_send(6, b"up").expect("sent");
    assert_eq!(front.tokens.try_recv(&mut record).expect("sound"), Some(6));
    assert_eq!(record, b"up");
}

#[test]
fn what_is_no_segment_is_refused() {
    for name in ["", "/", "mlxd-00", "/mlxd-", "/mlxd-xyz", "/mlxd-00/..", "/other-00"] {
        let error = attach(name).expect_err("refused");
        assert!(matches!(error, SegmentError::BadName(_)), "{name}: {error}");
    }
    let absent = "/mlxd-0123456789abcdef01234567";
    let error = attach(absent).expect_err("refused");
    assert!(matches!(error, SegmentError::Open { .. }), "{error}");
}

/// Headers that lie. Only Linux lets shared memory be written like a file.
#[cfg(target_os = "linux")]
mod forged {
    use nix::sys::mman::shm_unlink;

    use super::*;

    /// Shared memory of a given size that begins with given words, under a segment's name.
    struct Forgery(&'static str);

    impl Forgery {
        fn new(name: &'static str, words: &[u64], bytes: i64) -> Self {
            use std::os::unix::fs::FileExt;
            let _absent = shm_unlink(name);
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR;
            let fd = shm_open(name, flags, Mode::S_IRUSR | Mode::S_IWUSR).expect("made");
            nix::unistd::ftruncate(&fd, bytes).expect("sized");
            let file = std::fs::File::from(fd);
            let raw: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            file.write_all_at(&raw, 0).expect("written");
            Self(name)
        }
    }

    impl Drop for Forgery {
        fn drop(&mut self) {
            let _absent = shm_unlink(self.0);
        }
    }

    #[test]
    fn a_header_that_lies_is_refused() {
        let magic = u64::from_be_bytes(*b"mlxdring");
        let total = 8192 + 2 * (512 + 4096);
        let sound = [magic, 1, total, 4096, 4096];
        let with = |index: usize, value: u64| {
            let mut words = sound;
            words[index] = value;
            words
        };
        let name = "/mlxd-00000000000000000000f00d";
        let cases: [(&str, Vec<u64>, u64); 10] = [
            ("too short for a header", vec![], 100),
            ("all zero", vec![0; 5], total),
            ("wrong magic", with(0, magic + 1).into(), total),
            ("wrong version", with(1, 2).into(), total),
            ("total too small", with(2, total - 8).into(), total),
            ("ring size 0", with(3, 0).into(), total),
            ("ring size no power of two", with(3, 5000).into(), total),
            ("ring size absurd", with(4, u64::MAX).into(), total),
            ("sizes beyond the mapping", with(4, 1 << 20).into(), total),
            ("cut off", sound.into(), total - 4096),
        ];
        for (case, words, bytes) in cases {
            let _forged = Forgery::new(name, &words, bytes as i64);
            let error = attach(name).expect_err(case);
            assert!(matches!(error, SegmentError::BadHeader { .. }), "{case}: {error}");
        }
        let _forged = Forgery::new(name, &sound, total as i64);
        attach(name).expect("the sound one");
    }

    #[test]
    fn a_segment_that_has_its_worker_takes_no_other() {
        let magic = u64::from_be_bytes(*b"mlxdring");
        let total = 8192 + 2 * (512 + 4096);
        let mut words = vec![magic, 1, total, 4096, 4096];
        words.resize(16, 0);
        words.push(1);
        let name = "/mlxd-00000000000000000000beef";
        let _forged = Forgery::new(name, &words, total as i64);
        let error = attach(name).expect_err("a second one");
        assert!(matches!(error, SegmentError::AlreadyAttached(_)), "{error}");
    }
}
