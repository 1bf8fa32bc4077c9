//! From files to arrays: headers, the plan, and the reading itself.

mod folder;
pub mod header;
mod plan;
mod reader;

pub use folder::Checkpoint;
pub use plan::{Inventory, Module, Plan, Stack};
pub use reader::{Progress, Reader};
