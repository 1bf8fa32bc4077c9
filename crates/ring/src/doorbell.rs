//! One end of a doorbell: a socket whose bytes mean "look at the ring" and whose end of file
//! means "the peer is gone".

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// One end of a doorbell.
#[derive(Debug)]
pub(crate) struct Doorbell {
    socket: UnixStream,
    peer_gone: bool,
}

impl Doorbell {
    /// The two ends. Both are non-blocking and closed on exec.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        let ours = Self { socket: ours, peer_gone: false };
        Ok((ours, OwnedFd::from(theirs)))
    }

    /// Takes over an end that came through exec: a child of ours must not inherit it in turn, or
    /// its end of file would never come.
    pub(crate) fn adopt(fd: OwnedFd) -> io::Result<Self> {
        use nix::fcntl::{FcntlArg, FdFlag, fcntl};
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        let socket = UnixStream::from(fd);
        socket.set_nonblocking(true)?;
        Ok(Self { socket, peer_gone: false })
    }

    /// True when end of file has been seen.
    pub(crate) fn peer_gone(&self) -> bool {
        self.peer_gone
    }

    /// Wakes the peer. A full socket is as good: it holds rings that the peer has not heard yet.
    pub(crate) fn ring(&mut self) -> io::Result<()> {
        match self.socket.write_all(&[1]) {
            Ok(()) => Ok(()),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => Ok(()),
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
                    self.peer_gone = true;
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }

    /// Takes all rings out, and notices when the peer is gone. Never blocks.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        let mut rings = [0; 64];
        // A peer that rings faster than we drain must not keep us here.
        for _ in 0..64 {
            match self.socket.read(&mut rings) {
                Ok(0) => {
                    self.peer_gone = true;
                    return Ok(());
                }
                Ok(_) => {}
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock => return Ok(()),
                    ErrorKind::ConnectionReset => {
                        self.peer_gone = true;
                        return Ok(());
                    }
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// Waits for a ring or for end of file. False: the deadline passed first.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> io::Result<bool> {
        loop {
            let timeout = match deadline {
                None => PollTimeout::NONE,
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        PollTimeout::ZERO
                    } else {
                        // poll counts whole milliseconds; round up, so as not to spin at the end.
                        let rounded = left.saturating_add(Duration::from_micros(999));
                        PollTimeout::try_from(rounded).unwrap_or(PollTimeout::MAX)
                    }
                }
            };
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                    return Ok(false);
                }
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Doorbell, Doorbell) {
        let (ours, theirs) = Doorbell::pair().expect("a pair");
        (ours, Doorbell::adopt(theirs).expect("adopted"))
    }

    fn now() -> Option<Instant> {
        Some(Instant::now())
    }

    #[test]
    fn rings_are_kept_until_drained() {
        let (mut ours, mut theirs) = pair();
        assert!(!theirs.wait(now()).expect("waited"));
        ours.ring().expect("rung");
        ours.ring().expect("rung");
        assert!(theirs.wait(None).expect("waited"));
        assert!(theirs.wait(now()).expect("waited"), "not yet drained");
        theirs.drain().expect("drained");
        assert!(!theirs.wait(now()).expect("waited"));
        assert!(!theirs.peer_gone());
    }

    #[test]
    fn a_bell_that_nobody_hears_does_not_block() {
        let (mut ours, mut theirs) = pair();
        // More than any socket holds.
        for _ in 0..2_000_000 {
            ours.ring().expect("rung");
        }
        assert!(!ours.peer_gone());
        let mut drains = 0;
        while theirs.wait(now()).expect("waited") {
            theirs.drain().expect("drained");
            drains += 1;
            assert!(drains < 10_000, "never empty");
        }
    }

    #[test]
    fn the_peers_end_is_noticed_by_listening_and_by_ringing() {
        let (mut ours, mut theirs) = pair();
        theirs.ring().expect("rung");
        drop(theirs);
        assert!(ours.wait(None).expect("waited"));
        ours.drain().expect("drained");
        assert!(ours.peer_gone());

        let (mut ours, theirs) = pair();
        drop(theirs);
        ours.ring().expect("no error: the end is told apart");
        assert!(ours.peer_gone());
    }
}
