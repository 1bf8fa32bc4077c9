//! What the machine has, what a model needs, who was promised what, and what to do about it.
//!
//! | module | does | pure |
//! |---|---|---|
//! | `shape` | `config.json` → layers, heads, widths | yes |
//! | `needs` | shape, weights, context, batch → bytes, part by part | yes |
//! | `ledger` | leases: no byte is promised twice | yes |
//! | `plan` | fits, evict these, wait for those, never | yes |
//! | `pressure` | readings → a level, with hysteresis | yes |
//! | `measured` | what workers really took, in a file | no |
//! | `machine` | the operating system's figures, behind one trait | no |
//!
//! Nothing here knows workers, requests or configuration: plain values come in.

mod ledger;
pub mod machine;
mod measured;
mod needs;
mod plan;
mod pressure;
mod promise;
mod shape;

pub use ledger::{Held, Ledger, LedgerFault};
pub use machine::{Footprint, Machine, MachineMemory};
pub use measured::{Measured, MeasuredFile, MeasuredKey, MlxBytes, Sample};
pub use needs::{DraftNeeds, Form, Load, Needs, PackedKv, Part, WeightBytes};
pub use plan::{Plan, Resident, Rules, Stays, Wanted, Why, plan};
pub use pressure::{Level, Pressure, Reading, Thresholds};
pub use promise::Promise;
pub use shape::{LayerMemory, ModelShape, ShapeError};
