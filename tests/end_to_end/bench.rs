//! `mlxd bench` in its short forms: the shape of what it writes, and that its figures agree with
//! one another. How fast anything is, is not looked at.

use crate::fixture::{DEMO, config, python, repository};
use mlxd_testkit::FrontProcess;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output};
use tempfile::TempDir;

/// A front with the real worker, and a folder for reports.
struct Bench {
    front: FrontProcess,
    folder: TempDir,
}

impl Bench {
    fn start() -> Self {
        let front = FrontProcess::start(&config().with_real_worker());
        Self { front, folder: tempfile::tempdir().expect("a folder") }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, line: &[&str]) -> Output {
        let mut command = self.front.home().command("mlxd");
        command.arg("bench").args(line).env_remove("OPENAI_API_KEY").output().expect("mlxd runs")
    }

    /// Runs a benchmark and reads its report.
    fn report(&self, line: &[&str]) -> Value {
        let path = self.file("report.json");
        let file = path.to_str().expect("a plain path");
        let output = self.run(&[line, &["--quick", "--output", file]].concat());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line:?}: {errors}");
        let text = std::fs::read_to_string(&path).expect("a report");
        let report: Value = serde_json::from_str(&text).expect("JSON");
        check_shape(&report, line[0]);
        let shown = String::from_utf8_lossy(&output.stdout);
        for table in report["tables"].as_array().expect("tables") {
            assert!(shown.contains(table["title"].as_str().expect("a title")), "{shown}");
        }
        report
    }

    /// The same, of the front that runs.
    fn asked(&self, line: &[&str]) -> Value {
        let url = self.front.base_url().to_owned();
        let report = self.report(&[line, &["--model", DEMO, "--url", &url]].concat());
        let subject = &report["subject"];
        assert_eq!(subject["model"], DEMO);
        assert_eq!(subject["server"], url.as_str());
        assert_eq!(subject["architecture"], "qwen3", "the admin's socket was not found");
        let server = concat!("mlxd/", env!("CARGO_PKG_VERSION"));
        assert_eq!(report["versions"]["server"], server);
        let mlx = report["versions"]["mlx"].as_str().expect("MLX's version");
        assert!(mlx.split('.').count() >= 3, "{mlx}");
        assert_eq!(subject["token_count_source"], "usage");
        assert!(subject["temperature"].is_number(), "{subject}");
        assert!(["chat", "raw"].iter().any(|template| subject["template"] == **template));
        assert!(!subject["concurrency"].as_array().expect("levels").is_empty());
        report
    }
}

/// What every report has.
fn check_shape(report: &Value, benchmark: &str) {
    assert_eq!(report["format"], 1);
    assert_eq!(report["benchmark"], benchmark);
    assert_eq!(report["subject"]["quick"], true);
    assert_eq!(report["versions"]["mlxd"], env!("CARGO_PKG_VERSION"));
    for key in ["chip", "os", "architecture"] {
        assert!(report["machine"][key].as_str().is_some_and(|text| !text.is_empty()), "{key}");
    }
    assert!(report["machine"]["cores"].as_u64().is_some_and(|cores| cores > 0));
    let tables = report["tables"].as_array().expect("tables");
    assert!(!tables.is_empty());
    for table in tables {
        let rows = table["rows"].as_array().expect("rows");
        assert!(!rows.is_empty(), "{table}");
        for column in table["columns"].as_array().expect("columns") {
            let key = column["key"].as_str().expect("a key");
            let told = rows.iter().any(|row| row.get(key).is_some());
            // Nobody knows every chip.
            assert!(told || key == "share_percent", "nothing in {key}: {table}");
        }
    }
}

fn row(report: &Value, table: usize, row: usize) -> &Value {
    &report["tables"][table]["rows"][row]
}

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"))
}

#[track_caller]
fn near(got: f64, expected: f64) {
    assert!((got - expected).abs() <= expected.abs() * 1e-6, "{got} is not {expected}");
}

#[test]
fn many_prompts_at_once_add_up() {
    let bench = Bench::start();
    let report = bench.asked(&["llm"]);
    let row = row(&report, 0, 0);
    let (seconds, generated) = (number(row, "seconds"), number(row, "completion_tokens"));
    assert_eq!((number(row, "prompts"), generated), (4.0, 64.0));
    near(number(row, "tokens_per_s"), generated / seconds);
    near(number(row, "throughput_per_s"), (generated + number(row, "prompt_tokens")) / seconds);
    near(number(row, "prompts_per_s"), 4.0 / seconds);
    assert_eq!(report["samples"].as_array().expect("samples").len(), 4);
}

#[test]
fn single_batch_and_stream_agree_with_their_samples() {
    let bench = Bench::start();
    let single = bench.asked(&["single"]);
    let first = row(&single, 0, 0);
    assert_eq!((number(first, "runs"), number(first, "completion_tokens")), (2.0, 64.0));
    let samples = single["samples"].as_array().expect("samples");
    let firsts: f64 = samples.iter().map(|sample| number(sample, "first_s")).sum();
    near(number(first, "ttft_mean_ms"), firsts / 2.0 * 1000.0);
    let each = |sample: &Value| (number(sample, "seconds") - number(sample, "first_s")) / 31.0;
    let each: f64 = samples.iter().map(each).sum();
    near(number(first, "tpot_mean_ms"), each / 2.0 * 1000.0);
    assert!(number(row(&single, 1, 0), "memory_gb") > 0.0);

    let batch = bench.asked(&["batch"]);
    assert_eq!(batch["subject"]["concurrency"], json!([1, 5]));
    let speedup = row(&batch, 0, 0);
    near(
        number(speedup, "speedup"),
        number(speedup, "batch_per_s") / number(speedup, "single_per_s"),
    );
    let load = row(&batch, 1, 0);
    near(number(load, "requests_per_s"), 5.0 / number(load, "seconds"));

    let stream = bench.asked(&["stream"]);
    let row = row(&stream, 0, 0);
    assert_eq!(number(row, "tokens"), 24.0);
    assert!((1.0..=24.0).contains(&number(row, "deltas")));
}

#[test]
fn serve_has_a_row_for_every_level() {
    let bench = Bench::start();
    let report = bench.asked(&["serve", "--concurrency", "1,3", "--ttft-ms", "600000"]);
    assert_eq!(report["subject"]["concurrency"], json!([1, 3]));
    for (at, level) in [1.0, 3.0].into_iter().enumerate() {
        let (latency, rates) = (row(&report, 0, at), row(&report, 1, at));
        assert_eq!(number(latency, "concurrency"), level);
        assert!(number(latency, "ttft_p50_ms") <= number(latency, "ttft_p99_ms"));
        assert!(number(latency, "itl_p50_ms") <= number(latency, "itl_p99_ms"));
        assert_eq!((number(rates, "requests"), number(rates, "failed")), (level * 2.0, 0.0));
        assert!(number(rates, "goodput_per_s") <= number(rates, "requests_per_s") + 1e-9);
        assert!(number(rates, "throughput_per_s") > number(rates, "generation_per_s"));
    }
    assert_eq!(report["plots"].as_array().expect("plots").len(), 3);
}

#[test]
fn a_server_is_started_when_none_is_named_and_the_direct_leg_finds_one_that_runs() {
    let bench = Bench::start();
    let report = bench.report(&["stream"]);
    assert_eq!(report["subject"]["model"], DEMO);
    assert!(report["subject"].get("server").is_none());
    let report = bench.asked(&["overhead"]);
    let cases = report["tables"][0]["rows"].as_array().expect("cases");
    let tokens: Vec<_> = cases.iter().map(|case| number(case, "tokens")).collect();
    assert_eq!(tokens, [50.0, 100.0, 200.0]);
    for case in cases {
        let overhead = 1.0 - number(case, "server_per_s") / number(case, "direct_per_s");
        assert!((number(case, "overhead_percent") - overhead * 100.0).abs() < 1e-6, "{case}");
    }
}

#[test]
fn what_needs_no_server_is_measured_in_a_worker_of_its_own() {
    let bench = Bench::start();
    let detok = bench.report(&["detok"]);
    let rows = detok["tables"][0]["rows"].as_array().expect("rows");
    let tokens: Vec<_> = rows.iter().map(|row| number(row, "tokens")).collect();
    assert_eq!(tokens, [8.0, 103.0, 511.0, 1191.0, 2381.0, 4761.0]);
    assert!(rows.iter().all(|row| row["same_text"] == "yes"), "{detok}");

    let bandwidth = bench.report(&["bandwidth", "--chip-bandwidth", "1000"]);
    let first = row(&bandwidth, 0, 0);
    let best = number(first, "copy_gb_s").max(number(first, "read_gb_s"));
    near(number(first, "share_percent"), best / 10.0);
    assert_eq!(bandwidth["subject"]["backend"], "cpu");
    let mlx = bandwidth["versions"]["mlx"].as_str().expect("MLX's version");
    assert!(mlx.split('.').count() >= 3, "{mlx}");

    let attention = bench.report(&["attention"]);
    for at in 0..2 {
        let row = row(&attention, 0, at);
        near(number(row, "speedup"), number(row, "naive_ms") / number(row, "fused_ms"));
        assert!(number(row, "difference") < 1e-3);
    }

    let forward = bench.report(&["forward"]);
    let first = row(&forward, 0, 0);
    near(number(first, "tokens_per_s"), number(first, "passes_per_s") * number(first, "length"));
    assert_eq!(forward["subject"]["architecture"], "qwen3");

    let memory = bench.report(&["memory"]);
    let (short, long) = (row(&memory, 0, 0), row(&memory, 0, 2));
    assert!(number(long, "state_mb") > number(short, "state_mb"), "{memory}");
    assert!(number(long, "state_mb") >= number(long, "formula_mb"), "{memory}");
    assert!(memory["notes"].to_string().contains("R² = "), "{memory}");
}

#[test]
fn what_the_server_keeps_of_prompts_is_found_again() {
    let bench = Bench::start();
    let report = bench.asked(&["prefix-cache"]);
    let steps = report["tables"][0]["rows"].as_array().expect("steps");
    let said: Vec<_> = steps.iter().map(|step| step["actual"].as_str().expect("an end")).collect();
    let published = ["MISS", "HIT", "MISS", "HIT"];
    assert_eq!(said[..4], published, "{report}");
    assert!(steps.iter().all(|step| step["as_expected"] == "yes"), "{report}");
    for step in steps {
        assert!(number(step, "cached_tokens") < number(step, "prompt_tokens"), "{step}");
    }
    let together = row(&report, 1, 0);
    let saved: f64 = steps.iter().map(|step| number(step, "cached_tokens")).sum();
    near(number(together, "saved_tokens"), saved);
    near(number(together, "hit_rate_percent"), 60.0);

    let paged = bench.asked(&["paged-cache"]);
    let (apart, shared) = (row(&paged, 0, 0), row(&paged, 0, 1));
    assert_eq!(number(apart, "hits"), 0.0, "{paged}");
    // The second round at least; the first, as far as its prompts did not run side by side.
    assert!((3.0..6.0).contains(&number(shared, "hits")), "{paged}");
    assert!(number(shared, "saved_tokens") > 3.0 * number(apart, "saved_tokens"), "{paged}");
    assert!(number(shared, "blocks") < number(apart, "blocks"), "{paged}");
    assert!(number(shared, "blocks_shared") > 0.0, "{paged}");
    near(number(shared, "speedup"), number(apart, "seconds") / number(shared, "seconds"));
}

#[test]
fn memory_that_shared_beginnings_save_is_the_honest_figure() {
    let bench = Bench::start();
    let report = bench.report(&["cache-memory"]);
    let rows = report["tables"][0]["rows"].as_array().expect("scenarios");
    assert_eq!(rows.len(), 3);
    for row in rows {
        let (ours, theirs) =
            (number(row, "as_published_percent"), number(row, "corrected_percent"));
        assert!((ours - theirs).abs() < 1.0, "{row}");
        assert!(number(row, "memory_saved_percent") >= ours - 1.0, "{row}");
        assert!(number(row, "blocks") < number(row, "blocks_apart"), "{row}");
    }
}

#[test]
fn packed_keys_and_values_are_judged_against_full_precision() {
    let bench = Bench::start();
    let report = bench.report(&["kv-quant"]);
    let (speed, quality) = (&report["tables"][0]["rows"], &report["tables"][1]["rows"]);
    let forms: Vec<_> = speed.as_array().expect("forms").iter().map(|row| &row["form"]).collect();
    assert_eq!(forms, ["full", "full", "8-bit", "8-bit", "4-bit", "4-bit"]);
    for (index, bytes) in
        [(1, 4 * 2 * 4 * 32 * 4), (3, 4 * 2 * 4 * (32 + 8)), (5, 4 * 2 * 4 * (16 + 8))]
    {
        let row = row(&report, 0, index);
        // 4 layers, 4 heads of 32 as float32; packed in groups of 32, each with a scale and a bias.
        assert_eq!(number(row, "bytes_per_token"), f64::from(bytes), "{report}");
        near(number(row, "kv_saved_percent"), (1.0 - f64::from(bytes) / 4096.0) * 100.0);
        near(
            number(row, "of_full"),
            number(row, "tokens_per_s") / number(&speed[1], "tokens_per_s"),
        );
        assert!(number(row, "state_mb") * 1e6 >= number(row, "length") * f64::from(bytes), "{row}");
        assert!(number(row, "peak_mb") >= number(row, "state_mb"), "{row}");
    }
    assert!(number(&speed[5], "state_mb") < number(&speed[3], "state_mb"), "{report}");
    assert!(number(&speed[3], "state_mb") < number(&speed[1], "state_mb"), "{report}");
    let (eight, four) = (&quality[0], &quality[1]);
    for row in [eight, four] {
        assert_eq!(number(row, "tokens"), 32.0, "{report}");
        assert!(number(row, "divergence") > 0.0, "nothing is packed: {report}");
        assert!(number(row, "divergence_max") >= number(row, "divergence"), "{row}");
        assert!(number(row, "agreeing_percent") <= 100.0, "{row}");
    }
    assert!(number(four, "divergence") > 4.0 * number(eight, "divergence"), "{report}");
    assert!(number(eight, "agreeing_percent") > 90.0, "{report}");
}

#[test]
fn models_are_loaded_predicted_and_swapped() {
    let bench = Bench::start();
    let made = Command::new(python())
        .arg(repository().join("benches/checkpoints.py"))
        .arg(bench.folder.path())
        .args(["--shapes", "1M"])
        .output()
        .expect("Python runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let other = bench.file("1M");
    let models = format!("{DEMO},{}", other.display());

    let load = bench.report(&["load", "--models", &models]);
    let tables = load["tables"].as_array().expect("tables");
    assert_eq!(tables.len(), 3, "no fits: {load}");
    for row in [row(&load, 0, 0), row(&load, 0, 1)] {
        assert!(number(row, "load_s") >= number(row, "weights_s") + number(row, "kernels_s"));
        assert!(number(row, "active_mb") >= number(row, "weights_mb"), "{row}");
        assert!(number(row, "process_peak_mb") >= number(row, "process_mb"), "{row}");
    }
    // Two points make a line, here with float32 for every parameter.
    let memory = row(&load, 1, 1);
    assert!((number(memory, "slope") - 4.0).abs() < 0.2, "{load}");
    near(number(memory, "r_squared"), 1.0);
    let lengths: Vec<_> = tables[2]["rows"].as_array().expect("lengths").iter().collect();
    assert_eq!(lengths.len(), 6);
    assert!(number(lengths[2], "with_model_mb") > number(lengths[0], "with_model_mb"));

    let admission = bench.report(&["admission", "--models", other.to_str().expect("a plain path")]);
    for bar in admission["tables"][0]["rows"].as_array().expect("bars") {
        let holds = number(bar, "found") <= number(bar, "bar");
        assert_eq!(bar["holds"], if holds { "yes" } else { "no" }, "{bar}");
    }
    let (formula, measured) = (row(&admission, 1, 0), row(&admission, 1, 1));
    assert_eq!((number(formula, "shapes"), number(measured, "shapes")), (2.0, 2.0));
    for row in [formula, measured] {
        assert!(number(row, "lowest_percent") <= number(row, "highest_percent"), "{row}");
        let wrong = number(row, "false_admits_percent") + number(row, "false_rejects_percent");
        assert!((0.0..=100.0).contains(&wrong), "{row}");
    }
    assert_eq!(admission["samples"].as_array().expect("samples").len(), 4);

    let swap = bench.report(&["swap", "--model", other.to_str().expect("a plain path")]);
    let rows = swap["tables"][0]["rows"].as_array().expect("swaps");
    let kind = |row: &Value| (number(row, "resident"), row["leaves"] == "yes");
    let warm = rows.iter().filter(|row| row["page_cache"] == "warm");
    let kinds: Vec<_> = warm.map(kind).collect();
    assert_eq!(kinds, [(0.0, false), (1.0, false), (1.0, true), (2.0, true)], "{swap}");
    assert!(rows.iter().all(|row| number(row, "first_ms") > 0.0), "{swap}");
    for row in swap["tables"][1]["rows"].as_array().expect("parts") {
        let parts = ["spawn_ms", "device_ms", "weights_ms", "kernels_ms", "first_token_ms"];
        near(number(row, "together_ms"), parts.iter().map(|part| number(row, part)).sum());
    }
}

#[test]
fn reports_are_compared_and_a_loss_can_fail() {
    let bench = Bench::start();
    let report = bench.report(&["forward"]);
    let mut slower = report.clone();
    let rate = number(row(&report, 0, 0), "passes_per_s");
    slower["tables"][0]["rows"][0]["passes_per_s"] = json!(rate / 2.0);
    let write = |name: &str, report: &Value| {
        std::fs::write(bench.file(name), report.to_string()).expect("written");
        bench.file(name).to_string_lossy().into_owned()
    };
    let (before, after) = (write("a.json", &report), write("b.json", &slower));
    let output = bench.run(&["compare", &before, &after]);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && shown.contains("worse by 100.0 %"), "{shown}");
    assert!(bench.run(&["compare", &before, &before, "--worse-than", "0"]).status.success());
    let output = bench.run(&["compare", &before, &after, "--worse-than", "10"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("1 of "), "{errors}");
}

#[test]
fn all_writes_a_page_with_pictures() {
    let bench = Bench::start();
    let page = bench.file("page.md");
    let path = page.to_str().expect("a plain path");
    let line = ["all", "--quick", "--report", path, "--only", "serve,detok"];
    let output = bench.run(&line);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(&page).expect("a page");
    assert!(text.contains("## serve") && text.contains("## detok"), "{text}");
    assert!(!text.contains("## llm"), "{text}");
    let picture = std::fs::read_to_string(bench.file("page/serve-1.svg")).expect("a picture");
    assert!(text.contains("(page/serve-1.svg)") && picture.contains("<polyline"), "{text}");
    let reports = std::fs::read_to_string(bench.file("page/report.json")).expect("figures");
    let reports: Value = serde_json::from_str(&reports).expect("JSON");
    assert_eq!(reports["reports"].as_array().expect("reports").len(), 2);
    let output = bench.run(&["all", "--only", "nothing", "--report", path]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("no benchmark nothing"), "{errors}");
}

/// A server of somebody else: no usage, reasoning first, a key wanted.
fn foreign(stream: TcpStream) {
    let mut lines = BufReader::new(stream.try_clone().expect("a second handle"));
    let (mut first, mut length, mut key) = (String::new(), 0, false);
    lines.read_line(&mut first).expect("a request");
    loop {
        let mut header = String::new();
        lines.read_line(&mut header).expect("a header");
        let header = header.trim().to_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        key |= header == "authorization: bearer secret";
        if header.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    lines.read_exact(&mut body).expect("a body");
    let (kind, body) = match first.split(' ').nth(1) {
        _ if !key => ("application/json", r#"{"error":{"message":"no key"}}"#.to_owned()),
        Some("/v1/models") => ("application/json", r#"{"data":[{"id":"theirs"}]}"#.to_owned()),
        _ => {
            let deltas = [json!({"reasoning_content": "Hm"}), json!({"content": "Yes"})];
            let event = |delta| format!("data: {}\n\n", json!({"choices": [{"delta": delta}]}));
            let events: String = deltas.into_iter().map(event).collect();
            ("text/event-stream", events + "data: [DONE]\n\n")
        }
    };
    let status = if key { "200 OK" } else { "401 Unauthorized" };
    let mut stream = stream;
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).expect("the client reads");
}

#[test]
fn another_server_is_asked_as_it_is() {
    let bench = Bench::start();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            foreign(stream.expect("a connection"));
        }
    });
    let refused = bench.run(&["serve", "--quick", "--url", &url]);
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && errors.contains("401"), "{errors}");
    let line = ["serve", "--url", &url, "--api-key", "secret", "--concurrency", "1"];
    let report = bench.report(&line);
    assert_eq!(report["subject"]["model"], "theirs");
    assert_eq!(report["subject"]["token_count_source"], "deltas");
    assert_eq!(number(row(&report, 1, 0), "tokens_per_delta"), 1.0);
    assert!(report["notes"].to_string().contains("no usage"), "{report}");
}
