//! The status table.

use crate::exit::Exit;
use crate::output::harmless;
use crate::units;
use mlxd_protocol::admin::{ModelStatus, Status, WorkerState};
use mlxd_protocol::bytes_in_short;

const HEADS: [&str; 7] = ["MODEL", "STATE", "PID", "UPTIME", "MEMORY", "REQUESTS", "TOK/S"];
/// The first columns are text, the others numbers.
const LEFT_ALIGNED: usize = 2;
const GAP: usize = 2;
/// The name's column is never made narrower than this.
const NAME_WIDTH_MIN: usize = 12;
const INDENT: &str = "    ";

/// The table, within `columns` where the output is a terminal. Names are never cut, so that they
/// can be copied: one that is too long has a line of its own. Without `columns` each model has
/// one line, for `grep`.
pub(crate) fn table(server: &Status, models: &[&ModelStatus], columns: Option<usize>) -> String {
    let mut text = String::new();
    if server.shutting_down {
        let told =
            "mlxd is shutting down: it takes no new requests, finishes what runs, then ends.";
        wrapped(told, columns).iter().for_each(|line| push(&mut text, line));
    }
    if !models.is_empty() {
        let rows: Vec<[String; 7]> = models.iter().map(|model| row(model)).collect();
        let widths = widths(&rows, columns);
        push(&mut text, &aligned(&HEADS.map(str::to_owned), &widths));
        for (model, mut row) in models.iter().zip(rows) {
            if columns.is_some() && row[0].chars().count() > widths[0] {
                push(&mut text, &row[0]);
                row[0].clear();
            }
            push(&mut text, &aligned(&row, &widths));
            if let Some(note) = note(model) {
                for line in wrapped(
                    &harmless(&note),
                    columns.map(|width| width.saturating_sub(INDENT.len())),
                ) {
                    push(&mut text, &format!("{INDENT}{line}"));
                }
            }
        }
    }
    if let Some(hint) = hint(server) {
        wrapped(&harmless(&hint), columns).iter().for_each(|line| push(&mut text, line));
    }
    if let Some(line) = memory_line(server) {
        push(&mut text, &line);
    }
    push(
        &mut text,
        &format!(
            "mlxd {}, pid {}, up {}, {}, serves {}",
            server.server.version,
            server.server.pid,
            units::duration(server.uptime_s),
            bytes_in_short(server.memory_bytes),
            server.base_url
        ),
    );
    text
}

/// What to do when nothing is loaded, and about models that were given up.
fn hint(server: &Status) -> Option<String> {
    let is_fatal = |model: &&ModelStatus| model.state == WorkerState::Fatal;
    let fatal: Vec<&str> =
        server.models.iter().filter(is_fatal).map(|model| model.name.as_str()).collect();
    let nothing_loaded = server.models.iter().all(|model| is_stopped(model.state));
    if server.shutting_down || !nothing_loaded && fatal.is_empty() {
        return None;
    }
    let what = match fatal[..] {
        [] => "A model loads at its first request, or with `mlxctl start MODEL`.".to_owned(),
        [name] => format!(
            "{name} was given up: `mlxctl why {name}` says why, `mlxctl start {name}` tries again."
        ),
        [..] => format!(
            "{} models were given up: `mlxctl why MODEL` says why, `mlxctl start MODEL` tries again.",
            fatal.len()
        ),
    };
    Some(if nothing_loaded { format!("Nothing is loaded. {what}") } else { what })
}

/// How `status` ends for these models: as supervisorctl, which counts these three states as
/// stopped, and BACKOFF, STARTING and STOPPING not.
pub(crate) fn exit(models: &[&ModelStatus]) -> Exit {
    if models.iter().any(|model| is_stopped(model.state)) {
        Exit::StatusNotRunning
    } else {
        Exit::Success
    }
}

fn is_stopped(state: WorkerState) -> bool {
    matches!(state, WorkerState::Stopped | WorkerState::Exited | WorkerState::Fatal)
}

fn row(model: &ModelStatus) -> [String; 7] {
    let lives = model.pid.is_some();
    [
        harmless(&model.name),
        model.state.name().to_owned(),
        model.pid.map_or(String::new(), |pid| pid.to_string()),
        model.uptime_s.map_or(String::new(), units::duration),
        model.memory_bytes.map_or(String::new(), bytes_in_short),
        model.requests_total.to_string(),
        if lives { units::rate(model.tokens_per_s) } else { String::new() },
    ]
}

/// What is said below a row.
fn note(model: &ModelStatus) -> Option<String> {
    let said = match model.state {
        WorkerState::Starting => match model.load_progress {
            Some(progress) => Some(format!("loading, {:.0} %", progress.clamp(0.0, 1.0) * 100.0)),
            None => model.reason.clone(),
        },
        WorkerState::Running if model.queued > 0 => {
            Some(format!("{} running, {} waiting", model.running, model.queued))
        }
        WorkerState::Running => None,
        WorkerState::Stopped => refused(model).or_else(|| model.reason.clone()),
        _ => model.reason.clone(),
    };
    let said: Vec<String> = said.into_iter().chain(memory_note(model)).collect();
    (!said.is_empty()).then(|| said.join("; "))
}

/// Why there was no memory to load it when that was asked for last.
fn refused(model: &ModelStatus) -> Option<String> {
    let brief = model.residence.refused.as_ref()?;
    Some(format!("not loaded: {brief}; `mlxctl why {}` says more", model.name))
}

/// What a model has to do with memory.
fn memory_note(model: &ModelStatus) -> Option<String> {
    let residence = &model.residence;
    let mut said = Vec::new();
    if residence.promised_bytes > 0 {
        said.push(format!("promised {}", bytes_in_short(residence.promised_bytes)));
    }
    if residence.pinned {
        said.push("pinned".to_owned());
    }
    if let Some(seconds) = residence.leaves_in_s {
        said.push(format!("unloaded in {}", units::duration(seconds)));
    }
    if residence.waiting > 0 {
        let what = residence.waits_for.as_ref().map(|what| format!(": {what}"));
        said.push(format!("{} wait for memory{}", residence.waiting, what.unwrap_or_default()));
    }
    (!said.is_empty()).then(|| said.join(", "))
}

/// The machine's memory, on a line of its own; `None` from an mlxd that does not say.
fn memory_line(server: &Status) -> Option<String> {
    let memory = &server.memory;
    if memory.budget_bytes == 0 {
        return None;
    }
    let waiting = match memory.waiting {
        0 => String::new(),
        count => format!(", {count} waiting"),
    };
    Some(format!(
        "memory: {} of {} promised, {} free{waiting}, pressure {}",
        bytes_in_short(memory.promised_bytes),
        bytes_in_short(memory.budget_bytes),
        bytes_in_short(memory.free_bytes),
        memory.pressure
    ))
}

fn widths(rows: &[[String; 7]], columns: Option<usize>) -> [usize; 7] {
    let mut widths = HEADS.map(|head| head.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    if let Some(columns) = columns {
        let others: usize = widths[1..].iter().map(|width| width + GAP).sum();
        let room = columns.saturating_sub(others).max(NAME_WIDTH_MIN);
        widths[0] = widths[0].min(room);
    }
    widths
}

fn aligned(cells: &[String; 7], widths: &[usize; 7]) -> String {
    let mut line = String::new();
    for (index, (cell, width)) in cells.iter().zip(widths).enumerate() {
        if index > 0 {
            line.push_str(&" ".repeat(GAP));
        }
        if index < LEFT_ALIGNED {
            line.push_str(&format!("{cell:<width$}"));
        } else {
            line.push_str(&format!("{cell:>width$}"));
        }
    }
    line.truncate(line.trim_end().len());
    line
}

fn push(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// `text` broken between words; a longer word stays whole.
pub(crate) fn wrapped(text: &str, width: Option<usize>) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line)
                if width.is_none_or(|width| {
                    line.chars().count() + 1 + word.chars().count() <= width
                }) =>
            {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlxd_protocol::admin::{MemoryStatus, Residence, Version};

    fn model(name: &str, state: WorkerState) -> ModelStatus {
        let lives = matches!(state, WorkerState::Running | WorkerState::Starting);
        ModelStatus {
            name: name.to_owned(),
            groups: Vec::new(),
            state,
            reason: None,
            pid: lives.then_some(4711),
            uptime_s: lives.then_some(3725),
            load_progress: None,
            memory_bytes: lives.then_some(2_345_000_000),
            phase: None,
            requests_total: 12,
            tokens_total: 3456,
            running: 0,
            queued: 0,
            preemptions: 0,
            tokens_per_s: if lives { 241.6 } else { 0.0 },
            deaths: 0,
            residence: Residence::default(),
            architecture: None,
            quantization: None,
            mlx: None,
            context_tokens: None,
            cache: None,
            guesses: None,
        }
    }

    fn server(models: Vec<ModelStatus>) -> Status {
        Status {
            server: Version { version: "0.1.0".into(), protocol: 1, pid: 99 },
            uptime_s: 61,
            memory_bytes: 14_200_000,
            base_url: "http://127.0.0.1:11440/v1".into(),
            shutting_down: false,
            memory: MemoryStatus::default(),
            models,
        }
    }

    fn shown(models: Vec<ModelStatus>, columns: Option<usize>) -> String {
        let status = server(models);
        table(&status, &status.models.iter().collect::<Vec<_>>(), columns)
    }

    #[test]
    fn states_figures_and_reasons_fit_in_80_columns() {
        let mut backoff = model("b", WorkerState::Backoff);
        backoff.reason = Some(
            "the worker died of signal 9 (SIGKILL) after 3 s, second death in a row; it is started again in 2 s"
                .into(),
        );
        let mut starting = model("mlx-community/Qwen3-0.6B-4bit", WorkerState::Starting);
        starting.load_progress = Some(0.426);
        starting.tokens_per_s = 0.0;
        let mut busy = model("mlxd-demo", WorkerState::Running);
        (busy.running, busy.queued) = (8, 3);
        let text = shown(vec![backoff, starting, busy, model("z", WorkerState::Stopped)], Some(80));
        assert_eq!(
            text,
            "\
MODEL                          STATE      PID   UPTIME   MEMORY  REQUESTS  TOK/S
b                              BACKOFF                                 12
    the worker died of signal 9 (SIGKILL) after 3 s, second death in a row; it
    is started again in 2 s
mlx-community/Qwen3-0.6B-4bit  STARTING  4711  1:02:05  2.35 GB        12    0.0
    loading, 43 %
mlxd-demo                      RUNNING   4711  1:02:05  2.35 GB        12    242
    8 running, 3 waiting
z                              STOPPED                                 12
mlxd 0.1.0, pid 99, up 0:01:01, 14.2 MB, serves http://127.0.0.1:11440/v1
"
        );
        assert!(text.lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn a_long_name_has_its_own_line_on_a_terminal_and_one_line_elsewhere() {
        let name = "mlx-community/Qwen2.5-Coder-32B-Instruct-4bit";
        let models = || vec![model(name, WorkerState::Running), model("s", WorkerState::Running)];
        assert_eq!(
            shown(models(), Some(80)),
            "\
MODEL                           STATE     PID   UPTIME   MEMORY  REQUESTS  TOK/S
mlx-community/Qwen2.5-Coder-32B-Instruct-4bit
                                RUNNING  4711  1:02:05  2.35 GB        12    242
s                               RUNNING  4711  1:02:05  2.35 GB        12    242
mlxd 0.1.0, pid 99, up 0:01:01, 14.2 MB, serves http://127.0.0.1:11440/v1
"
        );
        let one_line = shown(models(), None);
        assert_eq!(
            one_line.lines().filter(|line| line.contains(name) && line.contains("RUNNING")).count(),
            1
        );
    }

    #[test]
    fn who_holds_memory_and_who_waits_for_it() {
        let mut holds = model("a", WorkerState::Running);
        holds.residence.promised_bytes = 3_200_000_000;
        holds.residence.leaves_in_s = Some(125);
        let mut stays = model("b", WorkerState::Running);
        (stays.queued, stays.running) = (1, 2);
        stays.residence.promised_bytes = 4_000_000_000;
        stays.residence.pinned = true;
        let mut waits = model("c", WorkerState::Stopped);
        waits.residence.waiting = 2;
        waits.residence.waits_for = Some("c needs 5.00 GB; a holds 3.00 GB (busy)".into());
        let mut status = server(vec![holds, stays, waits]);
        status.memory = MemoryStatus {
            budget_bytes: 8_000_000_000,
            promised_bytes: 7_200_000_000,
            free_bytes: 800_000_000,
            available_bytes: None,
            reserve_bytes: 0,
            pressure: "normal".into(),
            waiting: 2,
        };
        let text = table(&status, &status.models.iter().collect::<Vec<_>>(), Some(80));
        for line in [
            "    promised 3.20 GB, unloaded in 0:02:05\n",
            "    2 running, 1 waiting; promised 4.00 GB, pinned\n",
            "    2 wait for memory: c needs 5.00 GB; a holds 3.00 GB (busy)\n",
            "memory: 7.20 GB of 8.00 GB promised, 800 MB free, 2 waiting, pressure normal\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn nothing_loaded_says_what_to_do() {
        assert_eq!(
            shown(vec![], Some(80)),
            "Nothing is loaded. A model loads at its first request, or with `mlxctl start\nMODEL`.\n\
             mlxd 0.1.0, pid 99, up 0:01:01, 14.2 MB, serves http://127.0.0.1:11440/v1\n"
        );
        assert!(shown(vec![model("m", WorkerState::Exited)], None).contains("first request"));
        assert!(
            !shown(vec![model("m", WorkerState::Backoff)], None).contains("Nothing is loaded.")
        );
    }

    #[test]
    fn a_model_given_up_is_no_model_that_loads_by_itself() {
        let fatal = || model("m", WorkerState::Fatal);
        let told = "m was given up: `mlxctl why m` says why, `mlxctl start m` tries again.\n";
        let alone = shown(vec![fatal()], None);
        assert!(alone.contains(&format!("\nNothing is loaded. {told}")), "{alone}");
        assert!(!alone.contains("first request"), "{alone}");
        let beside = shown(vec![model("a", WorkerState::Running), fatal()], None);
        assert!(beside.contains(&format!("\n{told}")), "{beside}");
        let two = shown(vec![fatal(), model("n", WorkerState::Fatal)], None);
        assert!(two.contains("2 models were given up: `mlxctl why MODEL`"), "{two}");
    }

    #[test]
    fn an_mlxd_that_is_ending_says_so_first() {
        let mut status = server(vec![model("m", WorkerState::Stopped)]);
        status.shutting_down = true;
        let text = table(&status, &[], Some(80));
        assert!(text.starts_with("mlxd is shutting down: "), "{text}");
        assert!(!text.contains("first request"), "nothing loads any more: {text}");
    }

    #[test]
    fn exit_codes_are_supervisorctls() {
        let exit_for = |state| exit(&[&model("a", WorkerState::Running), &model("m", state)]);
        for state in [WorkerState::Stopped, WorkerState::Exited, WorkerState::Fatal] {
            assert_eq!(exit_for(state), Exit::StatusNotRunning);
        }
        for state in [
            WorkerState::Running,
            WorkerState::Starting,
            WorkerState::Backoff,
            WorkerState::Stopping,
        ] {
            assert_eq!(exit_for(state), Exit::Success);
        }
        assert_eq!(exit(&[]), Exit::Success);
    }

    #[test]
    fn a_name_cannot_play_tricks_on_the_terminal() {
        assert!(!shown(vec![model("a\u{1b}[2J", WorkerState::Running)], None).contains('\u{1b}'));
    }
}
