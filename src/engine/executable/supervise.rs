//! Keeps a program running: notices its end at once, whoever waits for what at that moment, and starts it again, after
//! pauses that grow while it keeps ending.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::launch::{Listening, Start};
use super::upstream::Upstream;
use crate::engine::StartError;
use crate::engine::process::Process;
use crate::event::{Failure, FailureKind};

/// Pauses before a program is started again.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long an event waits for a program that is being started again.
const RESTART_PATIENCE: Duration = Duration::from_secs(5);

/// A connection breaks when the kernel closes the files of a program that ends; its exit status follows within
/// microseconds, unless it has much memory to give back.
const EXIT_PATIENCE: Duration = Duration::from_millis(100);

/// A program and what keeps it running. Dropping it kills the program.
pub struct Supervised {
    component: String,
    state: watch::Receiver<State>,
    stop: mpsc::Sender<Duration>,
}

/// One run of the program, from start to end.
pub struct Run {
    pub upstream: Arc<Upstream>,
    ended: watch::Receiver<Option<Ended>>,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// "exited with status 3".
    pub how: String,
    /// The last lines of its output.
    pub last_words: String,
}

#[derive(Clone)]
enum State {
    Up(Arc<Run>),
    Down {
        why: Arc<StartError>,
        again: Instant,
    },
    /// Told to end, and not to be started again.
    Stopping,
    Stopped,
}

impl Supervised {
    /// Takes a program into care that listens; `start` starts it again.
    pub fn new(component: &str, start: Arc<dyn Start>, first: Listening, timeout: Duration) -> Self {
        let component = component.to_owned();
        let (run, process, ended) = Run::new(first, timeout);
        let (publish, state) = watch::channel(State::Up(run));
        let (stop, stopping) = mpsc::channel(1);
        let supervisor = Supervisor {
            component: component.clone(),
            start,
            timeout,
            publish,
            process: Some(process),
            end: ended,
        };
        tokio::spawn(supervisor.supervise(stopping));
        Self { component, state, stop }
    }

    /// The program's present run; of one that is down, the next one, if it comes soon.
    ///
    /// # Errors
    /// [`FailureKind::Unavailable`] with the reason why there is none.
    pub async fn run(&self) -> Result<Arc<Run>, Failure> {
        if let State::Up(run) = &*self.state.borrow() {
            return Ok(Arc::clone(run));
        }
        let give_up = Instant::now() + RESTART_PATIENCE;
        let mut state = self.state.clone();
        loop {
            let (why, again) = match &*state.borrow_and_update() {
                State::Up(run) => return Ok(Arc::clone(run)),
                State::Stopping | State::Stopped => return Err(self.unavailable("was stopped")),
                State::Down { why, again } => (Arc::clone(why), *again),
            };
            if again < give_up && matches!(tokio::time::timeout_at(give_up, state.changed()).await, Ok(Ok(()))) {
                continue;
            }
            let when = match again.saturating_duration_since(Instant::now()) {
                Duration::ZERO => "is being started again".to_owned(),
                next => format!("will be started again in {next:.1?}"),
            };
            return Err(self
                .unavailable(&format!("is down and {when}: {why}"))
                .with_traceback(why.traceback.clone().unwrap_or_default()));
        }
    }

    /// Has the program stopped, with SIGTERM and, after `grace`, with SIGKILL; returns when nothing of it is left.
    pub async fn stop(&self, grace: Duration) {
        // It fails if somebody has asked already, or all is over: what is left to do is to wait.
        let _ = self.stop.try_send(grace);
        let mut state = self.state.clone();
        let _ = state.wait_for(|state| matches!(state, State::Stopped)).await;
    }

    fn unavailable(&self, what: &str) -> Failure {
        Failure::new(FailureKind::Unavailable, format!("{} {what}", self.component))
    }
}

impl Run {
    fn new(listening: Listening, timeout: Duration) -> (Arc<Self>, Process, watch::Sender<Option<Ended>>) {
        let (end, ended) = watch::channel(None);
        let upstream = Upstream::new(listening.addresses, listening.listener, timeout);
        (Arc::new(Self { upstream, ended }), listening.process, end)
    }

    /// How this run ended, if it has ended or is about to.
    pub async fn ended(&self) -> Option<Ended> {
        let mut ended = self.ended.clone();
        let ended = tokio::time::timeout(EXIT_PATIENCE, ended.wait_for(Option::is_some))
            .await
            .ok()?
            .ok()?;
        ended.clone()
    }
}

struct Supervisor {
    component: String,
    start: Arc<dyn Start>,
    timeout: Duration,
    publish: watch::Sender<State>,
    /// None while the program is down.
    process: Option<Process>,
    end: watch::Sender<Option<Ended>>,
}

impl Supervisor {
    async fn supervise(mut self, mut stopping: mpsc::Receiver<Duration>) {
        let grace = tokio::select! {
            grace = stopping.recv() => grace,
            _ = self.keep_running() => None,
        };
        self.publish.send_replace(State::Stopping);
        // Without a grace nobody is left who uses the program: dropping it kills it.
        if let (Some(grace), Some(process)) = (grace, &mut self.process) {
            // How it ends is nobody's concern any more.
            let _ = process.stop(grace).await;
        }
        self.process = None;
        self.publish.send_replace(State::Stopped);
    }

    async fn keep_running(&mut self) -> std::convert::Infallible {
        let mut pause = SHORTEST_PAUSE;
        loop {
            let begin = Instant::now();
            let ended = self.ended().await;
            if begin.elapsed() > LONGEST_PAUSE {
                pause = SHORTEST_PAUSE;
            }
            let mut why = StartError::new(format!("it {}", ended.how)).with_traceback(&ended.last_words);
            // In this order: who is told of the end must not be sent to the same run again.
            self.down(why, pause);
            self.end.send_replace(Some(ended));
            let listening = loop {
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(LONGEST_PAUSE);
                match self.start.start().await {
                    Ok(listening) => break listening,
                    Err(error) => why = error,
                }
                self.down(why, pause);
            };
            let (run, process, end) = Run::new(listening, self.timeout);
            (self.process, self.end) = (Some(process), end);
            tracing::info!(component = self.component, address = %run.upstream.address(), "started again");
            self.publish.send_replace(State::Up(run));
        }
    }

    /// Waits for the end of the program.
    async fn ended(&mut self) -> Ended {
        let Some(process) = &mut self.process else {
            return Ended {
                how: "is not running".to_owned(),
                last_words: String::new(),
            };
        };
        let how = match process.ended().await {
            Ok(exit) => exit.to_string(),
            Err(error) => format!("ended, nobody can tell how ({error})"),
        };
        let last_words = process.last_words().await;
        self.process = None;
        Ended { how, last_words }
    }

    fn down(&self, why: StartError, pause: Duration) {
        tracing::warn!(
            component = self.component,
            "down, to be started again in {pause:?}: {why}"
        );
        self.publish.send_replace(State::Down {
            why: Arc::new(why),
            again: Instant::now() + pause,
        });
    }
}
