//! A model hub over HTTP: what it lists, what it says of a file, and the file's bytes.
//!
//! Redirects are followed here, not by the HTTP library: what a hub says of a large file stands
//! in its redirect to another host, and that host must not see the token.

use super::digest::plain_etag;
use super::select::is_safe;
use super::{HubAccess, PullCancel, PullError, PullLimits, PullProgress, PullRetry};
use serde::Deserialize;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};
use ureq::http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_RANGE, LOCATION, RANGE,
    RETRY_AFTER,
};
use ureq::http::{HeaderMap, Method, Request, Response, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body, Timeout};

const REDIRECTS_MAX: usize = 10;
/// A longer list of files is none.
const LISTING_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// What of a hub's own message is shown.
const MESSAGE_CHARS_MAX: usize = 200;

/// Why a request gave nothing.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// It may do so later: on its own terms, or the hub's.
    Passing { fault: String, status: Option<u16>, wait: Option<Duration> },
    /// It will not.
    Final(PullError),
}

impl From<PullError> for Trouble {
    fn from(error: PullError) -> Self {
        Self::Final(error)
    }
}

/// A repository at one commit.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) commit: String,
    pub(crate) files: Vec<String>,
}

/// What a hub says of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remote {
    pub(crate) etag: String,
    pub(crate) bytes: u64,
}

/// A file's bytes, from `from` on.
pub(crate) struct Opened {
    pub(crate) from: u64,
    /// The sender's own ETag, for asking for the rest of the very same.
    pub(crate) sender_etag: Option<String>,
    pub(crate) body: Body,
}

/// What a request is about, for messages.
struct About<'a> {
    repository: &'a str,
    what: String,
}

/// A request's answer and what its redirects said.
struct Reached {
    response: Response<Body>,
    /// `X-Linked-ETag` and `X-Linked-Size`: what the hub says of a file that lies elsewhere.
    linked_etag: Option<String>,
    linked_bytes: Option<u64>,
}

/// One hub.
pub(crate) struct Hub {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    limits: PullLimits,
    cancel: PullCancel,
    progress: PullProgress,
}

impl Hub {
    pub(crate) fn new(
        access: &HubAccess,
        limits: PullLimits,
        cancel: &PullCancel,
        progress: &PullProgress,
    ) -> Result<Self, PullError> {
        let endpoint = access.endpoint.trim_end_matches('/').to_owned();
        let bad = |fault: &str| PullError::Endpoint {
            endpoint: endpoint.clone(),
            fault: fault.to_owned(),
        };
        let uri: Uri = endpoint.parse().map_err(|_| bad("it is no address"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
            return Err(bad("it must begin with https:// or http://"));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(provider)
            .build();
        let mut config = Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("mlxd/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections_per_host(limits.files_at_once)
            .timeout_resolve(Some(limits.connect_timeout))
            .timeout_connect(Some(limits.connect_timeout))
            .timeout_per_read(Some(limits.stall_timeout))
            .timeout_per_write(Some(limits.stall_timeout));
        if !access.proxies {
            config = config.proxy(None);
        }
        let agent = Agent::new_with_config(config.build());
        cancel.covers(&agent)?;
        let token = access.token.clone().filter(|token| !token.is_empty());
        let (cancel, progress) = (cancel.clone(), progress.clone());
        Ok(Self { agent, endpoint, token, limits, cancel, progress })
    }

    /// The files of a repository at a revision.
    pub(crate) fn listing(&self, repository: &str, revision: &str) -> Result<Listing, PullError> {
        #[derive(Deserialize)]
        struct Model {
            sha: String,
            #[serde(default)]
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let about = About { repository, what: format!("{repository} at {revision}") };
        let url = format!("{}/api/models/{repository}/revision/{revision}", self.endpoint);
        let model: Model = self.patiently(&about.what, || {
            let reached = self.reach(Method::GET, &url, &[], &about, true)?;
            let body = reached.response.into_body().into_with_config().limit(LISTING_BYTES_MAX);
            let bytes = body.read_to_vec().map_err(|error| self.passing(&error))?;
            serde_json::from_slice(&bytes)
                .map_err(|error| self.bad_answer(&about.what, error.to_string()).into())
        })?;
        let is_commit = model.sha.len() == 40 && model.sha.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_commit {
            return Err(self.bad_answer(&about.what, format!("its commit is {:?}", model.sha)));
        }
        let files: Vec<String> =
            model.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        if let Some(odd) = files.iter().find(|file| !is_safe(file)) {
            return Err(self.bad_answer(&about.what, format!("it names the file {odd:?}")));
        }
        Ok(Listing { commit: model.sha, files })
    }

    /// What the hub says of one file, without its bytes.
    pub(crate) fn describe(
        &self,
        repository: &str,
        commit: &str,
        file: &str,
    ) -> Result<Remote, PullError> {
        let about = About { repository, what: format!("{file} of {repository}") };
        let url = self.resolve_url(repository, commit, file);
        self.patiently(&about.what, || {
            let mut reached = self.reach(Method::HEAD, &url, &[], &about, false)?;
            if reached.linked_etag.is_none() && reached.response.status().is_redirection() {
                // A mirror that says nothing of its own: the storage has to.
                reached = self.reach(Method::HEAD, &url, &[], &about, true)?;
            }
            let head = reached.response.headers();
            let own_bytes = || text(head, CONTENT_LENGTH.as_str())?.parse().ok();
            let etag = reached.linked_etag.clone();
            let etag = etag.or_else(|| text(head, ETAG.as_str()).and_then(plain_etag));
            match (etag, reached.linked_bytes.or_else(own_bytes)) {
                (Some(etag), Some(bytes)) => Ok(Remote { etag, bytes }),
                (None, _) => Err(self.bad_answer(&about.what, "no usable ETag".into()).into()),
                (_, None) => Err(self.bad_answer(&about.what, "no length".into()).into()),
            }
        })
    }

    /// Asks once for a file's bytes from `from` on.
    pub(crate) fn open(
        &self,
        repository: &str,
        commit: &str,
        file: &str,
        remote: &Remote,
        from: u64,
        sender_etag: Option<&str>,
    ) -> Result<Opened, Trouble> {
        let about = About { repository, what: format!("{file} of {repository}") };
        let url = self.resolve_url(repository, commit, file);
        let range = format!("bytes={from}-");
        let mut headers = Vec::new();
        if from > 0 {
            headers.push((RANGE, range.as_str()));
            headers.extend(sender_etag.map(|etag| (IF_RANGE, etag)));
        }
        let reached = self.reach(Method::GET, &url, &headers, &about, true)?;
        if reached.linked_etag.is_some_and(|etag| etag != remote.etag) {
            return Err(passing("the hub now speaks of another content".into()));
        }
        let head = reached.response.headers();
        let sender_etag = text(head, ETAG.as_str()).filter(|etag| !etag.starts_with("W/"));
        let sender_etag = sender_etag.map(str::to_owned);
        let starts = match reached.response.status().as_u16() {
            206 => text(head, CONTENT_RANGE.as_str()).and_then(content_range),
            _ => Some((0, None)),
        };
        match starts {
            Some((start, total))
                if (start == 0 || start == from)
                    && total.is_none_or(|total| total == remote.bytes) =>
            {
                Ok(Opened { from: start, sender_etag, body: reached.response.into_body() })
            }
            _ => {
                let got = text(head, CONTENT_RANGE.as_str()).unwrap_or("nothing");
                Err(passing(format!("asked for {range}, the hub sent {got}")))
            }
        }
    }

    /// Runs `attempt` until it succeeds, fails for good, or fails too often.
    fn patiently<T>(
        &self,
        what: &str,
        mut attempt: impl FnMut() -> Result<T, Trouble>,
    ) -> Result<T, PullError> {
        let mut failures = 0;
        loop {
            match attempt() {
                Ok(value) => {
                    self.progress.answered(what);
                    return Ok(value);
                }
                Err(trouble) => {
                    failures += 1;
                    self.pause(what, None, trouble, failures)?;
                }
            }
        }
    }

    /// Waits before the next attempt, or says that there is to be none. `file` is the place in the
    /// progress of the file whose bytes are asked for.
    pub(crate) fn pause(
        &self,
        what: &str,
        file: Option<usize>,
        trouble: Trouble,
        failures: u32,
    ) -> Result<(), PullError> {
        self.cancel.check()?;
        let (fault, status, wait) = match trouble {
            Trouble::Final(error) => return Err(error),
            Trouble::Passing { fault, status, wait } => (fault, status, wait),
        };
        let limits = &self.limits;
        let too_long = wait.is_some_and(|wait| wait > limits.retry_after_max);
        if failures >= limits.attempts_max || too_long {
            let (endpoint, what) = (self.endpoint.clone(), what.to_owned());
            return Err(match status {
                Some(status) => PullError::Refused { endpoint, status, what },
                None => PullError::Unreachable { endpoint, what, fault, attempts: failures },
            });
        }
        let doubled = limits.backoff_initial.saturating_mul(1 << (failures - 1).min(16));
        let wait = wait.unwrap_or(doubled.min(limits.backoff_max));
        let retry = PullRetry {
            what: what.to_owned(),
            file: None,
            endpoint: self.endpoint.clone(),
            fault,
            attempt: failures + 1,
            attempts_max: limits.attempts_max,
            at: Instant::now() + wait,
            number: 0,
        };
        self.progress.retry(file, retry);
        self.cancel.wait(wait)
    }

    /// Sends a request and follows redirects: within the hub always, to other hosts when wanted.
    fn reach(
        &self,
        method: Method,
        url: &str,
        headers: &[(ureq::http::HeaderName, &str)],
        about: &About<'_>,
        abroad: bool,
    ) -> Result<Reached, Trouble> {
        let what = &about.what;
        let mut url = url.to_owned();
        let (mut linked_etag, mut linked_bytes) = (None, None);
        for _ in 0..=REDIRECTS_MAX {
            let foreign = !same_origin(&self.endpoint, &url);
            let mut request = Request::builder().method(method.clone()).uri(&url);
            request = request.header(ACCEPT_ENCODING, "identity");
            for (name, value) in headers {
                request = request.header(name, *value);
            }
            if let (Some(token), false) = (&self.token, foreign) {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            let request = request
                .body(())
                .map_err(|error| self.bad_answer(what, format!("{url}: {error}")))?;
            let response = self.agent.run(request).map_err(|error| self.passing(&error))?;
            if !foreign {
                let head = response.headers();
                let etag = text(head, "x-linked-etag").and_then(plain_etag);
                linked_etag = etag.or(linked_etag);
                let bytes = text(head, "x-linked-size").and_then(|bytes| bytes.parse().ok());
                linked_bytes = bytes.or(linked_bytes);
            }
            let status = response.status();
            if !status.is_redirection() {
                return match status.as_u16() {
                    200 | 206 => Ok(Reached { response, linked_etag, linked_bytes }),
                    _ => Err(self.refusal(&response, about, foreign)),
                };
            }
            let next = text(response.headers(), LOCATION.as_str());
            let Some(next) = next.and_then(|next| target(&url, next)) else {
                return Err(self.bad_answer(what, format!("{status} to nowhere")).into());
            };
            if url.starts_with("https:") && !next.starts_with("https:") {
                return Err(self.bad_answer(what, format!("it leads away to {next}")).into());
            }
            if !abroad && !same_origin(&url, &next) {
                return Ok(Reached { response, linked_etag, linked_bytes });
            }
            url = next;
        }
        Err(self.bad_answer(what, format!("more than {REDIRECTS_MAX} redirects")).into())
    }

    fn refusal(&self, response: &Response<Body>, about: &About<'_>, foreign: bool) -> Trouble {
        let head = response.headers();
        let status = response.status().as_u16();
        let (repository, what) = (about.repository.to_owned(), &about.what);
        let endpoint = self.endpoint.clone();
        let had_token = self.token.is_some();
        let gated = text(head, "x-error-code") == Some("GatedRepo");
        let wait = text(head, RETRY_AFTER.as_str()).and_then(|value| value.trim().parse().ok());
        let wait = wait.map(Duration::from_secs);
        match status {
            // A link to another host grows old; the next attempt asks the hub for a new one.
            _ if foreign => Trouble::Passing {
                fault: format!("the hub's storage answered {status}"),
                status: Some(status),
                wait,
            },
            408 | 416 | 429 | 500.. => {
                Trouble::Passing { fault: format!("answered {status}"), status: Some(status), wait }
            }
            401 | 403 if gated => PullError::Gated { endpoint, repository }.into(),
            401 | 403 => PullError::Unauthorized { endpoint, repository, had_token }.into(),
            404 => PullError::NotFound { endpoint, what: what.clone() }.into(),
            _ => {
                let what = match text(head, "x-error-message") {
                    Some(message) => {
                        let message: String = message.chars().take(MESSAGE_CHARS_MAX).collect();
                        format!("{what} ({message})")
                    }
                    None => what.clone(),
                };
                PullError::Refused { endpoint, status, what }.into()
            }
        }
    }

    /// A failure below HTTP.
    pub(crate) fn passing(&self, error: &ureq::Error) -> Trouble {
        passing(match error {
            ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => {
                format!("no connection in {:.1} s", self.limits.connect_timeout.as_secs_f64())
            }
            ureq::Error::Timeout(_) => {
                format!("nothing came for {:.1} s", self.limits.stall_timeout.as_secs_f64())
            }
            ureq::Error::HostNotFound => "its host is not found".to_owned(),
            ureq::Error::Io(error) if error.kind() == ErrorKind::ConnectionRefused => {
                "the connection is refused".to_owned()
            }
            ureq::Error::ConnectionFailed => "nobody answers there".to_owned(),
            error => error.to_string(),
        })
    }

    fn bad_answer(&self, what: &str, fault: String) -> PullError {
        PullError::BadAnswer { endpoint: self.endpoint.clone(), what: what.to_owned(), fault }
    }

    fn resolve_url(&self, repository: &str, commit: &str, file: &str) -> String {
        format!("{}/{repository}/resolve/{commit}/{}", self.endpoint, escaped(file))
    }
}

pub(crate) fn passing(fault: String) -> Trouble {
    Trouble::Passing { fault, status: None, wait: None }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// `bytes START-END/TOTAL`.
fn content_range(header: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = header.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()))
}

fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url[host..].find(['/', '?', '#']).map_or(url.len(), |at| host + at);
    &url[..end]
}

fn same_origin(a: &str, b: &str) -> bool {
    origin(a).eq_ignore_ascii_case(origin(b))
}

/// Where `location` leads from `url`; `None` when it is no way over HTTP.
fn target(url: &str, location: &str) -> Option<String> {
    let scheme = url.split_once("://")?.0;
    if location.starts_with("http://") || location.starts_with("https://") {
        return Some(location.to_owned());
    }
    if location.starts_with("//") {
        return Some(format!("{scheme}:{location}"));
    }
    if location.starts_with('/') {
        return Some(format!("{}{location}", origin(url)));
    }
    None
}

/// A file's name as a URL's path.
fn escaped(file: &str) -> String {
    let mut escaped = String::with_capacity(file.len());
    for byte in file.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_read_as_the_standard_says() {
        let from = "https://hub.example/org/name/resolve/main/x";
        assert_eq!(target(from, "/api/y?z").as_deref(), Some("https://hub.example/api/y?z"));
        assert_eq!(target(from, "//cdn.example/y").as_deref(), Some("https://cdn.example/y"));
        assert_eq!(target(from, "http://cdn.example/").as_deref(), Some("http://cdn.example/"));
        assert_eq!(target(from, "ftp://cdn.example/"), None);
        assert!(same_origin("https://Hub.example", from));
        assert!(!same_origin("https://hub.example.evil", from));
        assert!(!same_origin("http://hub.example/", from));
        assert!(!same_origin("https://hub.example:8443", from));
    }

    #[test]
    fn names_and_ranges() {
        assert_eq!(escaped("a b/é?#.json"), "a%20b/%C3%A9%3F%23.json");
        assert_eq!(content_range("bytes 10-19/200"), Some((10, Some(200))));
        assert_eq!(content_range("bytes 0-1/*"), Some((0, None)));
        assert_eq!(content_range("bytes */200"), None);
    }
}
