//! The worker's ends of everything that joins it to its front.

use crate::arguments::Arguments;
use crate::run::Program;
use ipc_channel::ipc::{self, IpcReceiver, IpcSender};
use mlxd_protocol::{Bootstrap, FromWorker, Hello, ToWorker};
use mlxd_ring::{SegmentError, WorkerLink};
use std::io;

/// A worker that is joined to its front and has introduced itself.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) link: WorkerLink,
    pub(crate) to_front: IpcSender<FromWorker>,
    pub(crate) from_front: IpcReceiver<ToWorker>,
}

/// Why a worker and its front could not be joined.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("doorbell descriptor {fd}: {reason}")]
    Descriptor { fd: i32, reason: io::Error },
    #[error(transparent)]
    Segment(#[from] SegmentError),
    #[error("the front's control server {name}: {reason}")]
    Control { name: String, reason: String },
}

impl Connection {
    pub(crate) fn open(arguments: &Arguments, program: &Program) -> Result<Self, ConnectError> {
        let inherited = |fd| {
            mlxd_ring::take_inherited_fd(fd)
                .map_err(|reason| ConnectError::Descriptor { fd, reason })
        };
        let link = WorkerLink::attach(
            &arguments.segment,
            inherited(arguments.commands_fd)?,
            inherited(arguments.tokens_fd)?,
        )?;
        let hello = Hello {
            protocol: program.protocol,
            version: program.version.into(),
            pid: std::process::id(),
            incarnation: arguments.incarnation,
        };
        let (to_front, from_front) = join(&arguments.bootstrap, hello).map_err(|reason| {
            ConnectError::Control { name: arguments.bootstrap.clone(), reason }
        })?;
        Ok(Self { link, to_front, from_front })
    }
}

fn join(
    server: &str,
    hello: Hello,
) -> Result<(IpcSender<FromWorker>, IpcReceiver<ToWorker>), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let (to_worker, from_front) = ipc::channel().map_err(|error| text(&error))?;
    let (to_front, from_worker) = ipc::channel().map_err(|error| text(&error))?;
    IpcSender::connect(server.to_owned())
        .map_err(|error| text(&error))?
        .send(Bootstrap { to_worker, from_worker })
        .map_err(|error| text(&error))?;
    to_front.send(FromWorker::Hello(hello)).map_err(|error| text(&error))?;
    Ok((to_front, from_front))
}
