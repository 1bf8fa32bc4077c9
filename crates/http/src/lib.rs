//! The front's HTTP side: the OpenAI API with server-sent events, health and metrics, and the
//! admin's routes on a Unix socket.
//!
//! Only this crate knows OpenAI's JSON. A request's way through it:
//!
//! | step | module |
//! |---|---|
//! | an id, metrics, a log line | `watch` |
//! | body within its limits | `body` |
//! | JSON to a checked request, or a 400 that names the field | `openai` |
//! | the model, or one after the other that a virtual one stands for | `routing` |
//! | template, encode, context check on blocking threads | `prepare` |
//! | jobs to dispatch | `routes` |
//! | journal entries to text, stop strings, log-probabilities | `respond` |
//! | chunks and answers | `openai::answer`, `respond::sse` |
//! | streams that are kept and can be read again | `streams` |
//!
//! It never blocks its event loops, starts no process, and ends a stream that broke off with an
//! error event, never with a clean end.

mod admin;
mod app;
mod backend;
mod body;
mod error;
mod limits;
mod metrics;
mod openai;
mod prepare;
mod request_id;
mod respond;
mod routes;
mod routing;
mod server;
mod streams;
mod tenants;
#[cfg(test)]
mod tests;
mod watch;

pub use admin::{AdminAnswer, FrontAdmin, ModelShelf, PullFeed};
pub use limits::{HttpLimits, RequestLimits, StreamLimits};
pub use server::{Running, bind};
