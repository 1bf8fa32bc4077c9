//! From journals to answers.

pub(crate) mod answer;
pub(crate) mod choice;
pub(crate) mod logprobs;
pub(crate) mod sse;
