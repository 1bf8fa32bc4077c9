//! A second process for the tests: the test binary itself, started again in a given role.

#![allow(dead_code)] // Each test binary uses a part.

use std::env;
use std::os::fd::RawFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use mlxd_ring::{FrontLink, Segment, SegmentSpec, WorkerLink, take_inherited_fd};

/// How long anything may take before a test calls it hung.
pub const PATIENCE: Duration = Duration::from_secs(60);

const ROLE: &str = "MLXD_RING_TEST_ROLE";
const SEGMENT: &str = "MLXD_RING_TEST_SEGMENT";
const COMMANDS_FD: RawFd = 3;
const TOKENS_FD: RawFd = 4;

/// The smallest rings, to be full and to wrap as often as can be.
pub const SMALL: SegmentSpec = SegmentSpec { commands_bytes: 4096, tokens_bytes: 4096 };

/// This binary as a child in a role. Its test named `as_child`, ignored otherwise, plays it.
pub fn command(role: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("this binary"));
    command
        .args(["--exact", "as_child", "--ignored", "--nocapture"])
        .env(ROLE, role)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// The role this process was started in; `None` when it is no child.
pub fn role() -> Option<String> {
    env::var(ROLE).ok()
}

/// A child that has a segment to attach to.
pub struct Peer {
    pub child: Child,
    pub link: FrontLink,
}

impl Peer {
    pub fn start(role: &str, spec: &SegmentSpec) -> Self {
        let mut segment = Segment::create(spec).expect("a segment");
        let fds = segment.worker_fds().expect("the worker's doorbells");
        let mut command = command(role);
        command.env(SEGMENT, segment.name());
        let mappings = vec![
            FdMapping { parent_fd: fds.commands, child_fd: COMMANDS_FD },
            FdMapping { parent_fd: fds.tokens, child_fd: TOKENS_FD },
        ];
        command.fd_mappings(mappings).expect("no clash");
        let child = command.spawn().expect("a child");
        // The doorbell ends in `command` are closed here, at the end of the function.
        Self { child, link: segment.into_front() }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().expect("killed");
    }

    /// Waits for the child to end and says whether it was content.
    pub fn finish(mut self) -> bool {
        drop(self.link);
        self.child.wait().expect("waited").success()
    }
}

/// In the child: the segment's name.
pub fn segment_name() -> String {
    env::var(SEGMENT).expect("a segment to attach to")
}

/// In the child: attaches.
pub fn attach() -> WorkerLink {
    let commands = take_inherited_fd(COMMANDS_FD).expect("the commands doorbell");
    let tokens = take_inherited_fd(TOKENS_FD).expect("the tokens doorbell");
    WorkerLink::attach(&segment_name(), commands, tokens).expect("attached")
}

/// The n-th record of a sequence that both processes can compute: mostly short, at times longer
/// than the whole of a small ring.
pub fn numbered(number: u64) -> (u16, Vec<u8>) {
    let mut random = fastrand::Rng::with_seed(number);
    let len = match random.u8(..10) {
        0 => random.usize(..20_000),
        1 | 2 => random.usize(..2_000),
        _ => random.usize(..100),
    };
    let mut payload = number.to_ne_bytes().to_vec();
    payload.resize_with(8 + len, || random.u8(..));
    (number as u16, payload)
}
