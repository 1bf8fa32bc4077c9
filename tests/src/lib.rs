//! Tests over the whole program: they start the real `mlxd serve` with a scripted or the real
//! worker and look at it from outside, as a client, an admin or an operating system does.
//!
//! They are in `end_to_end`. Their fixtures are the crate `testkit`'s.
