//! One model's worker as a state machine: no clock, no process, no channel.
//!
//! [`Life::step`] takes an event and the time, and says what to do; the shell in
//! [`task`](crate::task) does it. At most one timer runs, [`Life::deadline`].

use mlxd_protocol::admin::WorkerState;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Waits and limits. All of them are configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct LifeLimits {
    /// From spawn to the worker's hello.
    pub start_timeout: Duration,
    /// From the load command to ready.
    pub load_timeout: Duration,
    /// From drain to SIGTERM.
    pub drain_timeout: Duration,
    /// From SIGTERM to SIGKILL.
    pub term_timeout: Duration,
    /// The first delay after a death; doubles with each further one in the window.
    pub backoff_initial: Duration,
    /// The longest delay.
    pub backoff_max: Duration,
    /// More deaths than this within the window are FATAL.
    pub deaths_max: u32,
    /// How long a death is held against a worker.
    pub deaths_window: Duration,
    /// A worker whose step counter stands still so long within a prefill is hung.
    pub prefill_hang: Duration,
    /// The same within a decode step.
    pub decode_hang: Duration,
    /// From SIGTERM to SIGKILL for a worker that hung or broke the protocol.
    pub condemned_term_timeout: Duration,
    /// How often the progress page is looked at.
    pub watch_interval: Duration,
}

impl Default for LifeLimits {
    fn default() -> Self {
        Self {
            start_timeout: Duration::from_secs(20),
            load_timeout: Duration::from_secs(600),
            drain_timeout: Duration::from_secs(30),
            term_timeout: Duration::from_secs(10),
            backoff_initial: Duration::from_millis(200),
            backoff_max: Duration::from_secs(30),
            deaths_max: 5,
            deaths_window: Duration::from_secs(120),
            prefill_hang: Duration::from_secs(120),
            decode_hang: Duration::from_secs(5),
            condemned_term_timeout: Duration::from_millis(500),
            watch_interval: Duration::from_millis(250),
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// An admin wants it running: clears FATAL and BACKOFF.
    Start,
    /// A request wants it running: starts STOPPED and EXITED, waits out BACKOFF, respects FATAL.
    Demand,
    /// An admin wants it stopped.
    Stop,
    /// An admin wants a new one.
    Restart,
    /// The process exists.
    Spawned,
    /// The process could not be made.
    SpawnFailed(String),
    /// There is no memory for the process now. No death: it is tried again.
    NoRoom(String),
    /// The worker said hello in our version and was told to load.
    Greeted,
    /// The model is loaded.
    Ready,
    /// The model cannot be loaded, and trying again will not help.
    LoadRefused(String),
    /// The worker is not to be trusted any more, or does not answer.
    Condemned(String),
    /// The process has ended. `clean` is exit code 0.
    Exited {
        /// Exit code 0.
        clean: bool,
        /// In words: `killed by SIGKILL`, `exit code 70 (the engine failed)`.
        how: String,
    },
    /// The deadline has passed.
    TimerFired,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Make a segment and a process.
    Spawn,
    /// Tell the worker to finish what runs and exit.
    Drain,
    /// SIGTERM.
    Terminate,
    /// SIGKILL.
    Kill,
    /// Tell whoever waits that the model takes requests.
    AnnounceUp,
    /// Tell whoever waits that this life is over.
    AnnounceDown,
    /// Tell whoever waits that the model will not come by itself.
    AnnounceGivenUp,
}

/// How long a worker waits that found no memory to start in.
const NO_ROOM_DELAY: Duration = Duration::from_secs(1);

/// Which wait [`Life::deadline`] ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timer {
    Hello,
    Load,
    Drain,
    Term,
    Backoff,
}

/// What happens once a process that is being ended has ended.
#[derive(Debug, Clone, PartialEq)]
enum After {
    Stopped,
    StartAgain,
    Death(String),
    GiveUp(String),
}

/// The state machine.
#[derive(Debug)]
pub struct Life {
    limits: LifeLimits,
    state: WorkerState,
    reason: Option<String>,
    timer: Option<(Timer, Instant)>,
    after: After,
    deaths: VecDeque<Instant>,
    deaths_total: u32,
    jitter: fastrand::Rng,
}

impl Life {
    /// A worker that was never started. `seed` is for the jitter of the delays.
    pub fn new(limits: LifeLimits, seed: u64) -> Self {
        Self {
            limits,
            state: WorkerState::Stopped,
            reason: None,
            timer: None,
            after: After::Stopped,
            deaths: VecDeque::new(),
            deaths_total: 0,
            jitter: fastrand::Rng::with_seed(seed),
        }
    }

    /// Other waits and limits from now on; a timer that runs keeps its end.
    pub fn set_limits(&mut self, limits: LifeLimits) {
        self.limits = limits;
    }

    /// Supervisor's name for what it is doing.
    pub fn state(&self) -> WorkerState {
        self.state
    }

    /// Why, for BACKOFF, EXITED and FATAL.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Why a process that is being ended is being ended, unless somebody asked for it.
    pub fn ending(&self) -> Option<&str> {
        match &self.after {
            After::Death(why) | After::GiveUp(why) => Some(why),
            After::Stopped | After::StartAgain => None,
        }
    }

    /// Why a process is being ended that counts as a death: it hung, was too late, or broke the
    /// protocol.
    pub fn fault(&self) -> Option<&str> {
        match &self.after {
            After::Death(why) => Some(why),
            After::GiveUp(_) | After::Stopped | After::StartAgain => None,
        }
    }

    /// Whether a process that is being ended was asked to, with nothing to come after it.
    pub fn ends_stopped(&self) -> bool {
        self.state == WorkerState::Stopping && self.after == After::Stopped
    }

    /// Whether the end that comes next was asked for, whatever comes after it.
    pub fn ends_as_asked(&self) -> bool {
        self.state == WorkerState::Stopping && self.ending().is_none()
    }

    /// Deaths so far.
    pub fn deaths(&self) -> u32 {
        self.deaths_total
    }

    /// Deaths that count for FATAL now.
    pub fn deaths_recent(&self) -> u32 {
        self.deaths.len() as u32
    }

    /// When to call `step(TimerFired)`.
    pub fn deadline(&self) -> Option<Instant> {
        self.timer.map(|(_, at)| at)
    }

    /// Takes an event. Events that make no sense in the state are ignored: they are late.
    pub fn step(&mut self, event: Event, now: Instant) -> Vec<Action> {
        use WorkerState::{Backoff, Exited, Fatal, Running, Starting, Stopped, Stopping};
        match (self.state, event) {
            (Stopped | Exited | Backoff | Fatal, Event::Start | Event::Restart)
            | (Stopped | Exited, Event::Demand) => {
                if self.state == Fatal {
                    self.deaths.clear();
                }
                self.spawn()
            }
            (Stopping, Event::Start | Event::Restart | Event::Demand) => {
                if self.after == After::Stopped {
                    self.after = After::StartAgain;
                }
                vec![]
            }
            (Backoff | Exited | Fatal, Event::Stop) => {
                self.rest(Stopped, None);
                vec![Action::AnnounceGivenUp]
            }
            (Stopping, Event::Stop) => {
                self.after = After::Stopped;
                vec![]
            }
            (Starting, Event::Stop) => self.terminate(After::Stopped, now),
            (Starting, Event::Restart) => self.terminate(After::StartAgain, now),
            (Running, Event::Stop) => self.drain(After::Stopped, now),
            (Running, Event::Restart) => self.drain(After::StartAgain, now),

            (Starting, Event::Spawned) => {
                self.arm(Timer::Hello, now, self.limits.start_timeout);
                vec![]
            }
            (Starting, Event::SpawnFailed(why)) => {
                self.rest(Fatal, Some(why));
                vec![Action::AnnounceGivenUp]
            }
            (Starting, Event::NoRoom(why)) => {
                self.rest(Backoff, Some(why));
                self.arm(Timer::Backoff, now, self.limits.backoff_max.min(NO_ROOM_DELAY));
                vec![]
            }
            (Starting, Event::Greeted) => {
                self.arm(Timer::Load, now, self.limits.load_timeout);
                vec![]
            }
            (Starting, Event::Ready) => {
                self.rest(Running, None);
                vec![Action::AnnounceUp]
            }
            (Starting, Event::LoadRefused(why)) => {
                // The worker exits by itself after saying so.
                self.state = Stopping;
                self.after = After::GiveUp(why);
                self.arm(Timer::Drain, now, self.limits.term_timeout);
                vec![]
            }
            (Starting | Running, Event::Condemned(why)) => {
                let actions = self.terminate(After::Death(why), now);
                self.arm(Timer::Term, now, self.limits.condemned_term_timeout);
                actions
            }
            (Starting, Event::Exited { how, .. }) => {
                self.died(format!("{how} while starting"), now)
            }
            (Running, Event::Exited { clean: true, how }) => {
                self.rest(Exited, Some(how));
                vec![Action::AnnounceDown]
            }
            (Running, Event::Exited { clean: false, how }) => self.died(how, now),
            (Stopping, Event::Exited { .. }) => self.ended(now),
            (_, Event::TimerFired) => self.timer_fired(now),
            _ => vec![],
        }
    }

    fn timer_fired(&mut self, now: Instant) -> Vec<Action> {
        let Some((timer, at)) = self.timer else {
            return vec![];
        };
        if now < at {
            return vec![];
        }
        self.timer = None;
        match timer {
            Timer::Hello => {
                let why = format!(
                    "no hello within {:?} (workers.start_timeout_ms)",
                    self.limits.start_timeout
                );
                self.terminate(After::Death(why), now)
            }
            Timer::Load => {
                let why = format!(
                    "not loaded within {:?} (workers.load_timeout_ms)",
                    self.limits.load_timeout
                );
                self.terminate(After::Death(why), now)
            }
            Timer::Drain => {
                self.arm(Timer::Term, now, self.limits.term_timeout);
                vec![Action::Terminate]
            }
            Timer::Term => vec![Action::Kill],
            Timer::Backoff => self.spawn(),
        }
    }

    fn spawn(&mut self) -> Vec<Action> {
        self.rest(WorkerState::Starting, None);
        self.after = After::Stopped;
        vec![Action::Spawn]
    }

    fn drain(&mut self, after: After, now: Instant) -> Vec<Action> {
        self.state = WorkerState::Stopping;
        self.after = after;
        self.arm(Timer::Drain, now, self.limits.drain_timeout);
        vec![Action::Drain]
    }

    fn terminate(&mut self, after: After, now: Instant) -> Vec<Action> {
        self.state = WorkerState::Stopping;
        self.after = after;
        self.arm(Timer::Term, now, self.limits.term_timeout);
        vec![Action::Terminate]
    }

    fn ended(&mut self, now: Instant) -> Vec<Action> {
        match std::mem::replace(&mut self.after, After::Stopped) {
            After::Stopped => {
                self.rest(WorkerState::Stopped, None);
                vec![Action::AnnounceDown]
            }
            After::StartAgain => {
                let mut actions = vec![Action::AnnounceDown];
                actions.extend(self.spawn());
                actions
            }
            After::Death(why) => self.died(why, now),
            After::GiveUp(why) => {
                self.rest(WorkerState::Fatal, Some(why));
                vec![Action::AnnounceDown, Action::AnnounceGivenUp]
            }
        }
    }

    fn died(&mut self, how: String, now: Instant) -> Vec<Action> {
        self.deaths_total += 1;
        self.deaths.push_back(now);
        while self
            .deaths
            .front()
            .is_some_and(|&at| now.duration_since(at) > self.limits.deaths_window)
        {
            self.deaths.pop_front();
        }
        let recent = self.deaths.len() as u32;
        if recent > self.limits.deaths_max {
            let window = self.limits.deaths_window;
            let why = format!("died {recent} times within {window:?}, the last time: {how}");
            self.rest(WorkerState::Fatal, Some(why));
            return vec![Action::AnnounceDown, Action::AnnounceGivenUp];
        }
        let delay = self.backoff(recent);
        self.rest(WorkerState::Backoff, Some(how));
        self.arm(Timer::Backoff, now, delay);
        vec![Action::AnnounceDown]
    }

    /// Doubles with every recent death, at most `backoff_max`, less up to a quarter at random so
    /// that several workers felled by one cause do not come back in step.
    fn backoff(&mut self, recent: u32) -> Duration {
        let doubled = self.limits.backoff_initial.saturating_mul(1 << (recent - 1).min(16));
        doubled.min(self.limits.backoff_max).mul_f64(1.0 - 0.25 * self.jitter.f64())
    }

    fn arm(&mut self, timer: Timer, now: Instant, after: Duration) {
        self.timer = Some((timer, now + after));
    }

    fn rest(&mut self, state: WorkerState, reason: Option<String>) {
        self.state = state;
        self.reason = reason;
        self.timer = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(clean: bool) -> Event {
        Event::Exited { clean, how: "killed by SIGKILL".into() }
    }

    fn running(now: Instant) -> Life {
        let mut life = Life::new(LifeLimits::default(), 1);
        assert_eq!(life.step(Event::Demand, now), [Action::Spawn]);
        assert!(life.step(Event::Spawned, now).is_empty());
        assert!(life.step(Event::Greeted, now).is_empty());
        assert_eq!(life.step(Event::Ready, now), [Action::AnnounceUp]);
        assert_eq!(life.state(), WorkerState::Running);
        assert_eq!(life.deadline(), None);
        life
    }

    #[test]
    fn a_stop_drains_then_terminates_then_kills() {
        let mut now = Instant::now();
        let mut life = running(now);
        assert_eq!(life.step(Event::Stop, now), [Action::Drain]);
        now = life.deadline().unwrap();
        assert_eq!(life.step(Event::TimerFired, now), [Action::Terminate]);
        now = life.deadline().unwrap();
        assert_eq!(life.step(Event::TimerFired, now), [Action::Kill]);
        assert_eq!(life.step(exited(false), now), [Action::AnnounceDown]);
        assert_eq!(life.state(), WorkerState::Stopped);
        assert_eq!(life.deaths(), 0, "a stop that was asked for is no death");
    }

    #[test]
    fn deaths_back_off_longer_and_end_fatal_until_an_admin_starts() {
        let mut now = Instant::now();
        let mut life = running(now);
        let mut delays = vec![];
        for _ in 0..LifeLimits::default().deaths_max {
            assert_eq!(life.step(exited(false), now), [Action::AnnounceDown]);
            assert_eq!(life.state(), WorkerState::Backoff);
            let at = life.deadline().unwrap();
            delays.push(at - now);
            assert!(life.step(Event::Demand, now).is_empty(), "a request waits the delay out");
            now = at;
            assert_eq!(life.step(Event::TimerFired, now), [Action::Spawn]);
            life.step(Event::Spawned, now);
            life.step(Event::Greeted, now);
            life.step(Event::Ready, now);
        }
        assert!(delays.windows(2).all(|pair| pair[1] > pair[0].mul_f64(1.4)), "{delays:?}");
        let last = life.step(exited(false), now);
        assert_eq!(last, [Action::AnnounceDown, Action::AnnounceGivenUp]);
        assert_eq!(life.state(), WorkerState::Fatal);
        assert!(life.reason().unwrap().contains("killed by SIGKILL"));
        assert!(life.step(Event::Demand, now).is_empty());
        assert_eq!(life.step(Event::Start, now), [Action::Spawn]);
    }

    #[test]
    fn a_model_that_cannot_load_is_not_tried_again() {
        let now = Instant::now();
        let mut life = Life::new(LifeLimits::default(), 1);
        life.step(Event::Demand, now);
        life.step(Event::Spawned, now);
        life.step(Event::Greeted, now);
        life.step(Event::LoadRefused("config.json: no such file".into()), now);
        let actions = life.step(exited(false), now);
        assert_eq!(actions, [Action::AnnounceDown, Action::AnnounceGivenUp]);
        assert_eq!(life.state(), WorkerState::Fatal);
        assert_eq!(life.reason(), Some("config.json: no such file"));
    }

    #[test]
    fn a_silent_start_is_ended_and_counted() {
        let mut now = Instant::now();
        let mut life = Life::new(LifeLimits::default(), 1);
        life.step(Event::Start, now);
        life.step(Event::Spawned, now);
        now = life.deadline().unwrap();
        assert_eq!(life.step(Event::TimerFired, now), [Action::Terminate]);
        now = life.deadline().unwrap();
        assert_eq!(life.step(Event::TimerFired, now), [Action::Kill]);
        life.step(exited(false), now);
        assert_eq!(life.state(), WorkerState::Backoff);
        assert!(life.reason().unwrap().starts_with("no hello within"));
    }

    #[test]
    fn without_room_it_asks_again_and_that_is_no_death() {
        let mut now = Instant::now();
        let mut life = Life::new(LifeLimits::default(), 1);
        assert_eq!(life.step(Event::Demand, now), [Action::Spawn]);
        for _ in 0..20 {
            assert!(life.step(Event::NoRoom("3 of 5 GiB".into()), now).is_empty());
            assert_eq!((life.state(), life.reason()), (WorkerState::Backoff, Some("3 of 5 GiB")));
            now = life.deadline().unwrap();
            assert_eq!(life.step(Event::TimerFired, now), [Action::Spawn]);
        }
        assert_eq!(life.deaths(), 0);
    }

    proptest::proptest! {
        /// Whatever comes in whatever order: a process is spawned only when none is there, and
        /// only a process that is there is told anything.
        #[test]
        fn never_two_processes(script in proptest::collection::vec(0usize..11, 1..200)) {
            let mut now = Instant::now();
            let mut life = Life::new(LifeLimits::default(), 3);
            let mut alive = false;
            for word in script {
                let event = match word {
                    0 => Event::Start,
                    1 => Event::Demand,
                    2 => Event::Stop,
                    3 => Event::Restart,
                    4 => Event::Greeted,
                    5 => Event::Ready,
                    6 => Event::LoadRefused("no".into()),
                    7 => Event::Condemned("bad".into()),
                    8 | 9 if alive => { alive = false; exited(word == 8) }
                    _ => {
                        now = life.deadline().unwrap_or(now);
                        Event::TimerFired
                    }
                };
                for action in life.step(event, now) {
                    match action {
                        Action::Spawn => {
                            proptest::prop_assert!(!alive);
                            alive = true;
                            life.step(Event::Spawned, now);
                        }
                        Action::Drain | Action::Terminate | Action::Kill | Action::AnnounceUp =>
                            proptest::prop_assert!(alive),
                        _ => {}
                    }
                }
                let state = life.state();
                use WorkerState::{Running, Starting, Stopping};
                proptest::prop_assert_eq!(alive, matches!(state, Running | Starting | Stopping));
            }
        }
    }
}
