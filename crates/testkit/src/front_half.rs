//! The front's half of a worker, in the hands of a test: spawns the program, holds the other
//! ends of its rings and channels, and waits for what it says.

use crate::wait::{DEADLINE, until};
use command_fds::{CommandFdExt, FdMapping};
use ipc_channel::TryRecvError;
use ipc_channel::ipc::{IpcOneShotServer, IpcReceiver, IpcSender};
use mlxd_protocol::{
    Bootstrap, Command as ToRing, DeviceChoice, FromWorker, Hello, LoadSpec, ModelInfo, Phase,
    Report, RequestId, Submit, ToWorker, TokenRecord, arguments, kind,
};
use mlxd_ring::{Progress, ProgressReader, Reader, RingError, Segment, SegmentSpec, Writer};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc;

/// The worker's ends of the doorbells, by number.
const COMMANDS_FD: i32 = 3;
const TOKENS_FD: i32 = 4;

/// One record of the tokens ring.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// A step's tokens.
    Tokens(Vec<TokenRecord>),
    /// Anything else.
    Report(Report),
}

/// A worker process and everything that its front would hold. Dropping it kills the process.
#[derive(Debug)]
pub struct FrontHalf {
    child: Child,
    hello: Hello,
    to_worker: Option<IpcSender<ToWorker>>,
    from_worker: IpcReceiver<FromWorker>,
    commands: Writer,
    tokens: Reader,
    progress: ProgressReader,
    bytes: Vec<u8>,
}

impl FrontHalf {
    /// Starts `program` as a worker and reads its greeting.
    pub fn start(program: &Path) -> Self {
        Self::start_with(Command::new(program))
    }

    /// Starts a prepared command as a worker; the worker's arguments are added to it. The
    /// command may be a shell that starts the worker.
    pub fn start_with(mut command: Command) -> Self {
        let mut segment = Segment::create(&SegmentSpec::default()).expect("a segment");
        let fds = segment.worker_fds().expect("a new segment's descriptors");
        let (server, name) = IpcOneShotServer::<Bootstrap>::new().expect("a one-shot server");
        command
            .args([arguments::BOOTSTRAP, &name])
            .args([arguments::SEGMENT, segment.name()])
            .args([arguments::COMMANDS_FD, &COMMANDS_FD.to_string()])
            .args([arguments::TOKENS_FD, &TOKENS_FD.to_string()])
            .args([arguments::INCARNATION, "1"])
            .fd_mappings(vec![
                FdMapping { parent_fd: fds.commands, child_fd: COMMANDS_FD },
                FdMapping { parent_fd: fds.tokens, child_fd: TOKENS_FD },
            ])
            .expect("two descriptors with two numbers");
        let child = command.spawn().expect("the worker program starts");
        // Closes our copies of the worker's ends.
        drop(command);
        let (sender, accepted) = mpsc::channel();
        std::thread::spawn(move || sender.send(server.accept().map(|(_, bootstrap)| bootstrap)));
        let Bootstrap { to_worker, from_worker } = accepted
            .recv_timeout(DEADLINE)
            .expect("the worker connects in time")
            .expect("the worker sends its channels");
        let Ok(FromWorker::Hello(hello)) = from_worker.try_recv_timeout(DEADLINE) else {
            panic!("the worker's first message is its hello");
        };
        let mut link = segment.into_front();
        link.name.unlink();
        Self {
            child,
            hello,
            to_worker: Some(to_worker),
            from_worker,
            commands: link.commands,
            tokens: link.tokens,
            progress: link.progress,
            bytes: Vec::new(),
        }
    }

    /// Starts a worker and loads a folder with it.
    pub fn start_loaded(program: &Path, folder: &Path) -> Self {
        let mut this = Self::start(program);
        this.load(folder);
        this
    }

    /// How the worker introduced itself.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The process that was started.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// What the worker tells of itself.
    pub fn progress(&self) -> Progress {
        self.progress.snapshot()
    }

    /// What the worker is doing.
    pub fn phase(&self) -> Option<Phase> {
        Phase::from_word(self.progress().phase)
    }

    /// Waits until the worker is in a phase.
    pub fn wait_phase(&self, phase: Phase) {
        until(phase.name(), || (self.phase() == Some(phase)).then_some(()));
    }

    /// Loads a folder with room for 64 sequences and as many waiting.
    pub fn load(&mut self, folder: &Path) -> ModelInfo {
        self.say(ToWorker::Load(Self::load_spec(folder)));
        match self.message() {
            FromWorker::Ready(info) => info,
            other => panic!("ready was expected, not {other:?}"),
        }
    }

    /// What [`load`](Self::load) asks for.
    pub fn load_spec(folder: &Path) -> LoadSpec {
        LoadSpec {
            folder: folder.into(),
            device: DeviceChoice::Cpu,
            prefill_chunk_tokens: 512,
            prefill_chunk_tokens_busy: 512,
            context_tokens_max: None,
            running_max: 64,
            queued_max: 64,
            parked_max: 64,
            ageing_ms: 10_000,
            prefix_cache_bytes_max: 0,
            guesses_max: 0,
            draft: None,
            kv_quantization: None,
            kv_tokens_max: None,
            prefix_disk: None,
            cache_bytes_max: None,
            deterministic: false,
        }
    }

    /// Sends a control message.
    pub fn say(&self, message: ToWorker) {
        let to_worker = self.to_worker.as_ref().expect("the channel is open");
        to_worker.send(message).expect("the worker listens");
    }

    /// Closes the control channel, as a front's death does.
    pub fn hang_up(&mut self) {
        self.to_worker = None;
    }

    /// The worker's next control message.
    pub fn message(&self) -> FromWorker {
        self.from_worker.try_recv_timeout(DEADLINE).expect("the worker says something in time")
    }

    /// Waits until the worker's end of the control channel is closed: the process is gone.
    pub fn wait_disconnected(&self) {
        loop {
            match self.from_worker.try_recv_timeout(DEADLINE) {
                Ok(_) => {}
                Err(TryRecvError::IpcError(_)) => return,
                Err(TryRecvError::Empty) => panic!("the worker stays"),
            }
        }
    }

    /// Sends a sequence.
    pub fn submit(&mut self, submit: Submit) {
        self.command(&ToRing::Submit(submit));
    }

    /// Cancels a sequence.
    pub fn cancel(&mut self, request: u64) {
        self.command(&ToRing::Cancel(RequestId(request)));
    }

    fn command(&mut self, command: &ToRing) {
        let mut bytes = Vec::new();
        command.encode_into(&mut bytes);
        self.send(kind::COMMAND, &bytes);
    }

    /// Puts any record into the commands ring.
    pub fn send(&mut self, kind: u16, bytes: &[u8]) {
        self.commands.send(kind, bytes, Some(DEADLINE)).expect("the worker reads its commands");
    }

    /// The next record of the tokens ring; an error once the worker is gone and all is read.
    pub fn hear(&mut self) -> Result<Said, RingError> {
        let kind = self.tokens.recv(&mut self.bytes, Some(DEADLINE))?;
        Ok(match kind.expect("the worker publishes in time") {
            kind::TOKENS => {
                let records = TokenRecord::read_all(&self.bytes).expect("whole records");
                Said::Tokens(records.collect())
            }
            kind::REPORT => Said::Report(Report::decode(&self.bytes).expect("a report")),
            other => panic!("a record of kind {other}"),
        })
    }

    /// Reads until a sequence has its last token. Others' records are dropped.
    pub fn answer(&mut self, request: u64) -> Vec<TokenRecord> {
        let mut answer: Vec<TokenRecord> = Vec::new();
        loop {
            match self.hear().expect("the worker lives") {
                Said::Tokens(records) => {
                    answer.extend(records.iter().filter(|record| record.request == request));
                    if answer.last().is_some_and(|record| record.flags != 0) {
                        return answer;
                    }
                }
                Said::Report(Report::Ended(ended)) if ended.request.0 == request => {
                    panic!("refused: {}", ended.refusal);
                }
                Said::Report(_) => {}
            }
        }
    }

    /// Reads to the end of the ring, which is the worker's end; gives a sequence's tokens.
    pub fn drain(&mut self, request: u64) -> Vec<TokenRecord> {
        let mut answer = Vec::new();
        loop {
            match self.hear() {
                Ok(Said::Tokens(records)) => {
                    answer.extend(records.into_iter().filter(|record| record.request == request));
                }
                Ok(Said::Report(_)) => {}
                Err(RingError::PeerGone) => return answer,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Waits for the process that was started to end.
    pub fn wait_exit(&mut self) -> ExitStatus {
        until("the worker's end", || self.child.try_wait().expect("our child"))
    }
}

impl Drop for FrontHalf {
    fn drop(&mut self) {
        // Fails when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
