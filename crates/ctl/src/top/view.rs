//! Draws the screen.

use super::screen::{Log, Screen};
use crate::events::{clock, told};
use crate::output::harmless;
use crate::status::wrapped;
use crate::units;
use jiff::tz::TimeZone;
use mlxd_protocol::admin::{Event, ModelStatus, Status, WorkerState};
use mlxd_protocol::bytes_in_short;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table, Wrap};

/// From so many columns on there are more of the table's.
const WIDE: u16 = 110;
/// Rows for events that the table leaves at the least, with their frame.
const EVENT_ROWS_MIN: u16 = 6;
/// Rows for why mlxd does not answer.
const HEAD_ROWS_MAX: usize = 4;
/// Above what mlxd said before it fell silent.
const LAST_SEEN: &str = " mlxd does not answer; this is what was seen last:";
/// A name is never given more columns than this, so that the figures stay near.
const NAME_WIDTH_MAX: usize = 64;
/// Nor, where there is room, less than this.
const NAME_WIDTH_MIN: usize = 16;
const KEYS: &str = " ↑↓ select   s start   x stop   r restart   t log   q quit";
const LOG_KEYS: &str = " ↑↓ PgUp PgDn scroll   End follow   q back";

/// Draws everything.
pub(super) fn draw(frame: &mut Frame, screen: &mut Screen) {
    let area = frame.area();
    if let Some(log) = &mut screen.log {
        return draw_log(frame, area, log);
    }
    let models = u16::try_from(screen.models().len()).unwrap_or(u16::MAX);
    let trouble = trouble(screen, area.width);
    let head_rows = trouble.as_ref().map_or(1, |told| told.len().clamp(1, HEAD_ROWS_MAX) as u16);
    let rows = Layout::vertical([
        Constraint::Length(head_rows),
        Constraint::Length(1),
        Constraint::Length(1),
        // The table's head and rows; at least the sentence that there is none.
        Constraint::Max(models.saturating_add(1).max(3)),
        Constraint::Length(2),
        Constraint::Min(EVENT_ROWS_MIN),
        Constraint::Length(1),
    ]);
    let [head, totals, _gap, table, note, events, keys] = rows.areas(area);
    match (&trouble, &screen.status) {
        (Some(told), status) => {
            let lines: Vec<Line> = told.iter().map(|line| Line::from(line.as_str())).collect();
            frame.render_widget(Paragraph::new(lines).red().bold(), head);
            if status.is_some() {
                frame.render_widget(Line::from(LAST_SEEN).bold(), totals);
            }
        }
        (None, status) => {
            draw_head(frame, head, status.as_ref());
            if let Some(status) = status {
                draw_totals(frame, totals, status, screen.machine_bytes);
            }
        }
    }
    draw_models(frame, table, screen);
    draw_note(frame, note, screen);
    if trouble.is_some() {
        // Green and full bars would look like life.
        let old = Rect { height: note.bottom().saturating_sub(table.y), ..table };
        frame.buffer_mut().set_style(old, Style::reset().dark_gray().dim());
    }
    draw_events(frame, events, screen);
    draw_last_line(frame, keys, screen);
}

/// Why mlxd does not answer, in lines that fit.
fn trouble(screen: &Screen, width: u16) -> Option<Vec<String>> {
    let told = harmless(screen.trouble.as_ref()?);
    let width = usize::from(width.saturating_sub(2)).max(1);
    let lines = wrapped(&told, Some(width));
    // A path may be longer than a line.
    let rows = lines.iter().flat_map(|line| cut(line, width));
    Some(rows.map(|row| format!(" {row}")).collect())
}

fn draw_head(frame: &mut Frame, area: Rect, status: Option<&Status>) {
    let line = match status {
        None => Line::from(" asking mlxd…"),
        Some(status) => Line::from(vec![
            Span::from(format!(" mlxd {}", status.server.version)).bold(),
            Span::from(if status.shutting_down { "  shutting down" } else { "" }).yellow().bold(),
            Span::from(format!(
                "  pid {}  up {}  {}  {}",
                status.server.pid,
                units::duration(status.uptime_s),
                bytes_in_short(status.memory_bytes),
                status.base_url
            )),
        ]),
    };
    frame.render_widget(line, area);
}

fn draw_totals(frame: &mut Frame, area: Rect, status: &Status, machine_bytes: u64) {
    let models = &status.models;
    let bytes: u64 = models.iter().filter_map(|model| model.memory_bytes).sum();
    let width = if area.width >= WIDE { 30 } else { 14 };
    let running: u32 = models.iter().map(|model| model.running).sum();
    let queued: u32 = models.iter().map(|model| model.queued).sum();
    let rate: f32 = models.iter().map(|model| model.tokens_per_s).sum();
    let line = Line::from(vec![
        Span::from(" models "),
        bar(bytes, machine_bytes, width),
        Span::from(format!(
            " {} of {}   {running} running, {queued} waiting   {} tok/s",
            bytes_in_short(bytes),
            bytes_in_short(machine_bytes),
            units::rate(rate)
        )),
    ]);
    frame.render_widget(line, area);
}

/// As much of `width` as `part` is of `whole`.
fn bar(part: u64, whole: u64, width: usize) -> Span<'static> {
    let share = if whole == 0 { 0.0 } else { (part as f64 / whole as f64).clamp(0.0, 1.0) };
    // What is there at all is seen.
    let least = usize::from(part > 0);
    let full = ((share * width as f64).round() as usize).clamp(least, width);
    let text = "█".repeat(full) + &"░".repeat(width - full);
    let color = match share {
        share if share > 0.85 => Color::Red,
        share if share > 0.6 => Color::Yellow,
        _ => Color::Green,
    };
    Span::styled(text, color)
}

/// A column: its head, its width, and what a model has in it.
struct Column {
    head: &'static str,
    width: u16,
    cell: fn(&ModelStatus, &Shown) -> Cell<'static>,
}

/// What cells need to know of the table.
struct Shown {
    name_width: usize,
    bar_width: usize,
    machine_bytes: u64,
}

/// All but the model's name.
fn figures(is_wide: bool) -> Vec<Column> {
    let column = |head, width, cell| Column { head, width, cell };
    let mut columns = vec![
        column("STATE", 8, state_cell),
        column("MEMORY", if is_wide { 28 } else { 14 }, memory_cell),
        column("RUN", 3, |model, _| count(model.running, 3)),
        column("WAIT", 4, |model, _| count(model.queued, 4)),
        column("TOK/S", 6, rate_cell),
        column("REQUESTS", 8, |model, _| right(model.requests_total.to_string(), 8)),
        column("UPTIME", 8, uptime_cell),
    ];
    if is_wide {
        columns.push(column("PHASE", 8, |model, _| model.phase.clone().unwrap_or_default().into()));
        columns.push(column("DEATHS", 6, |model, _| right(model.deaths.to_string(), 6)));
        columns.push(column("PID", 8, |model, _| {
            right(model.pid.map(|pid| pid.to_string()).unwrap_or_default(), 8)
        }));
    }
    columns
}

fn name_cell(model: &ModelStatus, shown: &Shown) -> Cell<'static> {
    shortened(&harmless(&model.name), shown.name_width).into()
}

/// The end of a name says most.
fn shortened(name: &str, width: usize) -> String {
    let length = name.chars().count();
    if length <= width {
        return name.to_owned();
    }
    let kept = name.chars().skip(length + 1 - width.max(1));
    std::iter::once('…').chain(kept).collect()
}

/// Both ends of a name, where whose it is counts as much.
fn shortened_inside(name: &str, width: usize) -> String {
    let length = name.chars().count();
    if length <= width {
        return name.to_owned();
    }
    let kept = width.saturating_sub(1);
    let (front, back) = (kept / 2, kept - kept / 2);
    let ends = name.chars().take(front).chain(['…']);
    ends.chain(name.chars().skip(length - back)).collect()
}

fn state_cell(model: &ModelStatus, _: &Shown) -> Cell<'static> {
    let color = match model.state {
        WorkerState::Running => Color::Green,
        WorkerState::Starting | WorkerState::Stopping => Color::Yellow,
        WorkerState::Backoff => Color::LightRed,
        WorkerState::Fatal => Color::Red,
        WorkerState::Stopped | WorkerState::Exited => Color::DarkGray,
    };
    Cell::from(model.state.name()).style(Style::from(color))
}

/// While loading how far it is, else what it holds of the machine's memory.
fn memory_cell(model: &ModelStatus, shown: &Shown) -> Cell<'static> {
    let (bar, text) = match (model.load_progress, model.memory_bytes) {
        (Some(progress), _) => {
            let per_mille = (progress.clamp(0.0, 1.0) * 1000.0) as u64;
            let bar = bar(per_mille, 1000, shown.bar_width).style(Color::Cyan);
            (bar, format!("{} %", per_mille / 10))
        }
        (None, Some(bytes)) => {
            (bar(bytes, shown.machine_bytes, shown.bar_width), bytes_in_short(bytes))
        }
        (None, None) => return Cell::from(""),
    };
    Line::from(vec![bar, Span::from(format!(" {text:>7}"))]).into()
}

fn rate_cell(model: &ModelStatus, _: &Shown) -> Cell<'static> {
    let is_there = model.pid.is_some();
    right(if is_there { units::rate(model.tokens_per_s) } else { String::new() }, 6)
}

fn uptime_cell(model: &ModelStatus, _: &Shown) -> Cell<'static> {
    right(model.uptime_s.map(units::duration).unwrap_or_default(), 8)
}

/// Nothing for 0, so that what is at work stands out.
fn count(count: u32, width: usize) -> Cell<'static> {
    right(if count == 0 { String::new() } else { count.to_string() }, width)
}

fn right(text: String, width: usize) -> Cell<'static> {
    format!("{text:>width$}").into()
}

fn draw_models(frame: &mut Frame, area: Rect, screen: &mut Screen) {
    if screen.status.is_some() && screen.models().is_empty() {
        let text = "Nothing is loaded. A model loads at its first request, or with\n\
                    `mlxctl start MODEL`.";
        let empty = Paragraph::new(text).block(Block::new().padding(padding()));
        return frame.render_widget(empty, area);
    }
    let is_wide = area.width >= WIDE;
    let mut columns = figures(is_wide);
    let others: u16 = columns.iter().map(|column| column.width + 1).sum();
    let names = screen.models().iter().map(|model| model.name.chars().count());
    let longest = names.max().unwrap_or(0).clamp(NAME_WIDTH_MIN, NAME_WIDTH_MAX) as u16;
    let name_width = area.width.saturating_sub(others + 1).min(longest);
    columns.insert(0, Column { head: "MODEL", width: name_width, cell: name_cell });
    let shown = Shown {
        name_width: usize::from(name_width),
        bar_width: if is_wide { 20 } else { 6 },
        machine_bytes: screen.machine_bytes,
    };
    let rows: Vec<Row> = screen
        .models()
        .iter()
        .map(|model| Row::new(columns.iter().map(|column| (column.cell)(model, &shown))))
        .collect();
    let widths = columns.iter().map(|column| Constraint::Length(column.width));
    let widths: Vec<Constraint> = widths.collect();
    let heads = columns.iter().map(|column| match column.head {
        "MODEL" | "STATE" | "MEMORY" | "PHASE" => Cell::from(column.head),
        // Over numbers, which stand at the right.
        head => right(head.to_owned(), column.width.into()),
    });
    let table = Table::new(rows, widths)
        .column_spacing(1)
        .header(Row::new(heads).style(Modifier::BOLD))
        .row_highlight_style(Modifier::REVERSED)
        .block(Block::new().padding(padding()));
    frame.render_stateful_widget(table, area, &mut screen.table);
}

fn padding() -> ratatui::widgets::Padding {
    ratatui::widgets::Padding::left(1)
}

/// More of the selected model: its whole name where it was cut, why it is as it is.
fn draw_note(frame: &mut Frame, area: Rect, screen: &Screen) {
    let Some(model) = screen.selected() else {
        return;
    };
    let mut parts = vec![model.name.clone()];
    parts.extend(model.architecture.clone());
    parts.extend(model.quantization.clone());
    parts.extend(model.context_tokens.map(|tokens| format!("{tokens} tokens of context")));
    parts.extend(model.reason.clone());
    let text = harmless(&parts.join(" · "));
    let note = Paragraph::new(text).wrap(Wrap { trim: true }).dim();
    frame.render_widget(note.block(Block::new().padding(padding())), area);
}

fn draw_events(frame: &mut Frame, area: Rect, screen: &Screen) {
    let block = Block::bordered().title(" last events ");
    let inner = block.inner(area);
    let zone = TimeZone::system();
    let name_width = (usize::from(inner.width) / 3).max(NAME_WIDTH_MIN);
    let left_out = screen.events.len().saturating_sub(usize::from(inner.height));
    let lines: Vec<Line> = screen.events[left_out..]
        .iter()
        .map(|event| {
            Line::from(vec![
                Span::from(format!("{} ", clock(event, &zone))).dim(),
                Span::from(harmless(&event_line(event, name_width))),
            ])
        })
        .collect();
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

/// An event as a sentence, whose model's name leaves room for what happened.
fn event_line(event: &Event, name_width: usize) -> String {
    let model = event.model.as_ref().map(|name| shortened_inside(name, name_width));
    told(&Event { model, ..event.clone() })
}

fn draw_last_line(frame: &mut Frame, area: Rect, screen: &Screen) {
    let line = match (&screen.question, &screen.message) {
        (Some((deed, model)), _) => {
            let running = screen.selected().map_or(0, |model| model.running);
            let told = match running {
                0 => String::new(),
                1 => ", which works on 1 request".to_owned(),
                many => format!(", which works on {many} requests"),
            };
            let model = harmless(&shortened_inside(model, usize::from(area.width) / 2));
            Line::from(format!(" {} {model}{told}? y / n", deed.name())).yellow().bold()
        }
        (None, Some(message)) if area.width > 100 => Line::from(vec![
            Span::from(KEYS).dim(),
            Span::from(format!("     {}", harmless(message))).bold(),
        ]),
        (None, Some(message)) => Line::from(format!(" {}", harmless(message))).bold(),
        (None, None) => Line::from(KEYS).dim(),
    };
    frame.render_widget(line, area);
}

/// Draws the log's end, and corrects how far back it is looked at.
fn draw_log(frame: &mut Frame, area: Rect, log: &mut Log) {
    let [shown, keys] = Layout::vertical([Constraint::Fill(1), Constraint::Length(1)]).areas(area);
    let block = Block::bordered().title(format!(" log of {} ", harmless(&log.model)));
    let inner = block.inner(shown);
    let (width, height) = (usize::from(inner.width.max(1)), usize::from(inner.height));
    let rows: Vec<String> = log
        .text
        .lines()
        .flat_map(|line| cut(&harmless(line).replace('\t', "    "), width))
        .collect();
    log.back = log.back.min(rows.len().saturating_sub(height));
    let end = rows.len() - log.back;
    let text: Vec<Line> = match rows.is_empty() {
        true => vec![Line::from("(nothing yet)").dim()],
        false => {
            rows[end.saturating_sub(height)..end].iter().map(|r| Line::from(r.as_str())).collect()
        }
    };
    frame.render_widget(Paragraph::new(text).block(block), shown);
    frame.render_widget(Line::from(LOG_KEYS).dim(), keys);
}

/// A line in rows of at most `width` characters, one at the least.
fn cut(line: &str, width: usize) -> Vec<String> {
    let characters: Vec<char> = line.chars().collect();
    match characters.is_empty() {
        true => vec![String::new()],
        false => characters.chunks(width).map(|row| row.iter().collect()).collect(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::top::feed::News;
    use mlxd_protocol::admin::Happening;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::KeyCode;
    use serde_json::json;

    /// A front's answer with these models.
    pub(crate) fn look(models: &[(&str, &str)]) -> (Status, Vec<Event>) {
        let models: Vec<_> = models
            .iter()
            .map(|(name, state)| {
                let mut model = json!({
                    "name": name, "state": state, "requests_total": 1234, "tokens_total": 1,
                    "running": 0, "queued": 0, "tokens_per_s": 0.0, "deaths": 0,
                });
                if *state == "RUNNING" {
                    for (key, value) in [
                        ("pid", json!(4711)),
                        ("uptime_s", json!(3725)),
                        ("memory_bytes", json!(8_000_000_000_u64)),
                        ("running", json!(8)),
                        ("queued", json!(3)),
                        ("tokens_per_s", json!(241.6)),
                        ("phase", json!("decode")),
                    ] {
                        model[key] = value;
                    }
                }
                if *state == "STARTING" {
                    model["load_progress"] = json!(0.42);
                }
                if *state == "FATAL" {
                    model["reason"] = json!("died 6 times within 300 s, the last time: killed");
                }
                model
            })
            .collect();
        let status = json!({
            "server": {"version": "0.1.0", "protocol": 1, "pid": 99}, "uptime_s": 61,
            "memory_bytes": 14_200_000, "base_url": "http://127.0.0.1:11440/v1", "models": models,
        });
        let event = |sequence| Event {
            sequence,
            unix_ms: 0,
            model: Some("m".into()),
            happening: Happening::WorkerSpawned { pid: sequence as u32 },
        };
        (serde_json::from_value(status).unwrap(), (1..=50).map(event).collect())
    }

    fn drawn(screen: &mut Screen, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, screen)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        (0..height)
            .map(|y| {
                let row: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
                row.trim_end().to_owned()
            })
            .collect()
    }

    fn screen(models: &[(&str, &str)]) -> Screen {
        let mut screen = Screen::new(32_000_000_000);
        screen.hear(News::Look(Ok(look(models))));
        screen
    }

    const SOME: [(&str, &str); 4] = [
        ("mlx-community/Qwen2.5-Coder-32B-Instruct-4bit", "RUNNING"),
        ("mlxd-demo", "STARTING"),
        ("old", "STOPPED"),
        ("sick", "FATAL"),
    ];

    #[test]
    fn at_80_by_24_everything_has_its_place() {
        let lines = drawn(&mut screen(&SOME), 80, 24);
        assert_eq!(
            lines[..9],
            [
                " mlxd 0.1.0  pid 99  up 0:01:01  14.2 MB  http://127.0.0.1:11440/v1",
                " models ████░░░░░░░░░░ 8.00 GB of 32.0 GB   8 running, 3 waiting   242 tok/s",
                "",
                " MODEL                 STATE    MEMORY         RUN WAIT  TOK/S REQUESTS   UPTIME",
                " …er-32B-Instruct-4bit RUNNING  ██░░░░ 8.00 GB   8    3    242     1234  1:02:05",
                " mlxd-demo             STARTING ███░░░    42 %                     1234",
                " old                   STOPPED                                     1234",
                " sick                  FATAL                                       1234",
                " mlx-community/Qwen2.5-Coder-32B-Instruct-4bit",
            ]
        );
        assert!(lines[10].starts_with("┌ last events ─"), "{}", lines[10]);
        assert!(lines[21].contains("m: worker started, pid 50"), "the newest is the last");
        assert_eq!(lines[23], KEYS);
        assert!(lines.iter().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn a_wide_screen_shows_whole_names_and_more_columns() {
        let lines = drawn(&mut screen(&SOME), 160, 40);
        let row = &lines[4];
        for part in [SOME[0].0, "decode", "4711", "█████░░░░░░░░░░░░░░░ 8.00 GB"]
        {
            assert!(row.contains(part), "{part} is not in {row}");
        }
        assert!(lines[3].ends_with("PHASE    DEATHS      PID"), "{}", lines[3]);
    }

    #[test]
    fn nothing_loaded_says_what_to_do() {
        let lines = drawn(&mut screen(&[]), 80, 24);
        assert!(lines.iter().any(|line| line.starts_with(" Nothing is loaded.")), "{lines:?}");
        let mut asking = Screen::new(0);
        assert_eq!(drawn(&mut asking, 80, 24)[0], " asking mlxd…");
    }

    #[test]
    fn a_front_that_is_gone_is_told_whole_above_a_faded_picture() {
        let mut screen = screen(&SOME);
        let gone = "mlxd is not running: there is no socket /run/user/1000/mlxd/with/a/long/way/to/mlxd.sock. Start it with `mlxd serve`";
        screen.hear(News::Look(Err(gone.into())));
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| draw(frame, &mut screen)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let lines = drawn(&mut screen, 80, 24);
        let told = format!("{}{}", lines[0], lines[1]);
        assert_eq!(told.split_whitespace().collect::<Vec<_>>().join(" "), gone);
        assert_eq!(lines[2], LAST_SEEN);
        assert!(lines[5].contains("RUNNING"), "{lines:?}");
        let faded = |x, y| {
            let cell = &buffer[(x, y)];
            (cell.fg, cell.modifier) == (Color::DarkGray, Modifier::DIM)
        };
        assert!((0..80).all(|x| (4..9).all(|y| faded(x, y))), "no colours of life");
        screen.hear(News::Look(Ok(look(&SOME))));
        assert!(drawn(&mut screen, 80, 24)[0].starts_with(" mlxd 0.1.0"), "it is back");
        let mut never = Screen::new(0);
        never.hear(News::Look(Err(gone.into())));
        assert!(!drawn(&mut never, 80, 24).iter().any(|line| line == LAST_SEEN));
    }

    #[test]
    fn on_a_very_wide_screen_figures_stay_near_the_names() {
        let lines = drawn(&mut screen(&SOME), 200, 24);
        assert!(lines[4].contains(&format!("{} RUNNING", SOME[0].0)), "{}", lines[4]);
        let long = "o/".to_owned() + &"n".repeat(150);
        let lines = drawn(&mut screen(&[(&long, "RUNNING")]), 200, 24);
        let before = lines[4].split("RUNNING").next().unwrap();
        assert_eq!(before.chars().count(), 1 + NAME_WIDTH_MAX + 1, "{}", lines[4]);
    }

    #[test]
    fn long_names_leave_room_for_what_happened() {
        let name = "mlx-community/Qwen3-Coder-480B-A35B-Instruct-a-very-long-name-4bit";
        let mut screen = screen(&[(name, "RUNNING")]);
        screen.events.iter_mut().for_each(|event| event.model = Some(name.into()));
        let lines = drawn(&mut screen, 80, 24);
        assert!(lines[21].contains(" mlx-communit…ong-name-4bit: worker started"), "{}", lines[21]);
        screen.press(KeyCode::Char('x').into());
        let asked = &drawn(&mut screen, 80, 24)[23];
        assert!(asked.ends_with("which works on 8 requests? y / n"), "{asked}");
    }

    #[test]
    fn questions_reasons_and_messages_are_shown() {
        let mut screen = screen(&SOME);
        screen.press(KeyCode::Char('x').into());
        let lines = drawn(&mut screen, 80, 24);
        assert!(lines[23].starts_with(" stop mlx-community/"), "{}", lines[23]);
        assert!(lines[23].contains("which works on 8 requests"), "{}", lines[23]);
        screen.press(KeyCode::Char('n').into());
        screen.press(KeyCode::End.into());
        let lines = drawn(&mut screen, 80, 24);
        assert_eq!(lines[8], " sick · died 6 times within 300 s, the last time: killed");
        screen.message = Some("sick: started".into());
        assert_eq!(drawn(&mut screen, 80, 24)[23], " sick: started");
    }

    #[test]
    fn many_models_scroll_and_leave_room_for_events() {
        let names: Vec<String> = (0..60).map(|n| format!("model-{n:02}")).collect();
        let models: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), "STOPPED")).collect();
        let mut screen = screen(&models);
        screen.press(KeyCode::End.into());
        let lines = drawn(&mut screen, 80, 24);
        assert!(lines.iter().any(|line| line.contains("model-59")), "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("last events")), "{lines:?}");
    }

    #[test]
    fn a_log_fills_the_screen_and_no_size_is_too_small() {
        let mut screen = screen(&SOME);
        screen.press(KeyCode::Char('t').into());
        let mut text: Vec<String> = (1..=99).map(|n| format!("line {n}")).collect();
        text.push(format!("line 100\u{1b}[2J{}end", " ".repeat(80)));
        screen.hear(News::Log { model: SOME[0].0.into(), text: Ok(text.join("\n")) });
        let lines = drawn(&mut screen, 80, 24);
        assert!(lines[20].contains("line 100\u{FFFD}[2J"), "{}", lines[20]);
        assert!(lines[21].contains("end"), "a long line goes on below: {}", lines[21]);
        screen.press(KeyCode::PageUp.into());
        assert!(drawn(&mut screen, 80, 24)[21].contains("line 91"));
        for _ in 0..100 {
            screen.press(KeyCode::PageUp.into());
        }
        assert!(drawn(&mut screen, 80, 24)[1].contains("line 1"), "never above the beginning");
        screen.press(KeyCode::Down.into());
        assert!(drawn(&mut screen, 80, 24)[1].contains("line 2"), "and back at once");
        for (width, height) in [(1, 1), (5, 2), (20, 5), (80, 3), (300, 100)] {
            drawn(&mut screen, width, height);
        }
        screen.press(KeyCode::Esc.into());
        for (width, height) in [(1, 1), (5, 2), (20, 5), (80, 3), (300, 100)] {
            drawn(&mut screen, width, height);
        }
    }
}
