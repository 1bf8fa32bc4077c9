//! A model hub on loopback that can be told to fail.
//!
//! It speaks as much of the Hugging Face hub as a download needs: the list of a revision's files,
//! a file by its commit with ETag and ranges, and a redirect to another host for large files. It
//! remembers every request. As an HTTP proxy it answers for every host itself.

mod answer;
mod connection;

use answer::Kind;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

/// What goes wrong with a file's bytes, or with a question about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HubFault {
    /// This status, with these headers.
    Status(u16, Vec<(&'static str, String)>),
    /// So many bytes of the body, then silence for as long as the other side listens.
    StallAfter(usize),
    /// So many bytes of the body, then the end of the connection.
    BreakAfter(usize),
    /// So many bytes of the body, then nothing until [`FakeHub::release`].
    HoldAfter(usize),
    /// Every bit of the body is another one.
    OtherContent,
    /// The whole file, whatever range was asked for.
    IgnoreRange,
    /// A range that begins one byte later than the one asked for.
    WrongRange,
    /// A redirect here.
    Redirect(String),
}

/// Which request a fault meets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HubCall {
    /// The list of a repository's files.
    List,
    /// A file's ETag and length.
    Head(String),
    /// A file's bytes.
    Get(String),
}

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubRequest {
    /// `GET`, `HEAD`, `CONNECT`.
    pub method: String,
    /// Its path.
    pub path: String,
    /// Whether it came to the storage's address.
    pub at_storage: bool,
    /// `Host`.
    pub host: String,
    /// `Range`.
    pub range: Option<String>,
    /// `Authorization`.
    pub authorization: Option<String>,
}

/// A file of the hub.
#[derive(Debug, Clone)]
struct HubFile {
    bytes: Arc<[u8]>,
    /// Large files lie at the storage's address, and their ETag is a SHA-256.
    is_large: bool,
}

impl HubFile {
    fn etag(&self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        if self.is_large {
            return hex(&Sha256::digest(&self.bytes));
        }
        let mut hash = Sha1::new();
        hash.update(format!("blob {}\0", self.bytes.len()));
        hash.update(&self.bytes);
        hex(&hash.finalize())
    }
}

/// One revision of one repository.
#[derive(Debug, Clone, Default)]
struct Revision {
    commit: String,
    files: BTreeMap<String, HubFile>,
}

#[derive(Debug, Default)]
struct State {
    /// By repository, then by name or commit.
    revisions: HashMap<String, HashMap<String, Revision>>,
    faults: HashMap<HubCall, Vec<HubFault>>,
    requests: Vec<HubRequest>,
    connections: Vec<TcpStream>,
    released: bool,
    ended: bool,
    /// When set, only this token opens anything.
    token: Option<String>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    hub: SocketAddr,
    storage: SocketAddr,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn take_fault(&self, call: &HubCall) -> Option<HubFault> {
        let mut state = self.lock();
        let faults = state.faults.get_mut(call)?;
        (!faults.is_empty()).then(|| faults.remove(0))
    }

    fn wait_for_release(&self) {
        let mut state = self.lock();
        while !state.released && !state.ended {
            state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }
}

/// The hub. Dropping it ends it.
pub struct FakeHub {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl FakeHub {
    /// A hub with nothing in it.
    pub fn start() -> Self {
        let bind = || TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let (hub, storage) = (bind(), bind());
        let address = |listener: &TcpListener| listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            hub: address(&hub),
            storage: address(&storage),
        });
        let listen = |listener: TcpListener, kind: Kind| {
            let shared = shared.clone();
            std::thread::spawn(move || accept(&listener, &shared, kind))
        };
        let threads = vec![listen(hub, Kind::Hub), listen(storage, Kind::Storage)];
        Self { shared, threads }
    }

    /// Its address, for `HF_ENDPOINT` or `HTTP_PROXY`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.shared.hub)
    }

    /// Puts a revision on it, which is also `main`. A file of more than 1,000 bytes is a large one.
    pub fn publish(&self, repository: &str, commit: &str, files: &[(&str, &[u8])]) {
        let files = files.iter().map(|(name, bytes)| {
            let file = HubFile { bytes: (*bytes).into(), is_large: bytes.len() > 1000 };
            ((*name).to_owned(), file)
        });
        let revision = Revision { commit: commit.to_owned(), files: files.collect() };
        let mut state = self.shared.lock();
        let repository = state.revisions.entry(repository.to_owned()).or_default();
        repository.insert(commit.to_owned(), revision.clone());
        repository.insert("main".to_owned(), revision);
    }

    /// Publishes every plain file of a folder.
    pub fn publish_folder(&self, repository: &str, commit: &str, folder: &std::path::Path) {
        let entries = std::fs::read_dir(folder).expect("the folder is there");
        let files: Vec<(String, Vec<u8>)> = entries
            .map(|entry| entry.expect("it can be listed"))
            .filter(|entry| entry.path().is_file())
            .map(|entry| {
                let bytes = std::fs::read(entry.path()).expect("it can be read");
                (entry.file_name().to_string_lossy().into_owned(), bytes)
            })
            .collect();
        let files: Vec<(&str, &[u8])> =
            files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        self.publish(repository, commit, &files);
    }

    /// Only who shows this token gets anything from now on.
    pub fn require_token(&self, token: &str) {
        self.shared.lock().token = Some(token.to_owned());
    }

    /// The next such request meets this fault; several are met in turn.
    pub fn fail(&self, call: HubCall, fault: HubFault) {
        self.shared.lock().faults.entry(call).or_default().push(fault);
    }

    /// Lets everything go on that is held.
    pub fn release(&self) {
        self.shared.lock().released = true;
        self.shared.changed.notify_all();
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<HubRequest> {
        self.shared.lock().requests.clone()
    }

    /// How many requests for a file's bytes reached the storage or, for a small file, the hub.
    pub fn gets(&self, file: &str) -> usize {
        let state = self.shared.lock();
        let is_get = |request: &&HubRequest| {
            request.method == "GET"
                && request.path.ends_with(&format!("/{file}"))
                && (request.at_storage || !self.is_large(&state, file))
        };
        state.requests.iter().filter(is_get).count()
    }

    fn is_large(&self, state: &State, file: &str) -> bool {
        let mut revisions = state.revisions.values().flat_map(HashMap::values);
        revisions.any(|revision| revision.files.get(file).is_some_and(|file| file.is_large))
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        {
            let mut state = self.shared.lock();
            state.ended = true;
            for connection in &state.connections {
                // It may be closed already.
                let _ = connection.shutdown(Shutdown::Both);
            }
        }
        self.shared.changed.notify_all();
        for address in [self.shared.hub, self.shared.storage] {
            // Wakes the listener, which then sees the end.
            let _ = TcpStream::connect(address);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, kind: Kind) {
    for stream in listener.incoming() {
        let mut state = shared.lock();
        if state.ended {
            return;
        }
        let Ok(stream) = stream else { continue };
        if let Ok(clone) = stream.try_clone() {
            state.connections.push(clone);
        }
        drop(state);
        let shared = shared.clone();
        std::thread::spawn(move || connection::serve(stream, &shared, kind));
    }
}
