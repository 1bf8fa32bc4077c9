//! The server that a benchmark asks: one that runs already, or one started for the run.

use crate::client::{Ask, Client, status};
use crate::report::{Report, Subject, Template};
use crate::server::{Card, Server};
use crate::{Front, prompts};
use anyhow::{Context, bail};
use clap::Args;
use mlxd_protocol::admin::ModelStatus;
use std::path::{Path, PathBuf};

/// What is asked for when nothing is said.
pub const DEFAULT_MODEL: &str = "mlxd-demo";

/// Flags of every benchmark that asks a server.
#[derive(Debug, Clone, Default, Args)]
pub struct ServerFlags {
    /// Model to measure, by name or path [default: mlxd-demo, or the first that --url lists].
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Base URL of a running server, as http://127.0.0.1:11440/v1, instead of one started for the
    /// run.
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Sent to --url as a bearer token.
    #[arg(long, value_name = "KEY", env = "OPENAI_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Admin's socket of the mlxd at --url [default: that of this user's configuration].
    #[arg(long, value_name = "PATH", env = "MLXD_SOCKET")]
    pub socket: Option<PathBuf>,
    /// Configuration file of the server started for the run.
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    pub config: Option<PathBuf>,
}

/// A server and a model of it.
pub struct Target {
    /// Asks it.
    pub client: Client,
    /// In requests.
    pub model: String,
    /// Its admin's socket, when it is this machine's mlxd.
    pub admin_socket: Option<PathBuf>,
    url: Option<String>,
    server: Option<Server>,
}

impl Target {
    /// Finds or starts the server.
    pub async fn open(flags: &ServerFlags, front: &dyn Front) -> anyhow::Result<Self> {
        Self::open_with(flags, front, &[]).await
    }

    /// Finds or starts the server; one that is started gets `variables`, as `MLXD_…`.
    pub async fn open_with(
        flags: &ServerFlags,
        front: &dyn Front,
        variables: &[(&str, String)],
    ) -> anyhow::Result<Self> {
        let Some(url) = &flags.url else {
            let server = Server::start(flags.config.as_deref(), variables).await?;
            return Ok(Self {
                client: Client::new(&server.card.base_url, None)?,
                model: flags.model.clone().unwrap_or_else(|| DEFAULT_MODEL.into()),
                admin_socket: Some(server.card.admin_socket.clone()),
                url: None,
                server: Some(server),
            });
        };
        let url = base_url(url)?;
        let client = Client::new(&url, flags.api_key.as_deref())?;
        let model = match &flags.model {
            Some(model) => model.clone(),
            None => {
                let listed = client.models().await.with_context(|| {
                    format!("{url} has no list of models, name one with --model")
                })?;
                listed
                    .into_iter()
                    .next()
                    .context("the server lists no model, name one with --model")?
            }
        };
        let admin_socket = match &flags.socket {
            Some(socket) if serves(socket, &url).await => Some(socket.clone()),
            _ => {
                let card = front.card().and_then(|path| Card::read(&path).ok());
                let card = card.filter(|card| card.base_url.trim_end_matches('/') == url);
                card.map(|card| card.admin_socket)
            }
        };
        Ok(Self { client, model, admin_socket, url: Some(url), server: None })
    }

    /// Streams an answer of the model.
    pub async fn ask(&self, ask: &Ask) -> anyhow::Result<crate::client::Answered> {
        self.client.ask(&self.model, ask).await
    }

    /// Loads the model and runs what there is to warm, with an answer of so many tokens.
    pub async fn warm_up(&self, template: Template, tokens: u32) -> anyhow::Result<()> {
        let ask = Ask::new(template, prompts::question(0), tokens);
        self.ask(&ask).await.map(drop)
    }

    /// The model's line of the admin's status, where there is one.
    pub async fn status(&self) -> Option<ModelStatus> {
        let status = status(self.admin_socket.as_ref()?).await.ok()?;
        status.models.into_iter().find(|line| line.name == self.model)
    }

    /// The admin's socket.
    pub fn admin_socket(&self) -> anyhow::Result<&Path> {
        match (&self.admin_socket, &self.url) {
            (Some(socket), _) => Ok(socket),
            (None, Some(url)) => bail!(
                "this needs the admin's socket, and neither --socket or MLXD_SOCKET nor this \
                 user's configuration names that of the mlxd at {url}; name it, or leave --url \
                 away to have one started"
            ),
            (None, None) => bail!("the server has no admin's socket"),
        }
    }

    /// A report about this server's model.
    pub async fn report(&self, benchmark: &str, quick: bool) -> Report {
        let status = self.status().await;
        let status = status.as_ref();
        let subject = Subject {
            model: Some(self.model.clone()),
            architecture: status.and_then(|status| status.architecture.clone()),
            quantization: status.and_then(|status| status.quantization.clone()),
            server: self.url.clone(),
            quick,
            ..Subject::default()
        };
        let mut report = Report::new(benchmark, subject);
        report.versions.mlx = status.and_then(|status| status.mlx.clone());
        report.versions.server = match self.url {
            Some(_) => self.client.server_name().await,
            None => Some(format!("mlxd {}", report.versions.mlxd)),
        };
        report
    }

    /// Ends a server that was started, and adds its log to an error.
    pub async fn close<T>(self, outcome: anyhow::Result<T>) -> anyhow::Result<T> {
        let Some(server) = self.server else { return outcome };
        match outcome {
            Ok(done) => {
                server.stop().await?;
                Ok(done)
            }
            Err(error) => {
                let log = server.log();
                Err(if log.is_empty() {
                    error
                } else {
                    error.context(format!("the server's log:\n{log}"))
                })
            }
        }
    }
}

/// Whether the mlxd behind a socket is the one at a URL: on its port, and of its host or of this
/// machine's loopback. A variable that is set for mlxctl may name another.
async fn serves(socket: &Path, url: &str) -> bool {
    let Ok(status) = status(socket).await else { return false };
    let place = |url: &str| {
        let url = reqwest::Url::parse(url).ok()?;
        Some((url.host_str()?.to_owned(), url.port_or_known_default()?))
    };
    let (Some((own, own_port)), Some((host, port))) = (place(&status.base_url), place(url)) else {
        return false;
    };
    let loops = ["localhost", "127.0.0.1", "[::1]"].contains(&host.as_str());
    port == own_port && (loops || host == own)
}

/// `http://host/v1`, also from a URL that leaves out the version, and without a slash at its end.
fn base_url(given: &str) -> anyhow::Result<String> {
    let url = reqwest::Url::parse(given).ok().filter(|url| url.scheme().starts_with("http"));
    let url =
        url.with_context(|| format!("--url {given}: write it as http://127.0.0.1:11440/v1"))?;
    let bare = url.as_str().trim_end_matches('/');
    Ok(if url.path() == "/" { format!("{bare}/v1") } else { bare.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LocalModel;
    use crate::all::tests::arguments;
    use clap::Command;
    use mlxd_protocol::admin::{MemoryStatus, Status, Version};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    /// A user whose configuration names no mlxd that runs.
    struct Nobody;

    impl Front for Nobody {
        fn model(&self, _: Option<&Path>, _: &str) -> anyhow::Result<LocalModel> {
            bail!("not asked")
        }

        fn worker_program(&self, _: Option<&Path>) -> anyhow::Result<PathBuf> {
            bail!("not asked")
        }

        fn card(&self) -> Option<PathBuf> {
            None
        }
    }

    /// Answers whoever connects with the status of an mlxd at this URL.
    fn admin(listener: UnixListener, base_url: &str) {
        let status = Status {
            server: Version { version: "1".into(), protocol: 1, pid: 1 },
            uptime_s: 1,
            memory_bytes: 1,
            base_url: base_url.into(),
            shutting_down: false,
            memory: MemoryStatus::default(),
            models: Vec::new(),
        };
        let body = serde_json::to_string(&status).expect("JSON");
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n", body.len());
        let answer = format!("{head}connection: close\r\n\r\n{body}");
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let read = stream.read(&mut [0; 4096]).expect("a request");
                assert!(read > 0, "no request");
                stream.write_all(answer.as_bytes()).expect("answered");
            }
        });
    }

    #[tokio::test]
    async fn the_socket_that_is_named_is_used_if_it_is_of_the_server_asked() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        admin(UnixListener::bind(&path).expect("a socket"), "http://0.0.0.0:9/v1");
        let socket = path.to_str().expect("a plain path");
        let open = async |line: &[&str]| {
            let flags: ServerFlags = arguments(&[&["--model", "m"], line].concat());
            Target::open(&flags, &Nobody).await.expect("a target")
        };
        let named = open(&["--url", "http://localhost:9", "--socket", socket]).await;
        assert_eq!(named.admin_socket().expect("the socket"), path);
        for other in ["http://localhost:8", "http://a:9"] {
            let target = open(&["--url", other, "--socket", socket]).await;
            let refused = target.admin_socket().expect_err("of another").to_string();
            assert!(refused.contains("MLXD_SOCKET"), "{refused}");
        }
        let command = ServerFlags::augment_args(Command::new("bench"));
        let of_flag = command.get_arguments().find(|argument| argument.get_id() == "socket");
        assert_eq!(of_flag.and_then(|argument| argument.get_env()), Some("MLXD_SOCKET".as_ref()));
    }

    #[test]
    fn base_urls_are_completed() {
        for given in ["http://a:1", "http://a:1/", "http://a:1/v1", "http://a:1/v1/"] {
            assert_eq!(base_url(given).expect("a URL"), "http://a:1/v1");
        }
        assert_eq!(base_url("https://a/x/v2").expect("a URL"), "https://a/x/v2");
        assert!(base_url("a:1:2").is_err());
    }
}
