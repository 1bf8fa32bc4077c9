//! From journals to answers.

pub(crate) mod answer;
pub(crate) mod choice;
pub(crate) mod events;
pub(crate) mod late;
pub(crate) mod logprobs;
pub(crate) mod silence;
pub(crate) mod sse;
