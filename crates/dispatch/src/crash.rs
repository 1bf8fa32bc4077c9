//! Crash reports on disk: one folder per death, bounded in number and size.
//!
//! `<folder>/<model>/<milliseconds since 1970>/report.json` holds a [`CrashReport`]. What requests
//! said stays out of it unless the configuration asks for it.

use mlxd_protocol::admin::{CrashReport, Deed, RequestShape};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::journal::Journal;

/// Requests listed in one report.
const REQUESTS_MAX: usize = 64;

/// Where reports go, and how many.
#[derive(Debug, Clone)]
pub struct CrashFolder {
    /// The folder of all models' reports.
    pub folder: PathBuf,
    /// Reports kept for each model; the oldest go first.
    pub reports_max: usize,
    /// Bytes of a report; a longer one loses the prompts, then most of its timeline and standard
    /// error, then all of those, then requests.
    pub report_bytes_max: usize,
    /// Whether prompts are kept, as token ids.
    pub prompts: bool,
}

/// A request's shape at a death.
pub(crate) fn shape(journal: &Journal, running: bool, deaths: u32, prompt: bool) -> RequestShape {
    let ids = || journal.job.prompt.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    RequestShape {
        id: journal.job.trace.to_string(),
        prompt_tokens: journal.job.prompt.len() as u32,
        generated_tokens: journal.generated() as u32,
        max_tokens: journal.job.max_new,
        running,
        deaths,
        prompt: prompt.then(ids),
    }
}

/// Puts what dispatch knows into a report.
pub(crate) fn complete(
    report: &mut CrashReport,
    mut requests: Vec<RequestShape>,
    deeds: Vec<Deed>,
) {
    report.requests_left_out = requests.len().saturating_sub(REQUESTS_MAX) as u32;
    requests.truncate(REQUESTS_MAX);
    report.requests = requests;
    report.deeds.extend(deeds);
}

/// Takes the next thing out of a report that is too long. False: nothing is left to take.
fn shorten(report: &mut CrashReport, step: usize) -> bool {
    /// Kept at first of the timeline, and bytes of standard error.
    const LAST: (usize, usize) = (4, 1024);
    let keep = match step {
        0 => {
            report.requests.iter_mut().for_each(|request| request.prompt = None);
            return true;
        }
        1 => LAST,
        _ => (0, 0),
    };
    report.shortened = true;
    report.timeline.drain(..report.timeline.len().saturating_sub(keep.0));
    let tail = &mut report.stderr_tail;
    let from = tail.len().saturating_sub(keep.1);
    let from = (from..=tail.len()).find(|at| tail.is_char_boundary(*at)).unwrap_or(from);
    tail.drain(..from);
    if step > 2 {
        let kept = report.requests.len() / 2;
        report.requests_left_out += (report.requests.len() - kept) as u32;
        report.requests.truncate(kept);
        return kept > 0;
    }
    true
}

impl CrashFolder {
    /// Writes a report and removes what is over the limit. Blocks. Gives the report's folder.
    ///
    /// # Errors
    /// As for any file that is written.
    pub fn write(&self, report: &CrashReport) -> io::Result<PathBuf> {
        let mut text = serde_json::to_vec_pretty(report).map_err(io::Error::other)?;
        if text.len() > self.report_bytes_max {
            let (mut short, mut steps) = (report.clone(), 0..);
            while text.len() > self.report_bytes_max
                && steps.next().is_some_and(|step| shorten(&mut short, step))
            {
                text = serde_json::to_vec_pretty(&short).map_err(io::Error::other)?;
            }
        }
        let of_model = self.of_model(&report.model);
        let mut folder = of_model.join(report.unix_ms.to_string());
        let mut more = 0;
        while folder.exists() {
            more += 1;
            folder = of_model.join((report.unix_ms + more).to_string());
        }
        fs::create_dir_all(&folder)?;
        let draft = folder.join("report.json.new");
        fs::write(&draft, text)?;
        fs::rename(draft, folder.join("report.json"))?;
        for old in self.folders(&report.model).into_iter().skip(self.reports_max.max(1)) {
            fs::remove_dir_all(old)?;
        }
        Ok(folder)
    }

    /// The newest report of a model with its folder, and how many there are. Blocks.
    pub fn newest(&self, model: &str) -> (Option<(CrashReport, PathBuf)>, usize) {
        let folders = self.folders(model);
        let read = |folder: &PathBuf| {
            let text = fs::read(folder.join("report.json")).ok()?;
            Some((serde_json::from_slice(&text).ok()?, folder.clone()))
        };
        (folders.iter().find_map(read), folders.len())
    }

    /// A model's reports, the newest first.
    fn folders(&self, model: &str) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.of_model(model)) else { return Vec::new() };
        let number = |path: &Path| path.file_name()?.to_str()?.parse::<u64>().ok();
        let mut folders: Vec<_> =
            entries.flatten().map(|entry| entry.path()).filter(|p| number(p).is_some()).collect();
        folders.sort_by_key(|path| std::cmp::Reverse(number(path)));
        folders
    }

    fn of_model(&self, model: &str) -> PathBuf {
        // One path component, reversible for people: slashes become what no name may begin with.
        self.folder.join(model.replace('/', "--"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlxd_protocol::admin::{CRASH_REPORT_FORMAT, DeathCause, DeathEnd, Versions};

    fn report(model: &str, unix_ms: u64, stderr_bytes: usize) -> CrashReport {
        CrashReport {
            format: CRASH_REPORT_FORMAT,
            model: model.into(),
            unix_ms,
            incarnation: 1,
            pid: 2,
            uptime_ms: 3,
            end: DeathEnd::Unknown,
            cause: DeathCause::Itself,
            phase: None,
            phase_ms: None,
            architecture: None,
            quantization: None,
            requests: vec![],
            requests_left_out: 0,
            shortened: false,
            stderr_tail: "x".repeat(stderr_bytes),
            timeline: vec![],
            deaths: 1,
            deaths_recent: 1,
            deaths_max: 5,
            deeds: vec![],
            versions: Versions::default(),
        }
    }

    #[test]
    fn reports_are_bounded_in_number_and_size_and_the_newest_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let crashes = CrashFolder {
            folder: folder.path().join("crashes"),
            reports_max: 3,
            report_bytes_max: 4096,
            prompts: false,
        };
        assert_eq!(crashes.newest("a/b"), (None, 0));
        for at in [10, 30, 20, 30, 40] {
            crashes.write(&report("a/b", at, 10)).unwrap();
        }
        crashes.write(&report("other", 99, 10_000)).unwrap();
        let (newest, count) = crashes.newest("a/b");
        assert_eq!((newest.unwrap().0.unix_ms, count), (40, 3));
        let (long, _) = crashes.newest("other");
        let long = long.unwrap().0;
        assert_eq!(long.stderr_tail.len(), 1024, "too long a report loses what is long");
        assert!(long.shortened);
        let shape = RequestShape {
            id: "req_0123456789abcdef".into(),
            prompt_tokens: 1,
            generated_tokens: 2,
            max_tokens: 3,
            running: true,
            deaths: 1,
            prompt: Some("1 2 3".repeat(100)),
        };
        let many = CrashReport { requests: vec![shape; 60], ..report("many", 7, 10_000) };
        let written = crashes.write(&many).unwrap().join("report.json");
        assert!(fs::metadata(written).unwrap().len() <= 4096);
        let (many, _) = crashes.newest("many").0.unwrap();
        assert!(many.stderr_tail.is_empty() && many.requests[0].prompt.is_none());
        assert_eq!(many.requests.len() + many.requests_left_out as usize, 60);
    }
}
