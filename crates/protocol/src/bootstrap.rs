//! How front and worker find each other's channels.
//!
//! The front opens an `ipc_channel::ipc::IpcOneShotServer<Bootstrap>` and names it on the
//! worker's command line. The worker makes both channels, keeps one end of each and sends the
//! other two as a [`Bootstrap`]; the next thing it sends is [`FromWorker::Hello`]. The server
//! takes one client. When a worker dies before it has connected, the front frees its waiting
//! `accept` by connecting to its own server and sending a `Bootstrap` whose far ends it drops.
//!
//! Nothing here names a version: the layout of two channel ends is what both sides must always
//! agree on, so that a [`Hello`](crate::Hello) of another version can still be read and refused.

use crate::{FromWorker, ToWorker};
use ipc_channel::ipc::{IpcReceiver, IpcSender};
use serde::{Deserialize, Serialize};

/// The front's ends of the two control channels.
#[derive(Debug, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Front → worker. Dropping it tells the worker to exit at once.
    pub to_worker: IpcSender<ToWorker>,
    /// Worker → front. Its end means that the worker is gone.
    pub from_worker: IpcReceiver<FromWorker>,
}

/// The command line of a worker program, `mlxd-worker` or another that speaks this protocol:
/// the front writes it, the worker reads it.
pub mod arguments {
    /// Followed by the name of the one-shot server.
    pub const BOOTSTRAP: &str = "--bootstrap";
    /// Followed by the name of the segment.
    pub const SEGMENT: &str = "--segment";
    /// Followed by the descriptor of the commands ring's doorbell.
    pub const COMMANDS_FD: &str = "--commands-fd";
    /// Followed by the descriptor of the tokens ring's doorbell.
    pub const TOKENS_FD: &str = "--tokens-fd";
    /// Followed by the incarnation's number.
    pub const INCARNATION: &str = "--incarnation";
}

/// Exit codes of a worker program, for the front's log and the state machine's decision.
pub mod exit_code {
    /// Drained, or told to shut down.
    pub const DONE: i32 = 0;
    /// Started by hand or with arguments that it does not know.
    pub const USAGE: i32 = 2;
    /// The model cannot be loaded; [`FromWorker::LoadFailed`](crate::FromWorker::LoadFailed) said why.
    pub const LOAD_FAILED: i32 = 3;
    /// The engine failed or the program panicked; standard error says what was being done.
    pub const FAULT: i32 = 70;
    /// The front is gone.
    pub const FRONT_GONE: i32 = 71;
    /// The segment or the control channel could not be attached.
    pub const ATTACH_FAILED: i32 = 72;
    /// The front's records made no sense.
    pub const RING_CORRUPT: i32 = 73;

    /// What a person reads for a code.
    pub fn describe(code: i32) -> &'static str {
        match code {
            DONE => "finished",
            USAGE => "wrong arguments",
            LOAD_FAILED => "the model cannot be loaded",
            FAULT => "the engine failed",
            FRONT_GONE => "the front was gone",
            ATTACH_FAILED => "the front's segment or channel could not be opened",
            RING_CORRUPT => "the commands ring was corrupt",
            _ => "unknown exit code",
        }
    }
}
