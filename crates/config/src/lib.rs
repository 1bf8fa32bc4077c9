//! `mlxd.toml`, `MLXD_*` variables and flags, checked and put together.
//!
//! [`Config::from_sources`] is pure: it takes texts and gives a [`Config`] or every problem at
//! once, each with its place and, for an unknown name, the nearest known one. [`load`] finds and
//! reads the file around it. [`Folders`] says where files, logs and sockets go.
//!
//! Each section is one file that holds its struct, defaults, limits and documentation together;
//! `config/mlxd.toml` shows them all to users and is held equal to them by a test.

mod config;
mod file;
mod http;
mod hub;
mod load;
mod log;
mod memory;
mod models;
mod paths;
mod problem;
mod render;
mod requests;
mod routes;
mod secret;
mod section;
mod streams;
mod value;
mod workers;

#[cfg(not(target_os = "macos"))]
#[path = "linux.rs"]
mod platform;
#[cfg(target_os = "macos")]
#[path = "macos.rs"]
mod platform;

pub use config::{Config, Loaded, Override, Sources, VARIABLES};
pub use http::HttpConfig;
pub use hub::HubConfig;
pub use load::{CheckReport, ConfigError, LoadedConfig, check, load};
pub use log::{LogConfig, LogFormat};
pub use memory::MemoryConfig;
pub use models::{Device, ModelSettings, ModelTable, ModelsConfig, ModelsSection};
pub use paths::{Environment, Folders, PathsConfig, PathsError, own_folder};
pub use problem::{Fault, Origin, Problem, Problems};
pub use requests::RequestsConfig;
pub use routes::{Modality, RouteConfig, RouteRule, RouteTable, RoutesConfig, RulePriority};
pub use secret::Secret;
pub use streams::StreamsConfig;
pub use workers::WorkersConfig;
