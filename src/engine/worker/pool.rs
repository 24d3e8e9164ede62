//! The workers of one component: which of them gets an event, when one more is started, and what happens when one ends.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::Language;
use super::channel::{Channel, ChannelError};
use super::frame::Kind;
use super::launch::{Launched, last_breath, launch};
use super::warm::Interpreter;
use crate::engine::backoff::{Backoff, PATIENCE, retry_after};
use crate::engine::process::Process;
use crate::engine::{Engine, Handling, Settings, StartError, Working};
use crate::event::{Event, Failure, FailureKind, Reply};
use crate::program::Component;
use crate::program::limits::jittered;

/// How long a worker that has events may be silent before it is asked whether it is there.
const SILENCE: Duration = Duration::from_millis(100);

/// How long it may take to answer: in this time an event loop that runs at all runs many times.
const ANSWER: Duration = Duration::from_millis(20);

/// How often workers that blocked, or are to end, are looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long a worker that was replaced, and has no more events, may take to end.
const REPLACED_GRACE: Duration = Duration::from_secs(5);

/// How long the tasks that keep workers are waited for beyond the deadline: what they kill takes a moment to die.
const KEEPERS_LAST: Duration = Duration::from_secs(2);

/// The share of the time to stop that a program gets before it is sent a signal.
const GENTLE: f64 = 0.8;

/// The share of it that its events get which are still under way: behind them comes its own shutdown.
const EVENTS_LAST: f64 = 0.6;

/// The engine of a component whose language has workers.
pub struct Workers(Arc<Pool>);

struct Pool {
    language: Arc<dyn Language>,
    component: Component,
    settings: Settings,
    /// What the first worker found in the program.
    found: String,
    most: usize,
    state: Mutex<State>,
    /// The state has changed: whoever waits for a worker looks again.
    changed: Notify,
    stopping: watch::Sender<Option<Instant>>,
}

#[derive(Default)]
struct State {
    /// Those that get events.
    workers: Vec<Arc<Worker>>,
    /// Those whose processes have not ended.
    living: usize,
    starting: usize,
    backoff: Backoff,
    /// After a failure, when the next worker may be started.
    again: Option<Instant>,
    /// How the last worker failed; `None` again once one is ready.
    down: Option<Down>,
}

/// Why there is no worker.
struct Down {
    why: Failure,
    /// It could not even be started: the next one hardly will be, either.
    at_start: bool,
}

struct Worker {
    channel: Arc<Channel>,
    /// Set if it did not answer: until it is heard again, it gets no events.
    blocked: Mutex<Option<Blocked>>,
    /// It has blocked for so long that it is to be killed.
    stuck: CancellationToken,
    /// Events until it is replaced; `None` where it never is.
    left: Option<AtomicI64>,
    /// It has been replaced, and is to end once its events have.
    replaced: CancellationToken,
}

#[derive(Clone, Copy)]
struct Blocked {
    /// When it was last heard before, by [`Channel::heard`].
    heard: u64,
    since: Instant,
}

/// What to do with an event.
enum Choice {
    Give(Arc<Worker>),
    /// Give it, if the worker answers.
    Ask(Arc<Worker>),
    Wait,
    Refuse(Failure),
}

impl Workers {
    /// Begins with `first`, a worker of this language and component that was launched just now.
    pub fn new(language: Arc<dyn Language>, component: &Component, settings: &Settings, first: Launched) -> Self {
        let pool = Pool {
            language,
            component: component.clone(),
            settings: settings.clone(),
            found: first.found.found,
            most: settings.workers.unwrap_or(settings.cores.max(2)),
            state: Mutex::default(),
            changed: Notify::new(),
            stopping: watch::Sender::new(None),
        };
        let pool = Arc::new(pool);
        pool.clone().adopt(first.interpreter);
        Self(pool)
    }
}

impl Engine for Workers {
    fn handle(&self, event: Event) -> Handling {
        let pool = self.0.clone();
        Box::pin(async move { pool.handle(event).await })
    }

    fn stop(&self, grace: Duration) -> Working {
        let pool = self.0.clone();
        Box::pin(async move {
            let deadline = Instant::now() + grace;
            pool.stopping.send_replace(Some(deadline));
            loop {
                let changed = pool.changed.notified();
                {
                    let state = pool.state.lock();
                    if state.living == 0 && state.starting == 0 {
                        return;
                    }
                }
                // The tasks that keep workers hold to the deadline; what they leave is killed when they are dropped.
                if Instant::now() >= deadline + KEEPERS_LAST {
                    return;
                }
                // For a change that comes between the look and the wait.
                let _ = tokio::time::timeout(LOOK_AGAIN, changed).await;
            }
        })
    }

    fn describe(&self) -> String {
        self.0.found.clone()
    }
}

impl Pool {
    async fn handle(self: &Arc<Self>, event: Event) -> Result<Reply, Failure> {
        let worker = self.choose().await?;
        let mut spare = None;
        let reply = worker.channel.clone().handle(event, &mut spare).await;
        match (reply, spare) {
            // No part of a reply has come, and the event may safely be repeated: another worker may live longer.
            (Err(failure), Some(event)) if failure.kind == FailureKind::Gone => {
                drop(worker);
                let Ok(worker) = self.choose().await else {
                    return Err(failure);
                };
                worker.channel.clone().handle(event, &mut None).await
            }
            (reply, _) => reply,
        }
    }

    /// The worker that gets the next event, as soon as there is one.
    async fn choose(self: &Arc<Self>) -> Result<Arc<Worker>, Failure> {
        let mut began = None;
        loop {
            let changed = self.changed.notified();
            match self.look() {
                Choice::Give(worker) => return Ok(self.count(worker)),
                Choice::Refuse(failure) => return Err(failure),
                Choice::Ask(worker) => {
                    let heard = worker.channel.heard();
                    if worker.channel.answers(ANSWER).await {
                        return Ok(self.count(worker));
                    }
                    let since = Instant::now();
                    *worker.blocked.lock() = Some(Blocked { heard, since });
                }
                Choice::Wait => {
                    if began.get_or_insert_with(Instant::now).elapsed() >= self.settings.event_timeout {
                        return Err(self.late());
                    }
                    drop(tokio::time::timeout(LOOK_AGAIN, changed).await);
                }
            }
        }
    }

    fn look(self: &Arc<Self>) -> Choice {
        let mut state = self.state.lock();
        if self.is_stopping() {
            return Choice::Refuse(self.unavailable("it is being stopped"));
        }
        if state.workers.is_empty() {
            let wait = state.wait();
            return match &state.down {
                Some(down) if down.at_start || wait > PATIENCE => Choice::Refuse(self.refusal(down, wait)),
                _ => Choice::Wait,
            };
        }
        let best = state
            .workers
            .iter()
            .filter(|worker| worker.answers())
            .map(|worker| (worker.channel.load(), worker))
            .min_by_key(|(load, _)| *load);
        let choice = match best {
            Some((0, worker)) if !worker.channel.is_doubtful() => return Choice::Give(worker.clone()),
            // While more workers may be started, one that blocks must not swallow the event that shows it. And one that
            // has been silent for long is not trusted, either.
            Some((load, worker))
                if load == 0 || state.workers.len() < self.most || worker.channel.silence() > SILENCE =>
            {
                Choice::Ask(worker.clone())
            }
            Some((_, worker)) => Choice::Give(worker.clone()),
            None => {
                // There is room for no other: who waits now waits for one that may never come back.
                let stuck = |worker: &&Arc<Worker>| worker.has_blocked_for(self.settings.event_timeout);
                if state.workers.len() >= self.most
                    && let Some(worker) = state.workers.iter().find(stuck)
                {
                    worker.stuck.cancel();
                }
                Choice::Wait
            }
        };
        if state.workers.len() + state.starting < self.most && state.wait().is_zero() {
            state.starting += 1;
            tokio::spawn(self.clone().grow());
        }
        choice
    }

    /// Counts an event that `worker` gets, and has the worker replaced once it has had its share of events.
    fn count(self: &Arc<Self>, worker: Arc<Worker>) -> Arc<Worker> {
        if let Some(left) = &worker.left
            && left.fetch_sub(1, Ordering::Relaxed) == 1
        {
            tokio::spawn(self.clone().replace(worker.clone()));
        }
        worker
    }

    /// Starts one more worker.
    async fn grow(self: Arc<Self>) {
        let started = self.start_worker().await;
        match started {
            Ok(launched) => {
                self.state.lock().starting -= 1;
                self.adopt(launched.interpreter);
            }
            Err(error) => {
                tracing::warn!("{}: one more worker could not be started: {error}", self.component.name);
                let alone = {
                    let mut state = self.state.lock();
                    state.fail(Duration::ZERO, self.down(&error));
                    let alone = state.workers.is_empty() && state.starting == 1 && !self.is_stopping();
                    if !alone {
                        state.starting -= 1;
                    }
                    alone
                };
                self.changed.notify_waiters();
                if alone {
                    self.revive().await;
                }
            }
        }
    }

    /// Starts a worker in the place of one that has had its share of events, which then ends.
    async fn replace(self: Arc<Self>, old: Arc<Worker>) {
        self.state.lock().starting += 1;
        let started = self.start_worker().await;
        self.state.lock().starting -= 1;
        match started {
            Ok(launched) => {
                self.clone().adopt(launched.interpreter);
                old.replaced.cancel();
            }
            Err(error) => {
                tracing::warn!("{}: a worker could not be replaced: {error}", self.component.name);
                if let (Some(left), Some(again)) = (&old.left, self.share()) {
                    left.store(again, Ordering::Relaxed);
                }
                self.changed.notify_waiters();
            }
        }
    }

    /// Events that a new worker gets until it is replaced.
    fn share(&self) -> Option<i64> {
        self.component.keys.max_requests.map(|limit| jittered(limit).into())
    }

    /// Starts a worker and waits until its program can take events.
    async fn start_worker(&self) -> Result<Launched, StartError> {
        tokio::select! {
            launched = launch(&self.language, &self.component, &self.settings) => launched,
            () = self.stop_asked() => Err(StartError::new(format!("{}: it is being stopped", self.component.name))),
        }
    }

    /// Puts a worker that is ready into service.
    fn adopt(self: Arc<Self>, interpreter: Interpreter) {
        let worker = Arc::new(Worker {
            channel: interpreter.channel,
            blocked: Mutex::default(),
            stuck: CancellationToken::new(),
            left: self.share().map(AtomicI64::new),
            replaced: CancellationToken::new(),
        });
        {
            let mut state = self.state.lock();
            state.down = None;
            state.living += 1;
            state.workers.push(worker.clone());
        }
        self.changed.notify_waiters();
        tokio::spawn(self.keep(worker, interpreter.process));
    }

    /// Watches over a worker until its end, and makes sure that the component has one afterwards.
    async fn keep(self: Arc<Self>, worker: Arc<Worker>, mut process: Process) {
        let born = Instant::now();
        let late = self.late();
        let end = tokio::select! {
            error = worker.channel.run_with(&mut process) => End::Failed(error),
            () = worker.stuck.cancelled() => End::Failed(ChannelError::Stuck),
            never = worker.channel.expire(self.settings.event_timeout, &late) => match never {},
            () = self.stop_asked() => End::Stopped,
            () = worker.replaced.cancelled() => End::Replaced,
        };
        // From here on it gets no more events.
        self.state.lock().workers.retain(|other| !Arc::ptr_eq(other, &worker));
        match end {
            End::Failed(ChannelError::Stuck) => drop(process.stop(Duration::ZERO).await),
            End::Failed(_) => {}
            End::Stopped => self.end(&worker, &mut process, self.stop_deadline()).await,
            End::Replaced => {
                let deadline = Instant::now() + self.settings.event_timeout;
                self.drain(&worker, &mut process, deadline).await;
                let grace = Instant::now() + REPLACED_GRACE;
                let deadline = self.stopping.borrow().map_or(grace, |stop| stop.min(grace));
                self.end(&worker, &mut process, deadline).await;
            }
        }
        let how = last_breath(&mut process).await;
        let words = process.last_words().await;
        let (component, language) = (&self.component.name, self.language.name());
        let mut failure = Failure::new(
            FailureKind::Gone,
            format!("{component}: the {language} worker {how} while it had this event"),
        );
        if !words.is_empty() {
            failure.traceback = Some(words);
        }
        let alone = match &end {
            End::Failed(reason) => {
                tracing::warn!("{component}: the {language} worker {how} ({reason})");
                let mut why = self.unavailable(&format!("the {language} worker {how}"));
                why.traceback.clone_from(&failure.traceback);
                let mut state = self.state.lock();
                state.fail(born.elapsed(), Down { why, at_start: false });
                let alone = state.workers.is_empty() && state.starting == 0 && !self.is_stopping();
                state.starting += usize::from(alone);
                alone
            }
            End::Replaced => {
                tracing::info!("{component}: a {language} worker was replaced after its `max_requests`");
                false
            }
            End::Stopped => false,
        };
        worker.channel.close(&failure);
        self.state.lock().living -= 1;
        self.changed.notify_waiters();
        if alone {
            self.revive().await;
        }
    }

    /// Tries to start a worker until that succeeds. The caller has counted it in `starting` already.
    async fn revive(self: Arc<Self>) {
        while !self.is_stopping() {
            let wait = self.state.lock().wait();
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.stop_asked() => break,
            }
            match self.start_worker().await {
                Ok(launched) => {
                    self.state.lock().starting -= 1;
                    return self.adopt(launched.interpreter);
                }
                Err(_) if self.is_stopping() => break,
                Err(error) => {
                    tracing::error!("{error}");
                    let down = self.down(&error);
                    self.state.lock().fail(Duration::ZERO, down);
                    self.changed.notify_waiters();
                }
            }
        }
        self.state.lock().starting -= 1;
        self.changed.notify_waiters();
    }

    /// Waits until a worker that gets no more events has answered those that it has.
    async fn drain(&self, worker: &Arc<Worker>, process: &mut Process, deadline: Instant) {
        let answered = async {
            // Whoever has given it an event holds a reference until the reply has begun.
            while Arc::strong_count(worker) > 1 {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            // It ends its WebSockets, which may have no end of their own; replies on their way are finished.
            worker.ask_to_stop(deadline.saturating_duration_since(Instant::now()));
            while worker.channel.load() > 0 {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        let draining = tokio::time::timeout_at(deadline.into(), answered);
        tokio::select! {
            _ = draining => {}
            _ = worker.channel.run_with(process) => {}
            () = self.stop_asked() => {}
        }
    }

    /// Ends a worker: its program is asked to finish its events and shut down, and is sent signals if it does not.
    async fn end(&self, worker: &Worker, process: &mut Process, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        worker.ask_to_stop(left.mul_f64(EVENTS_LAST));
        let gently = tokio::time::timeout(left.mul_f64(GENTLE), async {
            worker.channel.run_with(process).await;
            process.ended().await
        });
        if gently.await.is_err() {
            let left = deadline.saturating_duration_since(Instant::now());
            tracing::warn!(
                "{}: the program does not end; its worker is killed",
                self.component.name
            );
            let _ = process.stop(left).await;
        }
    }

    fn stop_asked(&self) -> impl Future<Output = ()> + use<> {
        let mut stopping = self.stopping.subscribe();
        async move {
            // An error would mean that the pool is gone, and with it the sender, which lives as long as we run.
            let _ = stopping.wait_for(Option::is_some).await;
        }
    }

    fn late(&self) -> Failure {
        let limit = self.settings.event_timeout.as_secs_f64();
        Failure::new(
            FailureKind::Timeout,
            format!("{}: no reply within {limit} s", self.component.name),
        )
    }

    fn is_stopping(&self) -> bool {
        self.stopping.borrow().is_some()
    }

    fn stop_deadline(&self) -> Instant {
        self.stopping.borrow().unwrap_or_else(Instant::now)
    }

    fn down(&self, error: &StartError) -> Down {
        let mut why = self.unavailable(&error.message);
        why.traceback.clone_from(&error.traceback);
        Down { why, at_start: true }
    }

    /// What events are told while there is no worker, and none for another `wait`.
    fn refusal(&self, down: &Down, wait: Duration) -> Failure {
        let mut failure = down.why.clone();
        if !wait.is_zero() {
            failure.message = format!("{}; it is started again in {wait:.1?}", failure.message);
        }
        failure.retry_after = Some(retry_after(wait));
        failure
    }

    fn unavailable(&self, why: &str) -> Failure {
        Failure::new(FailureKind::Unavailable, format!("{}: {why}", self.component.name))
    }
}

/// Why a worker gets no more events.
enum End {
    Failed(ChannelError),
    Stopped,
    Replaced,
}

impl State {
    /// How long no worker is to be started yet.
    fn wait(&self) -> Duration {
        let now = Instant::now();
        self.again
            .map(|again| again.saturating_duration_since(now))
            .unwrap_or_default()
    }

    /// Notes the failure of a worker that has lived for `lived`.
    fn fail(&mut self, lived: Duration, down: Down) {
        self.again = Some(Instant::now() + self.backoff.after(lived));
        self.down = Some(down);
    }
}

impl Worker {
    /// It is to finish its events, and then to end. Told again, it has no more than the time it is told then.
    fn ask_to_stop(&self, events_last: Duration) {
        let milliseconds = u32::try_from(events_last.as_millis()).unwrap_or(u32::MAX);
        self.channel.tell(Kind::Stop, &milliseconds.to_le_bytes());
    }

    /// Whether it may get events. One that blocked may again once it has been heard: it has been asked, and answers when it
    /// can, which may be long before anybody looks.
    fn answers(&self) -> bool {
        let mut blocked = self.blocked.lock();
        if blocked.is_some_and(|blocked| self.channel.heard() != blocked.heard) {
            *blocked = None;
        }
        blocked.is_none()
    }

    fn has_blocked_for(&self, time: Duration) -> bool {
        self.blocked
            .lock()
            .is_some_and(|blocked| blocked.since.elapsed() >= time)
    }
}
