//! Keeps a program running: notices its end at once, whoever waits for what at that moment, and starts it again, after
//! pauses that grow while it keeps ending.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use http::{Request, Response};
use hyper::upgrade::OnUpgrade;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::launch::{Listening, Start};
use super::upstream::{SendError, Upstream};
use crate::engine::StartError;
use crate::engine::backoff::{Backoff, PATIENCE, retry_after};
use crate::engine::process::Process;
use crate::event::{Body, Failure, FailureKind};
use crate::program::limits::{MaxRequests, jittered};

/// How long an event waits for a program that is being started again.
const RESTART_PATIENCE: Duration = Duration::from_secs(5);

/// How often a run that was replaced is asked whether it has answered all of its events.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long such a run may take to end after that.
const REPLACED_GRACE: Duration = Duration::from_secs(5);

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
    /// Events until it is replaced; `None` where it never is.
    left: Option<AtomicI64>,
    /// It has had its share of events.
    is_spent: Notify,
}

/// What is the same for every run of a program.
#[derive(Clone)]
pub struct Conditions {
    pub component: String,
    pub start: Arc<dyn Start>,
    /// Time to the head of a reply, and between two pieces of its body.
    pub timeout: Duration,
    pub max_requests: Option<MaxRequests>,
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
    /// Supervises a program: `first`, which listens already, or one that is started in the background.
    pub fn new(conditions: Conditions, first: Option<Listening>) -> Self {
        let component = conditions.component.clone();
        let running = first.map(|listening| Running::new(listening, &conditions));
        let (publish, state) = watch::channel(match &running {
            Some(running) => State::Up(Arc::clone(&running.run)),
            None => State::Down {
                why: Arc::new(StartError::new("it has not been started yet")),
                again: Instant::now(),
            },
        });
        let (stop, stopping) = mpsc::channel(1);
        let supervisor = Supervisor {
            conditions,
            publish,
            running,
            backoff: Backoff::default(),
            replaced: JoinSet::new(),
        };
        tokio::spawn(supervisor.supervise(stopping));
        Self { component, state, stop }
    }

    /// The program's present run, if it has one.
    pub fn up(&self) -> Option<Arc<Run>> {
        match &*self.state.borrow() {
            State::Up(run) => Some(Arc::clone(run)),
            _ => None,
        }
    }

    /// The program's present run; while the program is down, the next run, if it comes soon.
    ///
    /// # Errors
    /// [`FailureKind::Unavailable`] with the reason why there is none.
    pub async fn run(&self) -> Result<Arc<Run>, Failure> {
        if let Some(run) = self.up() {
            return Ok(run);
        }
        let give_up = Instant::now() + RESTART_PATIENCE;
        let mut state = self.state.clone();
        loop {
            let (why, again) = match &*state.borrow_and_update() {
                State::Up(run) => return Ok(Arc::clone(run)),
                State::Stopping | State::Stopped => return Err(self.unavailable("was stopped")),
                State::Down { why, again } => (Arc::clone(why), *again),
            };
            let is_near = again.saturating_duration_since(Instant::now()) <= PATIENCE;
            if is_near && matches!(tokio::time::timeout_at(give_up, state.changed()).await, Ok(Ok(()))) {
                continue;
            }
            let wait = again.saturating_duration_since(Instant::now());
            let when = match wait {
                Duration::ZERO => "is being started again".to_owned(),
                next => format!("will be started again in {next:.1?}"),
            };
            let mut failure = self.unavailable(&format!("is down and {when}: {why}"));
            failure.traceback.clone_from(&why.traceback);
            failure.retry_after = Some(retry_after(wait));
            return Err(failure);
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
    /// Gives the program an event. The error comes with how this run ended, if that is why.
    pub async fn send(
        &self,
        request: Request<Body>,
        client: Option<OnUpgrade>,
    ) -> Result<Response<Body>, (SendError, Option<Ended>)> {
        if let Some(left) = &self.left
            && left.fetch_sub(1, Ordering::Relaxed) == 1
        {
            self.is_spent.notify_one();
        }
        match self.upstream.send(request, client).await {
            Ok(response) => Ok(response),
            Err(error) if error.is_of_the_connection() => Err((error, self.ended().await)),
            Err(error) => Err((error, None)),
        }
    }

    /// How this run ended, if it has ended or is about to.
    async fn ended(&self) -> Option<Ended> {
        let mut ended = self.ended.clone();
        let ended = tokio::time::timeout(EXIT_PATIENCE, ended.wait_for(Option::is_some))
            .await
            .ok()?
            .ok()?;
        ended.clone()
    }
}

/// A run, and what only its supervisor has of it.
struct Running {
    run: Arc<Run>,
    process: Process,
    end: watch::Sender<Option<Ended>>,
    since: Instant,
}

impl Running {
    fn new(listening: Listening, conditions: &Conditions) -> Self {
        let (end, ended) = watch::channel(None);
        let upstream = Upstream::new(listening.addresses, listening.listener, conditions.timeout);
        let share = conditions.max_requests.map(jittered);
        Self {
            run: Arc::new(Run {
                upstream,
                ended,
                left: share.map(|share| AtomicI64::new(share.into())),
                is_spent: Notify::new(),
            }),
            process: listening.process,
            end,
            since: Instant::now(),
        }
    }

    /// Waits for the end of the program.
    async fn ended(&mut self) -> Ended {
        let how = match self.process.ended().await {
            Ok(exit) => exit.to_string(),
            Err(error) => format!("ended, nobody can tell how ({error})"),
        };
        let last_words = self.process.last_words().await;
        Ended { how, last_words }
    }

    /// Lets a run that gets no more events answer those that it has, and ends it.
    async fn retire(mut self, timeout: Duration) {
        let answered = async {
            // Whoever waits for a reply, or is in the middle of one, holds on to it.
            while Arc::strong_count(&self.run) > 1 || Arc::strong_count(&self.run.upstream) > 1 {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        let _ = tokio::time::timeout(timeout, answered).await;
        // How it ends is nobody's concern any more.
        let _ = self.process.stop(REPLACED_GRACE).await;
        self.end.send_replace(Some(Ended {
            how: "was replaced after its `max_requests`".to_owned(),
            last_words: String::new(),
        }));
    }
}

/// Why a run gets no more events.
enum Over {
    Ended(Ended),
    Spent,
}

struct Supervisor {
    conditions: Conditions,
    publish: watch::Sender<State>,
    /// None while the program is down.
    running: Option<Running>,
    backoff: Backoff,
    /// Runs that have been replaced and have not ended.
    replaced: JoinSet<()>,
}

impl Supervisor {
    async fn supervise(mut self, mut stopping: mpsc::Receiver<Duration>) {
        let grace = tokio::select! {
            grace = stopping.recv() => grace,
            _ = self.keep_running() => None,
        };
        self.publish.send_replace(State::Stopping);
        // Without a grace, nobody uses the program any more: dropping it kills it.
        if let (Some(grace), Some(running)) = (grace, &mut self.running) {
            // How it ends is nobody's concern any more.
            let _ = running.process.stop(grace).await;
        }
        self.running = None;
        self.replaced.shutdown().await;
        self.publish.send_replace(State::Stopped);
    }

    async fn keep_running(&mut self) -> std::convert::Infallible {
        loop {
            let Some(running) = &mut self.running else {
                self.start().await;
                continue;
            };
            let run = Arc::clone(&running.run);
            let over = tokio::select! {
                ended = running.ended() => Over::Ended(ended),
                () = run.is_spent.notified() => Over::Spent,
            };
            drop(run);
            match over {
                Over::Ended(ended) => self.note_end(ended),
                Over::Spent => self.replace().await,
            }
            while self.replaced.try_join_next().is_some() {}
        }
    }

    fn note_end(&mut self, ended: Ended) {
        let Some(running) = self.running.take() else { return };
        let why = StartError::new(format!("it {}", ended.how)).with_traceback(&ended.last_words);
        // In this order: whoever hears of the end must not be given the same run again.
        self.down(why, running.since.elapsed());
        running.end.send_replace(Some(ended));
    }

    /// Starts the program until it runs.
    async fn start(&mut self) {
        loop {
            let again = match &*self.publish.borrow() {
                State::Down { again, .. } => *again,
                _ => Instant::now(),
            };
            tokio::time::sleep_until(again).await;
            match self.conditions.start.start().await {
                Ok(listening) => return self.up(listening),
                Err(error) => self.down(error, Duration::ZERO),
            }
        }
    }

    /// Puts another run in the place of one that has had its share of events.
    async fn replace(&mut self) {
        let component = self.conditions.component.clone();
        let started = self.conditions.start.start().await;
        let Some(old) = self.running.take() else { return };
        let timeout = self.conditions.timeout;
        match started {
            Ok(listening) => {
                self.up(listening);
                self.replaced.spawn(old.retire(timeout));
            }
            Err(error) => {
                // Two can't run at once if the port is the program's own choice.
                tracing::info!(component, "ends before it is started again: {error}");
                self.publish.send_replace(State::Down {
                    why: Arc::new(StartError::new("it is being replaced after its `max_requests`")),
                    again: Instant::now(),
                });
                old.retire(timeout).await;
            }
        }
    }

    fn up(&mut self, listening: Listening) {
        let running = Running::new(listening, &self.conditions);
        let run = Arc::clone(&running.run);
        tracing::info!(component = self.conditions.component, address = %run.upstream.address(), "started");
        self.running = Some(running);
        self.publish.send_replace(State::Up(run));
    }

    fn down(&mut self, why: StartError, lived: Duration) {
        let pause = self.backoff.after(lived);
        tracing::warn!(
            component = self.conditions.component,
            "down, to be started again in {pause:?}: {why}"
        );
        self.publish.send_replace(State::Down {
            why: Arc::new(why),
            again: Instant::now() + pause,
        });
    }
}
