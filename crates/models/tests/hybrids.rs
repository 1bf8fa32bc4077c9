//! Mixtures of experts and recurrent layers against mlx-lm, on the CPU.

mod common;

use common::compare::compare_all;

#[test]
fn experts_equal_mlx_lm() {
    compare_all("hybrids.py", "moe", 8);
}

#[test]
fn hybrids_equal_mlx_lm() {
    compare_all("hybrids.py", "hybrid", 14);
}
