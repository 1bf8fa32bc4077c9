//! What tests drive mlxd with: an engine whose tokens are known beforehand and which fails on
//! demand, a worker program around it, a model folder for it, a front process with an end, and
//! an HTTP client that can hang up in the middle of a line.
//!
//! Nothing here is shipped. [`ScriptedEngine`] runs inside `mlxd-scripted-worker`, which is the
//! real worker's loop with that engine; a front uses it when its `workers.program` says so.

mod answer;
pub mod chaos;
mod fault;
mod folder;
mod front_half;
mod front_process;
mod http;
mod hub;
mod leftovers;
mod loader;
mod program;
mod script;
mod scripted;
mod sse;
mod wait;

pub use answer::{Answer, AnswerChoice, Outcome};
pub use folder::ModelFolder;
pub use front_half::{FrontHalf, Said};
pub use front_process::{FrontConfig, FrontProcess, Home};
pub use http::{Body, Client, Connection, Response};
pub use hub::{FakeHub, HubCall, HubFault, HubRequest};
pub use leftovers::Leftovers;
pub use loader::{PROTOCOL_VARIABLE, ScriptedLoader};
pub use program::program;
pub use script::{Fault, How, LoadFailure, Script, ScriptError, When};
pub use scripted::ScriptedEngine;
pub use sse::{Event, Events};
pub use wait::{DEADLINE, until};
