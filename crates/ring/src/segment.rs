//! The segment: one piece of shared memory per worker incarnation, made by the front.
//!
//! Owns its name, its layout and the checks at both ends. The front keeps the sizes it asked for
//! in private memory and never reads them back; the worker checks the header once, at attach.

#![allow(unsafe_code)] // The one place that maps shared memory.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::shm_unlink;
use shared_memory::{Shmem, ShmemConf};

use crate::doorbell::Doorbell;
use crate::error::SegmentError;
use crate::leftovers::{self, Record};
use crate::memory::{CONTROL_BYTES, LINE_BYTES, RingWords, WORD_BYTES, Words};
use crate::os;
use crate::progress::{PROGRESS_BYTES, ProgressReader, ProgressWriter};
use crate::reader::Reader;
use crate::writer::Writer;

/// Smallest ring.
pub const RING_BYTES_MIN: usize = 4 << 10;
/// Largest ring.
pub const RING_BYTES_MAX: usize = 256 << 20;
/// Longest name of a segment, its slash included: what macOS allows.
pub const NAME_BYTES_MAX: usize = 30;
/// How every segment's name begins.
pub const NAME_PREFIX: &str = "/mlxd-";

/// "mlxdring", as the first word of every segment.
const MAGIC: u64 = u64::from_be_bytes(*b"mlxdring");
/// Raised with every change of layout or frame.
const LAYOUT_VERSION: u64 = 1;
/// Bytes set aside for the header.
const HEADER_BYTES: usize = 4096;
/// Words of the header, by index.
const HEADER_MAGIC: usize = 0;
const HEADER_VERSION: usize = 1;
const HEADER_TOTAL_BYTES: usize = 2;
const HEADER_COMMANDS_BYTES: usize = 3;
const HEADER_TOKENS_BYTES: usize = 4;
/// On a line of its own: the one header word that the worker writes.
const HEADER_ATTACHED: usize = LINE_BYTES / WORD_BYTES as usize;

/// Sizes of a segment's rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentSpec {
    /// Bytes of the ring from the front to the worker: a power of two from
    /// [`RING_BYTES_MIN`] to [`RING_BYTES_MAX`].
    pub commands_bytes: usize,
    /// Bytes of the ring from the worker to the front: likewise.
    pub tokens_bytes: usize,
}

impl Default for SegmentSpec {
    /// 1 MiB for commands, 256 KiB for tokens.
    fn default() -> Self {
        Self { commands_bytes: 1 << 20, tokens_bytes: 256 << 10 }
    }
}

/// Where everything lies, in words. Made from checked sizes only.
#[derive(Debug)]
struct Layout {
    progress: std::ops::Range<usize>,
    commands: std::ops::Range<usize>,
    tokens: std::ops::Range<usize>,
}

impl Layout {
    fn new(spec: &SegmentSpec) -> Result<Self, SegmentError> {
        check_ring_bytes("commands_bytes", spec.commands_bytes)?;
        check_ring_bytes("tokens_bytes", spec.tokens_bytes)?;
        let progress = HEADER_BYTES + PROGRESS_BYTES;
        let commands = progress + CONTROL_BYTES + spec.commands_bytes;
        let tokens = commands + CONTROL_BYTES + spec.tokens_bytes;
        let words = |from: usize, to: usize| from / WORD_BYTES as usize..to / WORD_BYTES as usize;
        Ok(Self {
            progress: words(HEADER_BYTES, progress),
            commands: words(progress, commands),
            tokens: words(commands, tokens),
        })
    }

    fn total_bytes(&self) -> usize {
        self.tokens.end * WORD_BYTES as usize
    }
}

fn check_ring_bytes(name: &'static str, bytes: usize) -> Result<(), SegmentError> {
    if bytes.is_power_of_two() && (RING_BYTES_MIN..=RING_BYTES_MAX).contains(&bytes) {
        return Ok(());
    }
    Err(SegmentError::BadSize { name, bytes, bytes_min: RING_BYTES_MIN, bytes_max: RING_BYTES_MAX })
}

/// A mapping, kept alive by the words made over it. Never unlinks: [`SegmentName`] does.
struct Mapping {
    _shmem: Shmem,
}

// SAFETY: `Shmem` is neither Send nor Sync only for its raw pointer. Nothing touches it after
// `map_words`, except the drop, which unmaps and closes and may happen on any thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; there is no `&self` method.
unsafe impl Sync for Mapping {}

fn map_words(mut shmem: Shmem, bytes: usize) -> Words {
    assert!(bytes <= shmem.len());
    shmem.set_owner(false);
    let base = shmem.as_ptr().cast::<AtomicU64>();
    let base = NonNull::new(base).unwrap_or_else(|| unreachable!("mmap gave address 0"));
    let keep = Arc::new(Mapping { _shmem: shmem });
    // SAFETY: mmap aligns to pages; the mapping is at least `bytes` long, readable and writable,
    // and lives until `keep` is dropped. Nothing in this process reaches it but through `Words`.
    unsafe { Words::from_mapping(base, bytes / WORD_BYTES as usize, keep) }
}

/// The name of a segment. As long as it is linked the memory outlives every process; dropping the
/// name unlinks it.
#[derive(Debug)]
pub struct SegmentName {
    name: String,
    linked: bool,
    record: Option<Record>,
}

impl SegmentName {
    fn random() -> Self {
        Self { name: random_name(), linked: false, record: None }
    }

    /// The name, with its slash.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// Removes the name, unless the worker has done so by attaching, and the record of it: who is
    /// attached stays attached, nobody else can attach, and the memory goes with the last process
    /// that has it. To be called as soon as the worker has attached.
    pub fn unlink(&mut self) {
        if std::mem::take(&mut self.linked) {
            unlink(&self.name);
        }
        // A record that stays behind is harmless: the next sweep finds that its name is gone.
        let _cleared = self.record.take().map(leftovers::clear);
    }
}

impl Drop for SegmentName {
    fn drop(&mut self) {
        self.unlink();
    }
}

/// Removes a name, if it is there. Gives whether it was.
pub(crate) fn unlink(name: &str) -> bool {
    // The one failure that matters, "no such name", is what is wanted.
    shm_unlink(name).is_ok()
}

/// True for a name as [`Segment::create`] makes it.
pub(crate) fn is_segment_name(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX
        && name.strip_prefix(NAME_PREFIX).is_some_and(|random| {
            !random.is_empty() && random.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
}

fn random_name() -> String {
    let random = uuid::Uuid::new_v4().simple().to_string();
    let mut name = NAME_PREFIX.to_owned();
    // The last 24 digits of a version 4 uuid: 90 random bits.
    name.push_str(&random[random.len() - (NAME_BYTES_MAX - NAME_PREFIX.len())..]);
    name
}

/// A segment in the front's hands, before its worker runs.
#[derive(Debug)]
pub struct Segment {
    words: Words,
    layout: Layout,
    name: SegmentName,
    commands_doorbell: Doorbell,
    tokens_doorbell: Doorbell,
    worker_fds: Option<WorkerFds>,
}

/// The worker's ends of the doorbells, to be handed to the child at known descriptor numbers.
/// They are closed on exec unless the spawner maps them. The front must not keep them once the
/// child runs: end of file tells it of the child's death only when nobody else has them.
#[derive(Debug)]
pub struct WorkerFds {
    /// For [`WorkerLink::attach`]'s `commands_doorbell`.
    pub commands: OwnedFd,
    /// For [`WorkerLink::attach`]'s `tokens_doorbell`.
    pub tokens: OwnedFd,
}

/// The front's ends of a segment.
#[derive(Debug)]
pub struct FrontLink {
    /// To the worker.
    pub commands: Writer,
    /// From the worker.
    pub tokens: Reader,
    /// What the worker tells about itself.
    pub progress: ProgressReader,
    /// The segment's name: call [`SegmentName::unlink`] once the worker has attached.
    pub name: SegmentName,
}

/// The worker's ends of a segment.
#[derive(Debug)]
pub struct WorkerLink {
    /// From the front.
    pub commands: Reader,
    /// To the front.
    pub tokens: Writer,
    /// What this worker tells about itself.
    pub progress: ProgressWriter,
}

impl Segment {
    /// Makes a segment: shared memory with mode 0600 under a random name, and two doorbells.
    ///
    /// # Errors
    /// [`SegmentError::BadSize`] for sizes that are not allowed, [`SegmentError::Create`] when the
    /// system has no room, [`SegmentError::Doorbell`] when it has no descriptors.
    pub fn create(spec: &SegmentSpec) -> Result<Self, SegmentError> {
        Self::create_named(spec, SegmentName::random())
    }

    /// As [`Self::create`], and keeps a [`leftovers`] record in `dir` from before the segment
    /// exists until it is unlinked, so that [`leftovers::sweep`] finds it should this process be
    /// killed in between.
    ///
    /// # Errors
    /// As [`Self::create`], and [`SegmentError::Record`].
    pub fn create_recorded(spec: &SegmentSpec, dir: &Path) -> Result<Self, SegmentError> {
        let mut name = SegmentName::random();
        let record = leftovers::record(dir, name.as_str())
            .map_err(|source| SegmentError::Record { dir: dir.to_owned(), source })?;
        name.record = Some(record);
        Self::create_named(spec, name)
    }

    fn create_named(spec: &SegmentSpec, mut name: SegmentName) -> Result<Self, SegmentError> {
        let layout = Layout::new(spec)?;
        let bytes = layout.total_bytes();
        let text = name.name.clone();
        let failed = |reason: String| SegmentError::Create { name: text.clone(), bytes, reason };
        let shmem = ShmemConf::new()
            .os_id(&text)
            .size(bytes)
            .create()
            .map_err(|error| failed(error.to_string()))?;
        name.linked = true;
        let words = map_words(shmem, bytes);
        os::reserve(&text, bytes).map_err(|errno| failed(errno.to_string()))?;

        let header = words.as_slice();
        header[HEADER_VERSION].store(LAYOUT_VERSION, Ordering::Relaxed);
        header[HEADER_TOTAL_BYTES].store(bytes as u64, Ordering::Relaxed);
        header[HEADER_COMMANDS_BYTES].store(spec.commands_bytes as u64, Ordering::Relaxed);
        header[HEADER_TOKENS_BYTES].store(spec.tokens_bytes as u64, Ordering::Relaxed);
        // SYNC POINT: segment made (pairs with check_header)
        header[HEADER_MAGIC].store(MAGIC, Ordering::Release);

        let (commands_doorbell, commands) = Doorbell::pair().map_err(SegmentError::Doorbell)?;
        let (tokens_doorbell, tokens) = Doorbell::pair().map_err(SegmentError::Doorbell)?;
        Ok(Self {
            words,
            layout,
            name,
            commands_doorbell,
            tokens_doorbell,
            worker_fds: Some(WorkerFds { commands, tokens }),
        })
    }

    /// The name to hand to the worker.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// The doorbell ends to hand to the worker. `None` when they were taken before.
    pub fn worker_fds(&mut self) -> Option<WorkerFds> {
        self.worker_fds.take()
    }

    /// True once a worker has attached.
    pub fn is_attached(&self) -> bool {
        self.words.as_slice()[HEADER_ATTACHED].load(Ordering::Acquire) != 0
    }

    /// Removes the name; see [`SegmentName::unlink`].
    pub fn unlink(&mut self) {
        self.name.unlink();
    }

    /// The front's ends. Doorbell ends that were not taken are closed.
    pub fn into_front(self) -> FrontLink {
        let part = |range: &std::ops::Range<usize>| self.words.part(range.clone());
        FrontLink {
            commands: Writer::new(
                RingWords::new(&part(&self.layout.commands)),
                self.commands_doorbell,
            ),
            tokens: Reader::new(RingWords::new(&part(&self.layout.tokens)), self.tokens_doorbell),
            progress: ProgressReader::new(part(&self.layout.progress)),
            name: self.name,
        }
    }
}

impl WorkerLink {
    /// Attaches to the segment that the front made, with the doorbell ends that it handed over,
    /// and removes its name: nobody else is to attach.
    ///
    /// # Errors
    /// [`SegmentError::BadName`], [`SegmentError::Open`], [`SegmentError::BadHeader`] when front
    /// and worker are not of one build, [`SegmentError::AlreadyAttached`].
    pub fn attach(
        name: &str,
        commands_doorbell: OwnedFd,
        tokens_doorbell: OwnedFd,
    ) -> Result<Self, SegmentError> {
        if !is_segment_name(name) {
            return Err(SegmentError::BadName(name.to_owned()));
        }
        let shmem = ShmemConf::new().os_id(name).open().map_err(|error| SegmentError::Open {
            name: name.to_owned(),
            reason: error.to_string(),
        })?;
        // The system may have rounded the size up to whole pages.
        let mapped_bytes = shmem.len() & !(WORD_BYTES as usize - 1);
        let words = map_words(shmem, mapped_bytes);
        let layout = check_header(&words)
            .map_err(|what| SegmentError::BadHeader { name: name.to_owned(), what })?;
        if words.as_slice()[HEADER_ATTACHED].swap(1, Ordering::AcqRel) != 0 {
            return Err(SegmentError::AlreadyAttached(name.to_owned()));
        }
        // Not left to the front, which may be killed before it hears of this.
        unlink(name);
        let adopt = |fd| Doorbell::adopt(fd).map_err(SegmentError::Doorbell);
        Ok(Self {
            commands: Reader::new(
                RingWords::new(&words.part(layout.commands)),
                adopt(commands_doorbell)?,
            ),
            tokens: Writer::new(
                RingWords::new(&words.part(layout.tokens)),
                adopt(tokens_doorbell)?,
            ),
            progress: ProgressWriter::new(words.part(layout.progress)),
        })
    }
}

fn check_header(words: &Words) -> Result<Layout, &'static str> {
    let header = words.as_slice();
    if header.len() < HEADER_BYTES / WORD_BYTES as usize {
        return Err("it is shorter than a header");
    }
    // SYNC POINT: segment made (pairs with Segment::create)
    if header[HEADER_MAGIC].load(Ordering::Acquire) != MAGIC {
        return Err("its first word is not ours");
    }
    let get = |index: usize| usize::try_from(header[index].load(Ordering::Relaxed)).unwrap_or(0);
    if get(HEADER_VERSION) as u64 != LAYOUT_VERSION {
        return Err("its layout has another version");
    }
    let spec = SegmentSpec {
        commands_bytes: get(HEADER_COMMANDS_BYTES),
        tokens_bytes: get(HEADER_TOKENS_BYTES),
    };
    let layout = Layout::new(&spec).map_err(|_| "its ring sizes are not allowed")?;
    if layout.total_bytes() != get(HEADER_TOTAL_BYTES) || layout.tokens.end > header.len() {
        return Err("its sizes do not add up");
    }
    Ok(layout)
}
