//! mlxctl from outside: what it asks, what it prints, how it ends.

mod commands;
mod everyday;
mod front;
mod service;
