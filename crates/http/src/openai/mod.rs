//! OpenAI's JSON: requests in, checked; answers and chunks out.

pub(crate) mod answer;
pub(crate) mod chat;
pub(crate) mod common;
pub(crate) mod completion;
pub(crate) mod embeddings;
pub(crate) mod facts;
pub(crate) mod fields;
pub(crate) mod keep_alive;
mod messages;
