//! Fetching a model from a hub into the Hugging Face cache.
//!
//! As huggingface_hub lays it out, so that both find each other's files, go on with each other's
//! partial ones and wait for each other's locks. The revision becomes a commit first; every file is
//! asked for by that commit, held against the checksum that the hub announces, and only then put
//! in its place. The reference (`refs/main`) is written last: a pull that breaks off leaves the
//! model that was there before usable.
//!
//! It blocks, on threads of its own; [`PullCancel`] ends it from elsewhere.

mod client;
mod digest;
mod error;
mod layout;
mod select;
mod transfer;
mod watch;

pub use error::PullError;
pub(crate) use select::OTHER_FORMATS;
pub use watch::{PullCancel, PullFile, PullPhase, PullProgress, PullRetry, PullState};

use crate::folder::missing_files;
use crate::hub;
use crate::name::{Name, parse};
use client::{Hub, Remote};
use layout::Layout;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use transfer::Transfers;

/// The hub when nobody names another.
pub const STANDARD_ENDPOINT: &str = "https://huggingface.co";
/// What is fetched when no revision is named.
const STANDARD_REVISION: &str = "main";

/// Which hub, and as whom.
#[derive(Clone, PartialEq, Eq)]
pub struct HubAccess {
    /// Its address, as `https://huggingface.co`.
    pub endpoint: String,
    /// Shown to the hub alone, never to where it redirects.
    pub token: Option<String>,
    /// Whether the network must not be used.
    pub offline: bool,
    /// Whether `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` count.
    pub proxies: bool,
}

impl Default for HubAccess {
    fn default() -> Self {
        Self { endpoint: STANDARD_ENDPOINT.to_owned(), token: None, offline: false, proxies: true }
    }
}

impl std::fmt::Debug for HubAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubAccess")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("offline", &self.offline)
            .field("proxies", &self.proxies)
            .finish()
    }
}

/// How patient a pull is, and how much it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PullLimits {
    /// Files fetched at once.
    pub files_at_once: usize,
    /// For finding the host and shaking hands.
    pub connect_timeout: Duration,
    /// Silence after which a connection is given up.
    pub stall_timeout: Duration,
    /// Attempts in a row that gain nothing.
    pub attempts_max: u32,
    /// Wait after the first of them; doubled after each.
    pub backoff_initial: Duration,
    /// The longest such wait.
    pub backoff_max: Duration,
    /// The longest wait that the hub may ask for; a longer one is a refusal.
    pub retry_after_max: Duration,
    /// Bytes of the disk that stay free.
    pub reserve_bytes: u64,
}

impl Default for PullLimits {
    fn default() -> Self {
        Self {
            files_at_once: 4,
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            attempts_max: 8,
            backoff_initial: Duration::from_millis(500),
            backoff_max: Duration::from_secs(30),
            retry_after_max: Duration::from_secs(120),
            reserve_bytes: 1024 * 1024 * 1024,
        }
    }
}

/// A model that is there and whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// Its name in requests.
    pub name: String,
    /// What it was fetched at.
    pub commit: String,
    /// Its files.
    pub folder: PathBuf,
    /// How many they are.
    pub files: usize,
    /// Bytes they have.
    pub bytes_total: u64,
    /// Bytes of them that came over the network just now.
    pub bytes_fetched: u64,
}

/// One pull, ready to run.
#[derive(Debug, Clone)]
pub struct Pull {
    /// `NAME` or `NAME@REVISION`.
    pub name: String,
    /// The Hugging Face cache.
    pub cache: PathBuf,
    /// The hub.
    pub access: HubAccess,
    /// Its limits.
    pub limits: PullLimits,
    /// For those who watch.
    pub progress: PullProgress,
    /// For those who end it.
    pub cancel: PullCancel,
}

/// A file to fetch, by its name.
type Wanted = (String, Remote);

impl Pull {
    /// Fetches what is missing. Blocks until the model is there, or an error.
    pub fn run(&self) -> Result<Pulled, PullError> {
        let (repository, revision) = hub_name(&self.name)?;
        if self.access.offline {
            return self.offline(repository, revision);
        }
        let hub = Hub::new(&self.access, self.limits, &self.cancel, &self.progress)?;
        let named = revision.unwrap_or(STANDARD_REVISION);
        let listing = hub.listing(repository, named)?;
        self.progress.commit(&listing.commit);
        let layout = Layout::new(&self.cache, repository);
        let context = Context { pull: self, hub: &hub, layout, repository, commit: listing.commit };
        let names = context.needed(&listing.files)?;
        let wanted = context.describe(names)?;
        context.check_space(&wanted)?;
        self.progress.phase(PullPhase::Fetching);
        context.fetch(&wanted)?;
        self.progress.phase(PullPhase::Finishing);
        context.layout.refer(named, &context.commit)?;
        let folder = context.layout.snapshot(&context.commit);
        Ok(Pulled {
            name: self.name.clone(),
            folder,
            files: wanted.len(),
            bytes_total: wanted.iter().map(|(_, remote)| remote.bytes).sum(),
            bytes_fetched: self.progress.state().bytes_fetched,
            commit: context.commit,
        })
    }

    /// What is in the cache already, when nothing else may be asked.
    fn offline(&self, repository: &str, revision: Option<&str>) -> Result<Pulled, PullError> {
        let none = || PullError::Offline { name: self.name.clone() };
        let folder = hub::snapshot(&self.cache, repository, revision).map_err(|_| none())?;
        let folder = folder.ok_or_else(none)?;
        if !missing_files(&folder)?.is_empty() {
            return Err(none());
        }
        let files = crate::folder::file_names(&folder)?;
        let bytes = |name: &String| std::fs::metadata(folder.join(name)).map_or(0, |m| m.len());
        let commit = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Pulled {
            name: self.name.clone(),
            commit,
            files: files.len(),
            bytes_total: files.iter().map(bytes).sum(),
            bytes_fetched: 0,
            folder,
        })
    }
}

/// The repository and revision of a name that a hub could have.
pub(crate) fn hub_name(name: &str) -> Result<(&str, Option<&str>), PullError> {
    match parse(name)? {
        Name::Hub { repository, revision } => Ok((repository, revision)),
        Name::Path(path) => Err(crate::StoreError::BadName {
            name: path.to_owned(),
            fault: "it is a path; a hub's names are like mlx-community/Qwen3-0.6B-4bit".to_owned(),
        }
        .into()),
    }
}

/// A pull whose commit is known.
struct Context<'a> {
    pull: &'a Pull,
    hub: &'a Hub,
    layout: Layout,
    repository: &'a str,
    commit: String,
}

impl Context<'_> {
    fn transfers(&self) -> Transfers<'_> {
        Transfers {
            hub: self.hub,
            layout: &self.layout,
            repository: self.repository,
            commit: &self.commit,
            progress: &self.pull.progress,
            cancel: &self.pull.cancel,
        }
    }

    /// The files to fetch. The index of the weights is fetched for it: it says which they are.
    fn needed(&self, files: &[String]) -> Result<Vec<String>, PullError> {
        let mut indexed = None;
        if files.iter().any(|file| file == select::INDEX) {
            let remote = self.hub.describe(self.repository, &self.commit, select::INDEX)?;
            self.layout.create()?;
            self.transfers().fetch(usize::MAX, select::INDEX, &remote)?;
            indexed = Some(read_index(&self.layout.blob(&remote.etag))?);
        }
        select::needed(self.repository, files, indexed.as_ref())
    }

    /// Asks for every file's checksum and length, several at once.
    fn describe(&self, names: Vec<String>) -> Result<Vec<Wanted>, PullError> {
        let remotes = self.each(names.len(), |index| {
            self.hub.describe(self.repository, &self.commit, &names[index])
        })?;
        let wanted: Vec<Wanted> = names.into_iter().zip(remotes).collect();
        let file = |(name, remote): &Wanted| PullFile {
            name: name.clone(),
            bytes_total: remote.bytes,
            bytes_done: self.bytes_here(remote),
            trouble: None,
        };
        self.pull.progress.files(wanted.iter().map(file).collect());
        Ok(wanted)
    }

    /// Bytes of a file that need not come any more.
    fn bytes_here(&self, remote: &Remote) -> u64 {
        let length = |path: PathBuf| std::fs::metadata(path).ok().map(|file| file.len());
        match length(self.layout.blob(&remote.etag)) {
            Some(bytes) if bytes == remote.bytes => bytes,
            _ => length(self.layout.partial(&remote.etag))
                .filter(|bytes| *bytes <= remote.bytes)
                .unwrap_or(0),
        }
    }

    fn check_space(&self, wanted: &[Wanted]) -> Result<(), PullError> {
        let unique: BTreeMap<&str, &Remote> =
            wanted.iter().map(|(_, remote)| (remote.etag.as_str(), remote)).collect();
        let needed_bytes: u64 =
            unique.values().map(|remote| remote.bytes - self.bytes_here(remote)).sum();
        if needed_bytes == 0 {
            return Ok(());
        }
        let cache = &self.pull.cache;
        std::fs::create_dir_all(cache).map_err(disk(cache))?;
        let free_bytes = free_bytes(cache)?;
        let reserve_bytes = self.pull.limits.reserve_bytes;
        if free_bytes < needed_bytes.saturating_add(reserve_bytes) {
            let folder = cache.clone();
            return Err(PullError::NoSpace { folder, needed_bytes, free_bytes, reserve_bytes });
        }
        Ok(())
    }

    fn fetch(&self, wanted: &[Wanted]) -> Result<(), PullError> {
        self.layout.create()?;
        let transfers = self.transfers();
        self.each(wanted.len(), |index| {
            let (name, remote) = &wanted[index];
            transfers.fetch(index, name, remote)?;
            self.layout.link(&self.commit, name, &remote.etag)
        })?;
        Ok(())
    }

    /// Does the same for several files at once; the first error ends it.
    fn each<T: Send>(
        &self,
        count: usize,
        deed: impl Fn(usize) -> Result<T, PullError> + Sync,
    ) -> Result<Vec<T>, PullError> {
        let next = AtomicUsize::new(0);
        let done: Mutex<BTreeMap<usize, T>> = Mutex::default();
        let failed: Mutex<Option<PullError>> = Mutex::default();
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count || self.pull.cancel.is_cancelled() {
                    return;
                }
                match deed(index) {
                    Ok(value) => {
                        done.lock().unwrap_or_else(|p| p.into_inner()).insert(index, value);
                    }
                    Err(error) => {
                        failed.lock().unwrap_or_else(|p| p.into_inner()).get_or_insert(error);
                        // There is no model without this file: the others stop too.
                        self.pull.cancel.cancel();
                        return;
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.pull.limits.files_at_once.min(count) {
                scope.spawn(work);
            }
            work();
        });
        match failed.into_inner().unwrap_or_else(|p| p.into_inner()) {
            Some(error) => Err(error),
            None if self.pull.cancel.is_cancelled() => Err(PullError::Cancelled),
            None => {
                Ok(done.into_inner().unwrap_or_else(|p| p.into_inner()).into_values().collect())
            }
        }
    }
}

fn read_index(path: &Path) -> Result<BTreeSet<String>, PullError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = crate::folder::read_json(path, crate::folder::INDEX_BYTES_MAX)?;
    Ok(index.weight_map.into_values().collect())
}

/// Bytes that this user may still write where `folder` lies.
fn free_bytes(folder: &Path) -> Result<u64, PullError> {
    let found = nix::sys::statvfs::statvfs(folder)
        .map_err(|error| disk(folder)(std::io::Error::from(error)))?;
    // The types differ between systems.
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
    let bytes = found.blocks_available() as u64 * found.fragment_size() as u64;
    Ok(bytes)
}

pub(crate) fn disk(path: &Path) -> impl Fn(std::io::Error) -> PullError {
    let path = path.to_owned();
    move |error| PullError::Disk { path: path.clone(), error: error.to_string() }
}
