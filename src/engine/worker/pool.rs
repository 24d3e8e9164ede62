//! The workers of one component: which of them gets an event, when there are more, and what happens when one ends.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use super::Language;
use super::channel::Channel;
use super::frame::Kind;
use super::launch::{Launched, last_breath, launch};
use super::warm::Interpreter;
use crate::engine::process::Process;
use crate::engine::{Engine, Handling, Settings, StartError, Working};
use crate::event::{Event, Failure, FailureKind, Reply};
use crate::program::Component;

/// How long a worker that has events may be silent before it is asked whether it is there.
const SILENCE: Duration = Duration::from_millis(100);

/// How long it may take to answer that: its loop runs, if it runs, many times in this.
const ANSWER: Duration = Duration::from_millis(20);

/// How often it is looked again whether a worker that blocked has come back.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The pause before a worker is started again, doubled each time that this fails.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

/// The part of the time to stop that a program gets before it is told by a signal.
const GENTLE: f64 = 0.8;

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
    /// The state has changed: who waits for a worker looks again.
    changed: Notify,
    stopping: watch::Sender<Option<Instant>>,
}

#[derive(Default)]
struct State {
    workers: Vec<Arc<Worker>>,
    starting: usize,
    /// Why the last start failed, while no worker lives.
    broken: Option<Failure>,
}

struct Worker {
    channel: Arc<Channel>,
    /// It did not answer; until it is heard again it gets nothing.
    blocked: AtomicBool,
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
            pool.stopping.send_replace(Some(Instant::now() + grace));
            loop {
                let changed = pool.changed.notified();
                {
                    let state = pool.state();
                    if state.workers.is_empty() && state.starting == 0 {
                        return;
                    }
                }
                // The keepers see to the deadline; this is for a change that comes between the look and the wait.
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
        worker.channel.clone().handle(event).await
    }

    /// The worker that gets the next event, as soon as there is one.
    async fn choose(self: &Arc<Self>) -> Result<Arc<Worker>, Failure> {
        let mut began = None;
        loop {
            let changed = self.changed.notified();
            match self.look() {
                Choice::Give(worker) => return Ok(worker),
                Choice::Refuse(failure) => return Err(failure),
                Choice::Ask(worker) => {
                    if worker.channel.answers(ANSWER).await {
                        return Ok(worker);
                    }
                    worker.blocked.store(true, Ordering::Relaxed);
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
        let mut state = self.state();
        if self.stopping.borrow().is_some() {
            return Choice::Refuse(self.unavailable("it is being stopped"));
        }
        if state.workers.is_empty() {
            return match &state.broken {
                Some(failure) => Choice::Refuse(failure.clone()),
                None => Choice::Wait,
            };
        }
        let best = state
            .workers
            .iter()
            .filter(|worker| worker.answers())
            .map(|worker| (worker.channel.load(), worker))
            .min_by_key(|(load, _)| *load);
        let choice = match best {
            Some((0, worker)) => return Choice::Give(worker.clone()),
            // While there may be more workers, one that blocks is not to swallow the event that shows it. And one that
            // has been silent for long is not to be trusted either.
            Some((_, worker)) if state.workers.len() < self.most || worker.channel.silence() > SILENCE => {
                Choice::Ask(worker.clone())
            }
            Some((_, worker)) => Choice::Give(worker.clone()),
            None => Choice::Wait,
        };
        if state.workers.len() + state.starting < self.most {
            state.starting += 1;
            tokio::spawn(self.clone().grow());
        }
        choice
    }

    /// Starts one more worker.
    async fn grow(self: Arc<Self>) {
        let started = self.start_worker().await;
        self.state().starting -= 1;
        match started {
            Ok(launched) => self.adopt(launched.interpreter),
            Err(error) => {
                tracing::warn!("{}: one more worker could not be started: {error}", self.component.name);
                self.changed.notify_waiters();
            }
        }
    }

    /// Starts a worker and waits until its program can take events.
    async fn start_worker(&self) -> Result<Launched, StartError> {
        tokio::select! {
            launched = launch(&self.language, &self.component, &self.settings) => launched,
            () = self.stop_asked() => Err(StartError::new(format!("{}: it is being stopped", self.component.name))),
        }
    }

    /// Takes a worker that is ready into service.
    fn adopt(self: Arc<Self>, interpreter: Interpreter) {
        let worker = Arc::new(Worker {
            channel: interpreter.channel,
            blocked: AtomicBool::new(false),
        });
        {
            let mut state = self.state();
            state.broken = None;
            state.workers.push(worker.clone());
        }
        self.changed.notify_waiters();
        tokio::spawn(self.keep(worker, interpreter.process));
    }

    /// Watches over a worker until its end, and sees to it that the component has one afterwards.
    async fn keep(self: Arc<Self>, worker: Arc<Worker>, mut process: Process) {
        let born = Instant::now();
        let late = self.late();
        let reason = tokio::select! {
            error = worker.channel.run() => Some(error),
            never = worker.channel.expire(self.settings.event_timeout, &late) => match never {},
            () = self.stop_asked() => None,
        };
        if reason.is_none() {
            self.end(&worker, &mut process).await;
        }
        let how = last_breath(&mut process).await;
        let words = process.last_words().await;
        let mut failure = Failure::new(
            FailureKind::Gone,
            format!(
                "{}: the {} worker {how} while it had this event",
                self.component.name,
                self.language.name()
            ),
        );
        if !words.is_empty() {
            failure.traceback = Some(words);
        }
        worker.channel.close(&failure);
        let alone = {
            let mut state = self.state();
            state.workers.retain(|other| !Arc::ptr_eq(other, &worker));
            state.workers.is_empty() && state.starting == 0 && reason.is_some()
        };
        self.changed.notify_waiters();
        if let Some(reason) = reason {
            tracing::warn!(
                "{}: the {} worker {how} ({reason})",
                self.component.name,
                self.language.name()
            );
        }
        if alone {
            self.revive(born.elapsed()).await;
        }
    }

    /// Starts a worker again, until that succeeds.
    async fn revive(self: Arc<Self>, lived: Duration) {
        // One that ends as soon as it lives is no better than one that does not start.
        let mut pause = if lived < BACKOFF.1 { BACKOFF.0 } else { Duration::ZERO };
        while self.stopping.borrow().is_none() {
            tokio::time::sleep(pause).await;
            match self.start_worker().await {
                Ok(launched) => return self.adopt(launched.interpreter),
                Err(error) => {
                    tracing::error!("{error}");
                    let mut failure = self.unavailable(&error.message);
                    failure.traceback = error.traceback;
                    self.state().broken = Some(failure);
                    self.changed.notify_waiters();
                }
            }
            pause = (pause * 2).clamp(BACKOFF.0, BACKOFF.1);
        }
    }

    /// Lets the program shut down: it finishes its events, then its lifespan; then by signals.
    async fn end(&self, worker: &Worker, process: &mut Process) {
        let deadline = self.stopping.borrow().unwrap_or_else(Instant::now);
        let left = deadline.saturating_duration_since(Instant::now());
        worker.channel.tell(Kind::Stop, b"");
        let gently = tokio::time::timeout(left.mul_f64(GENTLE), async {
            tokio::join!(worker.channel.run(), process.ended())
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
            // An error would mean that the pool is gone, which holds its end as long as we run.
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

    fn unavailable(&self, why: &str) -> Failure {
        Failure::new(FailureKind::Unavailable, format!("{}: {why}", self.component.name))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    /// Whether it may get events: one that blocked may again once it was heard.
    fn answers(&self) -> bool {
        if !self.blocked.load(Ordering::Relaxed) {
            return true;
        }
        let back = self.channel.silence() < SILENCE;
        if back {
            self.blocked.store(false, Ordering::Relaxed);
        }
        back
    }
}
