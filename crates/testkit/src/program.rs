//! Where the workspace's programs are, seen from one of its tests.

use std::path::PathBuf;

/// A program of this workspace, built with the same profile as the test that asks. Panics when
/// it is not built: a test runner builds the programs of the packages that it runs.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own program");
    let found = test
        .ancestors()
        .skip(1)
        .take(3)
        .map(|folder| folder.join(name))
        .find(|program| program.is_file());
    found.unwrap_or_else(|| {
        panic!(
            "{name} is not built beside {}; run `cargo build --workspace --bins` first",
            test.display()
        )
    })
}
