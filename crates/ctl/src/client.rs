//! HTTP over the Unix socket, and what can go wrong with it, as sentences.

use crate::exit::Exit;
use crate::output;
use mlxd_protocol::PROTOCOL_VERSION;
use mlxd_protocol::admin::{AdminError, AdminErrorBody, Version};
use reqwest::{Client, Method, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// For calls that mlxd answers at once.
const QUICK_TIMEOUT: Duration = Duration::from_secs(30);
/// For calls that wait for a model to load or to drain: above the longest `load_timeout_ms`
/// plus the longest `drain_ms` that the configuration allows.
const SLOW_TIMEOUT: Duration = Duration::from_secs(4 * 3600);
/// An answer's body beyond this is not one of mlxd's.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// There is no socket.
    #[error("mlxd is not running: there is no socket {}. Start it with `mlxd serve`", .0.display())]
    NoSocket(PathBuf),
    /// There is one, and nobody behind it.
    #[error("mlxd is not running: nobody answers on the socket {}. Start it with `mlxd serve`", .0.display())]
    Refused(PathBuf),
    /// It is another user's.
    #[error("the socket {} may not be opened: it belongs to the user who started mlxd", .0.display())]
    Forbidden(PathBuf),
    /// The socket cannot be used for another reason.
    #[error("the socket {} cannot be used: {error}", .path.display())]
    Socket { path: PathBuf, error: io::Error },
    /// Nothing says where it is.
    #[error("{0}")]
    NoPlace(String),
    /// Another version of mlxd.
    #[error("mlxd {version} speaks protocol {protocol}, this mlxctl {} speaks {PROTOCOL_VERSION}; use the mlxctl that came with it", env!("CARGO_PKG_VERSION"))]
    OtherProtocol { version: String, protocol: u32 },
    /// mlxd said no.
    #[error("{}", .0.message)]
    Admin(AdminErrorBody),
    /// The connection broke, or what came is not what mlxd sends.
    #[error("{0}")]
    Broken(String),
    /// Standard input or output.
    #[error("{0}")]
    Terminal(#[from] io::Error),
}

impl Failure {
    /// How mlxctl ends because of it; `status` has its own view.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::NoSocket(_) => Exit::NotRunning,
            Self::Refused(_) | Self::Forbidden(_) => Exit::InsufficientPrivileges,
            Self::OtherProtocol { .. } => Exit::NotInstalled,
            Self::Admin(body) => match body.code.as_str() {
                "load_failed" | "spawn_failed" | "not_running" => Exit::NotRunning,
                "insufficient_memory" | "memory_full" | "memory_pressure" => Exit::NotRunning,
                _ => Exit::Generic,
            },
            Self::Socket { .. } | Self::NoPlace(_) | Self::Broken(_) | Self::Terminal(_) => {
                Exit::Generic
            }
        }
    }

    /// A stable word for programs: mlxd's own where it refused, else one of mlxctl's.
    pub(crate) fn code(&self) -> &str {
        match self {
            Self::NoSocket(_) | Self::Refused(_) => "mlxd_not_running",
            Self::Forbidden(_) | Self::Socket { .. } | Self::NoPlace(_) => "socket_unusable",
            Self::OtherProtocol { .. } => "other_protocol",
            Self::Admin(body) if body.code.is_empty() => "refused",
            Self::Admin(body) => &body.code,
            Self::Broken(_) | Self::Terminal(_) => "failed",
        }
    }

    /// As a refusal of mlxd's looks.
    pub(crate) fn body(&self) -> AdminErrorBody {
        AdminErrorBody { code: self.code().to_owned(), message: self.to_string() }
    }

    /// Tells it on standard error, and as JSON on standard output too, on one line, because it
    /// may come after lines of a stream.
    pub(crate) fn tell(&self, as_json: bool) {
        eprintln!("mlxctl: {self}");
        if as_json {
            let error = AdminError { error: self.body() };
            // A failure to tell a failure has nobody left to go to.
            let _ = output::json_line(&error);
        }
    }

    /// Whether mlxd could not be spoken to at all.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::NoSocket(_)
                | Self::Refused(_)
                | Self::Forbidden(_)
                | Self::Socket { .. }
                | Self::NoPlace(_)
                | Self::OtherProtocol { .. }
        )
    }

    /// Whether the reader of standard output has gone.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Terminal(error) if error.kind() == ErrorKind::BrokenPipe)
    }
}

/// How long to wait for a call.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Patience {
    /// mlxd answers at once.
    Quick,
    /// A model is loaded or drained meanwhile.
    Slow,
    /// The answer has no end of its own; this long between two pieces.
    Stream(Option<Duration>),
}

/// A connection to one mlxd.
#[derive(Clone)]
pub(crate) struct Front {
    socket: PathBuf,
}

impl Front {
    /// The mlxd behind `socket`.
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Makes sure that somebody listens. The standard library tells more exactly than an HTTP
    /// client why nobody does.
    pub(crate) fn reach(&self) -> Result<(), Failure> {
        let path = || self.socket.clone();
        match UnixStream::connect(&self.socket) {
            Ok(_) => Ok(()),
            Err(error) => Err(match error.kind() {
                ErrorKind::NotFound => Failure::NoSocket(path()),
                ErrorKind::ConnectionRefused => Failure::Refused(path()),
                ErrorKind::PermissionDenied => Failure::Forbidden(path()),
                _ => Failure::Socket { path: path(), error },
            }),
        }
    }

    /// Who answers; an mlxd that speaks another protocol is refused.
    pub(crate) async fn version(&self) -> Result<Version, Failure> {
        self.reach()?;
        let version: Version = self.get("/admin/v1/version").await?;
        check_protocol(&version)?;
        Ok(version)
    }

    /// `GET`, answered at once with JSON.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let request = self.client(Patience::Quick)?.request(Method::GET, local(path, &[])?);
        self.json(request.send().await.map_err(broken)?).await
    }

    /// `GET`, answered at once with text.
    pub(crate) async fn get_text(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<String, Failure> {
        let response = self.get_stream(path, query, Patience::Quick).await?;
        let body = read_body(response).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// `GET`, answered at once with JSON, with a query.
    pub(crate) async fn get_about<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, Failure> {
        let response = self.get_stream(path, query, Patience::Quick).await?;
        self.json(response).await
    }

    /// `GET` of something that comes piece by piece.
    pub(crate) async fn get_stream(
        &self,
        path: &str,
        query: &[(&str, &str)],
        patience: Patience,
    ) -> Result<Response, Failure> {
        let request = self.client(patience)?.request(Method::GET, local(path, query)?);
        self.checked(request.send().await.map_err(broken)?).await
    }

    /// `DELETE`, answered with JSON.
    pub(crate) async fn delete<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
        patience: Patience,
    ) -> Result<T, Failure> {
        let request = self.client(patience)?.request(Method::DELETE, local(path, query)?);
        self.json(request.send().await.map_err(broken)?).await
    }

    /// `POST` of JSON, answered with JSON.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        patience: Patience,
    ) -> Result<T, Failure> {
        let response = self.post_stream(path, body, patience).await?;
        self.json(response).await
    }

    /// `POST` of JSON with a header of its own, answered at once with JSON.
    pub(crate) async fn post_with<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        header: Option<(&str, &str)>,
    ) -> Result<T, Failure> {
        let client = self.client(Patience::Slow)?;
        let mut request = client.request(Method::POST, local(path, &[])?).json(body);
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        self.json(request.send().await.map_err(broken)?).await
    }

    /// `POST` of JSON, answered piece by piece.
    pub(crate) async fn post_stream(
        &self,
        path: &str,
        body: &impl Serialize,
        patience: Patience,
    ) -> Result<Response, Failure> {
        let request = self.client(patience)?.request(Method::POST, local(path, &[])?).json(body);
        self.checked(request.send().await.map_err(broken)?).await
    }

    fn client(&self, patience: Patience) -> Result<Client, Failure> {
        let builder = Client::builder().no_proxy().unix_socket(self.socket.as_path());
        let builder = match patience {
            Patience::Quick => builder.timeout(QUICK_TIMEOUT),
            Patience::Slow => builder.timeout(SLOW_TIMEOUT),
            Patience::Stream(Some(between)) => builder.read_timeout(between),
            Patience::Stream(None) => builder,
        };
        builder.build().map_err(broken)
    }

    async fn json<T: DeserializeOwned>(&self, response: Response) -> Result<T, Failure> {
        let body = read_body(self.checked(response).await?).await?;
        serde_json::from_slice(&body)
            .map_err(|error| Failure::Broken(format!("mlxd's answer is not understood: {error}")))
    }

    /// The response, unless it is a refusal.
    async fn checked(&self, response: Response) -> Result<Response, Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = read_body(response).await?;
        Err(refusal(&body).unwrap_or_else(|| {
            Failure::Broken(format!(
                "mlxd answered {status}: {}",
                String::from_utf8_lossy(&body).trim()
            ))
        }))
    }
}

/// An admin's error, or one of the OpenAI routes: both have `error.code` and `error.message`.
pub(crate) fn refusal(body: &[u8]) -> Option<Failure> {
    if let Ok(error) = serde_json::from_slice::<AdminError>(body) {
        return Some(Failure::Admin(error.error));
    }
    let error: serde_json::Value = serde_json::from_slice(body).ok()?;
    let message = error.get("error")?.get("message")?.as_str()?.to_owned();
    Some(Failure::Admin(AdminErrorBody { code: String::new(), message }))
}

/// Refuses an mlxd that speaks another protocol.
pub(crate) fn check_protocol(version: &Version) -> Result<(), Failure> {
    if version.protocol == PROTOCOL_VERSION {
        return Ok(());
    }
    Err(Failure::OtherProtocol { version: version.version.clone(), protocol: version.protocol })
}

/// An error of the HTTP client, with its causes.
pub(crate) fn broken(error: reqwest::Error) -> Failure {
    let mut text = String::from("the connection to mlxd broke");
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    let mut last = String::new();
    while let Some(error) = cause {
        last = error.to_string();
        cause = error.source();
    }
    if error.is_timeout() {
        last = "it took too long".to_owned();
    }
    text.push_str(": ");
    text.push_str(&last);
    Failure::Broken(text)
}

async fn read_body(mut response: Response) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(broken)? {
        body.extend_from_slice(&piece);
        if body.len() > BODY_BYTES_MAX {
            return Err(Failure::Broken(format!(
                "mlxd's answer is longer than {BODY_BYTES_MAX} bytes"
            )));
        }
    }
    Ok(body)
}

/// The host name plays no part on a Unix socket, but HTTP wants one.
fn local(path: &str, query: &[(&str, &str)]) -> Result<Url, Failure> {
    let mut url = Url::parse("http://localhost")
        .and_then(|base| base.join(path))
        .map_err(|error| Failure::Broken(error.to_string()))?;
    if !query.is_empty() {
        url.query_pairs_mut().extend_pairs(query);
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_refusal_are_understood() {
        let admin =
            refusal(br#"{"error": {"code": "load_failed", "message": "no such file"}}"#).unwrap();
        assert_eq!((admin.to_string().as_str(), admin.exit()), ("no such file", Exit::NotRunning));
        let api = refusal(br#"{"error": {"code": null, "type": "x", "message": "no"}}"#).unwrap();
        assert_eq!((api.to_string().as_str(), api.exit()), ("no", Exit::Generic));
        assert_eq!((admin.code(), api.code()), ("load_failed", "refused"));
        assert!(refusal(b"<html>").is_none());
    }
}
