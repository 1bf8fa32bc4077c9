//! Taking over a descriptor that the spawner left open across exec.

#![allow(unsafe_code)] // A descriptor's number becomes its owner here.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// First number that is neither standard input, output nor error.
const FIRST_FREE_FD: RawFd = 3;

/// Between looking at a descriptor's flag and setting it nobody else may do the same.
static TAKING: Mutex<()> = Mutex::new(());

/// Takes over the descriptor of this number, which the process that started this one left open
/// for it. The descriptor is closed on exec from now on.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for standard input, output and error, and for a descriptor
/// that is closed on exec: such a one cannot have come through exec, so somebody here owns it,
/// the caller of an earlier call perhaps. `EBADF` when it is not open.
pub fn take_inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    if number < FIRST_FREE_FD {
        return Err(invalid("standard input, output and error are not taken over"));
    }
    let _taking = TAKING.lock().map_err(|_| io::Error::other("poisoned"))?;
    // SAFETY: used for one call that fails cleanly on a number that is not open, and dropped.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl(borrowed, FcntlArg::F_GETFD)?;
    if FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC) {
        return Err(invalid("the descriptor was opened by this process, not inherited"));
    }
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: open, and inherited: whatever Rust's library opens itself is closed on exec. No
    // other call can give this number out again, for the flag is set now, under the lock.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn refused(number: RawFd) -> io::ErrorKind {
        take_inherited_fd(number).expect_err("refused").kind()
    }

    #[test]
    fn only_what_came_through_exec_is_taken() {
        assert_eq!(refused(1), io::ErrorKind::InvalidInput);
        let owned = std::fs::File::open("/dev/null").expect("opened");
        assert_eq!(refused(owned.as_raw_fd()), io::ErrorKind::InvalidInput);
        let limit = RawFd::MAX;
        let error = take_inherited_fd(limit).expect_err("not open");
        assert_eq!(error.raw_os_error(), Some(nix::libc::EBADF));
    }

    #[test]
    fn it_is_taken_once() {
        let file = std::fs::File::open("/dev/null").expect("opened");
        // As a spawner leaves it for its child.
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).expect("set");
        let number = std::os::fd::IntoRawFd::into_raw_fd(file);
        let taken = take_inherited_fd(number).expect("taken");
        assert_eq!(taken.as_raw_fd(), number);
        assert_eq!(refused(number), io::ErrorKind::InvalidInput);
    }
}
