//! What the hub says to one request.

use super::{HubCall, HubFault, HubFile, HubRequest, Revision, Shared};
use serde_json::json;

/// Which of the two addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Hub,
    Storage,
}

/// How much of a body is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Whole,
    Break(usize),
    Stall(usize),
    Hold(usize),
}

/// A response.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
    pub(super) ending: Ending,
}

impl Answer {
    fn new(status: u16, headers: Vec<(&'static str, String)>, body: Vec<u8>) -> Self {
        Self { status, headers, body, ending: Ending::Whole }
    }

    fn missing(code: &str) -> Self {
        Self::new(404, vec![("X-Error-Code", code.to_owned())], Vec::new())
    }
}

/// Answers a request that is no `CONNECT`.
pub(super) fn answer(shared: &Shared, request: &HubRequest, kind: Kind) -> Answer {
    let path = request.path.split('?').next().unwrap_or_default();
    if kind == Kind::Storage {
        // What the hub redirects to names the file as the hub does.
        return content(shared, request, path);
    }
    let token = shared.lock().token.clone();
    if token.is_some_and(|token| request.authorization != Some(format!("Bearer {token}"))) {
        return Answer::new(401, vec![("X-Error-Code", "RepoNotFound".into())], Vec::new());
    }
    match path.strip_prefix("/api/models/").and_then(|rest| rest.split_once("/revision/")) {
        Some((repository, revision)) => list(shared, repository, revision),
        None => content(shared, request, path),
    }
}

fn list(shared: &Shared, repository: &str, revision: &str) -> Answer {
    match shared.take_fault(&HubCall::List) {
        Some(HubFault::Status(status, headers)) => return Answer::new(status, headers, Vec::new()),
        Some(HubFault::Redirect(to)) => {
            return Answer::new(307, vec![("Location", to)], Vec::new());
        }
        Some(HubFault::BreakAfter(bytes)) => {
            let mut answer = Answer::new(200, Vec::new(), b"{}".to_vec());
            answer.ending = Ending::Break(bytes);
            return answer;
        }
        _ => {}
    }
    let state = shared.lock();
    let Some(revisions) = state.revisions.get(repository) else {
        return Answer::missing("RepoNotFound");
    };
    let Some(Revision { commit, files }) = revisions.get(revision) else {
        return Answer::missing("RevisionNotFound");
    };
    let siblings: Vec<_> = files.keys().map(|name| json!({"rfilename": name})).collect();
    let body = json!({"id": repository, "sha": commit, "siblings": siblings}).to_string();
    Answer::new(200, vec![("Content-Type", "application/json".into())], body.into_bytes())
}

/// `/REPOSITORY/resolve/COMMIT/FILE`, at either address.
fn content(shared: &Shared, request: &HubRequest, path: &str) -> Answer {
    let Some((commit, name, file)) = find(shared, path) else {
        return Answer::missing("EntryNotFound");
    };
    let is_head = request.method == "HEAD";
    let leads_on = file.is_large && !request.at_storage;
    let call = match is_head {
        true => HubCall::Head(name),
        false => HubCall::Get(name),
    };
    // A large file's bytes are the storage's to spoil.
    let fault = if leads_on && !is_head { None } else { shared.take_fault(&call) };
    if let Some(HubFault::Status(status, headers)) = fault {
        return Answer::new(status, headers, Vec::new());
    }
    if let Some(HubFault::Redirect(to)) = fault {
        return Answer::new(302, vec![("Location", to)], Vec::new());
    }
    let etag = format!("\"{}\"", file.etag());
    let mut headers = vec![("X-Repo-Commit", commit)];
    if leads_on {
        let storage = format!("http://localhost:{}{path}", shared.storage.port());
        headers.push(("Location", storage));
        headers.push(("X-Linked-ETag", etag));
        headers.push(("X-Linked-Size", file.bytes.len().to_string()));
        return Answer::new(302, headers, Vec::new());
    }
    headers.push(("ETag", etag));
    part(request, &file, fault, headers)
}

/// The bytes, or those of the range asked for, as spoiled as the fault wants them.
fn part(
    request: &HubRequest,
    file: &HubFile,
    fault: Option<HubFault>,
    mut headers: Vec<(&'static str, String)>,
) -> Answer {
    let total = file.bytes.len();
    let start = request
        .range
        .as_deref()
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let mut start = start.filter(|_| fault != Some(HubFault::IgnoreRange));
    if start.is_some_and(|start| start >= total) {
        headers.push(("Content-Range", format!("bytes */{total}")));
        return Answer::new(416, headers, Vec::new());
    }
    if fault == Some(HubFault::WrongRange) {
        start = start.map(|start| start + 1);
    }
    let mut body = file.bytes[start.unwrap_or(0)..].to_vec();
    if fault == Some(HubFault::OtherContent) {
        body.iter_mut().for_each(|byte| *byte = !*byte);
    }
    let status = match start {
        Some(start) => {
            headers.push(("Content-Range", format!("bytes {start}-{}/{total}", total - 1)));
            206
        }
        None => 200,
    };
    let mut answer = Answer::new(status, headers, body);
    answer.ending = match fault {
        Some(HubFault::StallAfter(bytes)) => Ending::Stall(bytes),
        Some(HubFault::BreakAfter(bytes)) => Ending::Break(bytes),
        Some(HubFault::HoldAfter(bytes)) => Ending::Hold(bytes),
        _ => Ending::Whole,
    };
    answer
}

/// Commit, name and file of a path.
fn find(shared: &Shared, path: &str) -> Option<(String, String, HubFile)> {
    let (repository, rest) = path.strip_prefix('/')?.split_once("/resolve/")?;
    let (commit, name) = rest.split_once('/')?;
    let name = name.replace("%20", " ");
    let state = shared.lock();
    let revision = state.revisions.get(repository)?.get(commit)?;
    let file = revision.files.get(&name)?.clone();
    Some((revision.commit.clone(), name, file))
}
