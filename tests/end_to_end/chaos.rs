//! A short form of `make chaos`: faults at random under load, every answer compared with that of
//! an undisturbed twin.

use crate::fixture::config;
use mlxd_testkit::chaos::{ChaosPlan, ChaosReport, Engine, FaultKind, run};
use std::time::Duration;

fn short(engine: Engine) -> ChaosPlan {
    ChaosPlan {
        engine,
        seed: 3,
        faults_max: 30,
        time_max: Duration::from_secs(60),
        clients: 4,
        request_deaths_max: 1000,
    }
}

fn run_clean(plan: &ChaosPlan) -> ChaosReport {
    config(); // Builds what is run.
    let report = run(plan);
    println!("{report}");
    assert!(report.is_clean(), "{report}");
    assert!(report.faults_total() > 0 && report.complete > 0, "{report}");
    report
}

#[test]
fn faults_at_random_lose_double_and_change_nothing() {
    let report = run_clean(&short(Engine::Scripted));
    assert_eq!(report.faults_total(), 30, "{report}");
    let recovered: usize = report.recoveries.values().map(Vec::len).sum();
    assert!(recovered > 0, "streams were caught in the middle: {report}");
    let quarantined = report.explained.get("quarantined");
    assert_eq!(quarantined, None, "no number of deaths was the last one: {report}");
}

#[test]
fn where_two_deaths_quarantine_a_request_it_is_told_so_and_nothing_else_changes() {
    run_clean(&ChaosPlan { request_deaths_max: 2, seed: 4, ..short(Engine::Scripted) });
}

#[test]
fn faults_at_random_change_nothing_on_mlx_either() {
    let plan = ChaosPlan { faults_max: 8, clients: 2, ..short(Engine::Mlx) };
    let report = run_clean(&plan);
    let kinds = report.faults.keys().filter(|kind| **kind != FaultKind::Reread).count();
    assert!(kinds > 2, "{report}");
}
