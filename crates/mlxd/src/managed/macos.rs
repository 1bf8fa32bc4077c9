//! launchd: sockets by name. It wants no notices.
#![allow(unsafe_code)] // One call into the system's library, and the descriptors that it gives.

use std::ffi::{c_char, c_int, c_void};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

/// The socket's name in the property list, as in `mlxd-service`.
const SOCKET: &std::ffi::CStr = c"api";

unsafe extern "C" {
    /// `launch.h`: 0 or an error number; on success a list of descriptors for the caller to free.
    fn launch_activate_socket(
        name: *const c_char,
        descriptors: *mut *mut c_int,
        count: *mut usize,
    ) -> c_int;
    /// `stdlib.h`.
    fn free(memory: *mut c_void);
}

/// The sockets that launchd holds for this job. None when the property list names none.
pub(super) fn sockets(by_launchd: bool) -> io::Result<Vec<OwnedFd>> {
    if !by_launchd {
        return Ok(Vec::new());
    }
    let mut descriptors: *mut c_int = std::ptr::null_mut();
    let mut count = 0;
    // SAFETY: the name ends with a zero, and both places live through the call.
    let error = unsafe { launch_activate_socket(SOCKET.as_ptr(), &mut descriptors, &mut count) };
    if error != 0 {
        let error = io::Error::from_raw_os_error(error);
        // ENOENT: the property list has no such socket. ESRCH: launchd did not start this.
        let is_none =
            [nix::libc::ENOENT, nix::libc::ESRCH].map(Some).contains(&error.raw_os_error());
        return if is_none { Ok(Vec::new()) } else { Err(error) };
    }
    if descriptors.is_null() {
        return Ok(Vec::new());
    }
    // SAFETY: on success it points at `count` descriptors, which are this process's and which
    // launchd gives out once; each is taken over once, and the list itself freed once.
    let sockets = unsafe {
        let list = std::slice::from_raw_parts(descriptors, count);
        let sockets: Vec<OwnedFd> =
            list.iter().map(|descriptor| OwnedFd::from_raw_fd(*descriptor)).collect();
        free(descriptors.cast());
        sockets
    };
    close_on_exec(&sockets)?;
    Ok(sockets)
}

/// Workers must not inherit them.
fn close_on_exec(sockets: &[OwnedFd]) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    for socket in sockets {
        fcntl(socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    Ok(())
}

pub(super) fn ready(_base_url: &str) {}

pub(super) fn reloading() {}

pub(super) fn stopping() {}

pub(super) fn watchdog_patience() -> Option<Duration> {
    None
}

pub(super) fn alive() {}
