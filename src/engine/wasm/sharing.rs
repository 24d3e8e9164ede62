//! One instance of a WASI 0.3 service, and the events that it has at once.
//!
//! ```text
//! first event -> Worker -> Attendance: polls the instance itself, as long as it is alone
//! later event -> Sharing::join -> Attendance: a task of the worker's own polls the instance from now on
//! ```
//!
//! An event joins an instance only while that waits for something: one that computes would keep it waiting. Most events
//! are done before anything waits, and cost no task and no wake-up.
#![expect(
    clippy::result_large_err,
    reason = "an event that finds no instance is handed back as it came"
)]

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use wasmtime_wasi_http::WasiBody;

use super::Shared;
use super::exchange::{Response, Slot};
use super::log::Log;
use super::run::{Guest, panicked};
use crate::again::Again;
use crate::event::{Failure, FailureKind};

/// Events that one instance has at once, each of which has its own time.
const AT_ONCE: usize = 16;

/// An event on its way to an instance: what it asks for, and where its reply is waited for.
pub(super) struct Entering {
    pub(super) request: http::Request<WasiBody>,
    pub(super) member: Arc<Member>,
}

/// One event of an instance, as both its sides know it.
pub(super) struct Member {
    pub(super) slot: Slot,
    /// When its time is over.
    deadline: Instant,
    /// Whether the guest has answered: what becomes of the instance then is no concern of the event's.
    answered: AtomicBool,
    /// How the instance ended, where it did before the event did.
    outcome: Mutex<Option<Result<(), Failure>>>,
    waker: AtomicWaker,
}

impl Member {
    pub(super) fn new(deadline: Instant) -> Arc<Self> {
        Arc::new(Self {
            slot: Slot::default(),
            deadline,
            answered: AtomicBool::new(false),
            outcome: Mutex::default(),
            waker: AtomicWaker::new(),
        })
    }

    pub(super) fn answer(&self, response: Response) {
        self.slot.set(response);
        self.answered.store(true, Ordering::Release);
        self.waker.wake();
    }

    fn end(&self, outcome: Result<(), Failure>) {
        *self.outcome.lock() = Some(outcome);
        self.waker.wake();
    }
}

/// What the instance, as it works, and those who have events in it know of each other.
pub(super) struct Control {
    table: Mutex<Table>,
    /// Whether the instance could take another event when it was last polled.
    open: AtomicBool,
    /// Whether the guest was interrupted while it computed since then.
    interrupted: Arc<AtomicBool>,
    /// The task that polls the instance, where there is one.
    task: AtomicWaker,
    /// What the guest writes to, which is of no single event any more when there are several.
    logs: [Log; 2],
}

struct Table {
    entering: VecDeque<Entering>,
    members: Vec<Arc<Member>>,
    /// Events that the instance has had, and may have.
    events: u32,
    limit: u32,
    /// The latest of all deadlines.
    deadline: Instant,
    /// Takes no more events: it has ended, or an event was given up that the guest may still work on.
    closed: bool,
    given_up: bool,
    /// All who have an event in it know how it ended.
    ended: bool,
}

impl Control {
    /// For an instance that may have `limit` events from now on, and has that of `first`.
    pub(super) fn new(first: &Arc<Member>, limit: u32, interrupted: Arc<AtomicBool>, logs: [Log; 2]) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::new(Table {
                entering: VecDeque::new(),
                members: vec![first.clone()],
                events: 1,
                limit,
                deadline: first.deadline,
                closed: false,
                given_up: false,
                ended: false,
            }),
            open: AtomicBool::new(false),
            interrupted,
            task: AtomicWaker::new(),
            logs,
        })
    }

    /// Says whether the guest could take another event now.
    pub(super) fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::Release);
    }

    /// The next event that waits to be given to the guest.
    pub(super) fn next(&self) -> Option<Entering> {
        self.table.lock().entering.pop_front()
    }

    /// Takes no more events, unless one came just now. True if it is closed.
    pub(super) fn close(&self) -> bool {
        let mut table = self.table.lock();
        table.closed = table.entering.is_empty();
        table.closed
    }

    /// Events that the instance has had.
    pub(super) fn events(&self) -> u32 {
        self.table.lock().events
    }

    /// Tells all who have an event in the instance how it ended; before it is dropped, so that none takes the end of
    /// what it has of a reply for the end of the reply.
    pub(super) fn end(&self, outcome: &Result<(), Failure>) {
        let mut table = self.table.lock();
        if std::mem::replace(&mut table.ended, true) {
            return;
        }
        table.closed = true;
        let members = std::mem::take(&mut table.members);
        table.entering.clear();
        drop(table);
        if let (Err(failure), true) = (outcome, members.is_empty()) {
            self.logs[0].report(failure);
        }
        let outcome = match outcome {
            Err(failure) if members.len() > 1 => Err(Failure {
                message: format!(
                    "{}; its instance had {} events at once, which all failed with it",
                    failure.message,
                    members.len()
                ),
                ..failure.clone()
            }),
            outcome => outcome.clone(),
        };
        for member in members {
            member.end(outcome.clone());
        }
    }

    /// Polls the instance, and notes whether it could take another event then.
    fn poll(&self, guest: &mut Guest, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.set_open(false);
        self.interrupted.store(false, Ordering::Relaxed);
        guest.as_mut().poll(cx)
    }

    /// Whether another event would be taken, and not be kept waiting by what the guest computes.
    fn is_joinable(&self) -> bool {
        self.takes_another(&self.table.lock())
    }

    fn takes_another(&self, table: &Table) -> bool {
        self.open.load(Ordering::Acquire)
            && !self.interrupted.load(Ordering::Relaxed)
            && !table.closed
            && table.events < table.limit
            && table.members.len() < AT_ONCE
    }

    fn enter(&self, entering: Entering) -> Result<Arc<Member>, Entering> {
        let mut table = self.table.lock();
        if !self.takes_another(&table) {
            return Err(entering);
        }
        let member = entering.member.clone();
        table.events += 1;
        table.deadline = table.deadline.max(member.deadline);
        table.members.push(member.clone());
        table.entering.push_back(entering);
        drop(table);
        for log in &self.logs {
            log.share();
        }
        Ok(member)
    }

    /// The event is over, or given up before the guest has answered it.
    fn leave(&self, member: &Arc<Member>) {
        let mut table = self.table.lock();
        table.members.retain(|other| !Arc::ptr_eq(other, member));
        table.entering.retain(|other| !Arc::ptr_eq(&other.member, member));
        if !member.answered.load(Ordering::Acquire) {
            table.closed = true;
            table.given_up = true;
        }
        drop(table);
        self.task.wake();
    }

    /// How an instance that is not done has to end, if it has to. One that computes on for an event that was given up
    /// keeps the others waiting until their own time is over: nobody can tell for whom it computes.
    fn must_end(&self) -> Option<Result<(), Failure>> {
        let table = self.table.lock();
        if table.given_up && table.members.is_empty() {
            return Some(Ok(()));
        }
        (Instant::now() >= table.deadline).then(|| {
            Err(Failure::new(
                FailureKind::Timeout,
                "the guest was not done in time and was ended",
            ))
        })
    }
}

/// An instance at work.
pub(super) struct Worker {
    control: Arc<Control>,
    life: Mutex<Life>,
    listed: AtomicBool,
    shared: Arc<Shared>,
    sharing: Arc<Sharing>,
}

enum Life {
    /// Its one event polls it.
    Alone(Guest),
    /// A task polls it.
    Task,
    Ended,
}

/// The instances of one program that wait for something, and could take another event meanwhile.
#[derive(Default)]
pub(super) struct Sharing(Mutex<Vec<Arc<Worker>>>);

impl Sharing {
    /// Gives the event to an instance that waits.
    ///
    /// # Errors
    /// The event, if there is none.
    pub(super) fn join(&self, mut entering: Entering) -> Result<Attendance, Entering> {
        let mut workers = self.0.lock();
        while let Some(worker) = workers.last() {
            entering = match worker.join(entering) {
                Ok(member) => {
                    let worker = worker.clone();
                    return Ok(Attendance { worker, member });
                }
                Err(entering) => entering,
            };
            worker.listed.store(false, Ordering::Release);
            workers.pop();
        }
        Err(entering)
    }

    fn offer(&self, worker: &Arc<Worker>) {
        if worker.control.is_joinable() && !worker.listed.swap(true, Ordering::AcqRel) {
            self.0.lock().push(worker.clone());
        }
    }

    fn withdraw(&self, worker: &Arc<Worker>) {
        if worker.listed.swap(false, Ordering::AcqRel) {
            self.0.lock().retain(|other| !Arc::ptr_eq(other, worker));
        }
    }
}

impl Worker {
    /// The event `first` in an instance of its own, whose whole way is `guest`.
    pub(super) fn alone(
        shared: Arc<Shared>,
        sharing: Arc<Sharing>,
        control: Arc<Control>,
        first: Arc<Member>,
        guest: Guest,
    ) -> Attendance {
        let worker = Arc::new(Self {
            control,
            life: Mutex::new(Life::Alone(guest)),
            listed: AtomicBool::new(false),
            shared,
            sharing,
        });
        Attendance { worker, member: first }
    }

    fn join(self: &Arc<Self>, entering: Entering) -> Result<Arc<Member>, Entering> {
        // Held while the instance computes.
        let Some(mut life) = self.life.try_lock() else {
            return Err(entering);
        };
        if matches!(*life, Life::Ended) {
            return Err(entering);
        }
        let member = self.control.enter(entering)?;
        self.move_out(&mut life);
        self.control.task.wake();
        Ok(member)
    }

    /// Has a task poll the instance from now on.
    fn move_out(self: &Arc<Self>, life: &mut Life) {
        let Ok(tokio) = tokio::runtime::Handle::try_current() else {
            return;
        };
        match std::mem::replace(life, Life::Task) {
            Life::Alone(guest) => {
                let worker = self.clone();
                let tracked = self.shared.guests.token();
                tokio.spawn(Again::new(async move {
                    worker.work(guest).await;
                    drop(tracked);
                }));
            }
            other => *life = other,
        }
    }

    /// Polls the instance to its end.
    async fn work(self: Arc<Self>, mut guest: Guest) {
        let mut stopped = pin!(self.shared.stop.cancelled());
        let mut until = self.control.table.lock().deadline;
        let mut timer = pin!(tokio::time::sleep_until(until.into()));
        let outcome = std::future::poll_fn(|cx| {
            self.control.task.register(cx.waker());
            // Unwind safety: after a panic the guest, with all that it had, is dropped.
            let polled = catch_unwind(AssertUnwindSafe(|| self.control.poll(&mut guest, cx)));
            if let Poll::Ready(outcome) = polled.unwrap_or_else(|_| Poll::Ready(Err(panicked()))) {
                return Poll::Ready(outcome);
            }
            if stopped.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(Failure::new(
                    FailureKind::Gone,
                    "the program was stopped while it had this event",
                )));
            }
            if let Some(outcome) = self.control.must_end() {
                return Poll::Ready(outcome);
            }
            let deadline = self.control.table.lock().deadline;
            if deadline != until {
                until = deadline;
                timer.as_mut().reset(until.into());
            }
            if timer.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
            self.sharing.offer(&self);
            Poll::Pending
        })
        .await;
        self.control.end(&outcome);
        *self.life.lock() = Life::Ended;
        self.sharing.withdraw(&self);
        drop(guest);
    }
}

/// An event in an instance: done when the instance is. Dropping it gives the event up.
pub(super) struct Attendance {
    worker: Arc<Worker>,
    member: Arc<Member>,
}

impl Attendance {
    /// The guest's standard error.
    pub(super) fn log(&self) -> &Log {
        &self.worker.control.logs[0]
    }

    /// The reply is on its way and complete, and the guest may go on without it.
    pub(super) fn let_go(&mut self) {
        self.worker.move_out(&mut self.worker.life.lock());
    }

    /// How the instance ended, if it did before the event did.
    pub(super) fn failed(&mut self) -> Option<Failure> {
        self.member.outcome.lock().take()?.err()
    }
}

impl Future for Attendance {
    type Output = Result<(), Failure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { worker, member } = &*self;
        let mut life = worker.life.lock();
        if let Life::Alone(guest) = &mut *life {
            let polled = worker.control.poll(guest, cx);
            if polled.is_ready() {
                *life = Life::Ended;
            } else {
                member.waker.register(cx.waker());
            }
            drop(life);
            match polled {
                Poll::Ready(_) => worker.sharing.withdraw(worker),
                Poll::Pending => worker.sharing.offer(worker),
            }
            return polled;
        }
        drop(life);
        member.waker.register(cx.waker());
        match member.outcome.lock().take() {
            Some(outcome) => Poll::Ready(outcome),
            None => Poll::Pending,
        }
    }
}

impl Drop for Attendance {
    fn drop(&mut self) {
        let Self { worker, member } = self;
        let mut life = worker.life.lock();
        let alone = match &mut *life {
            Life::Alone(_) => Some(std::mem::replace(&mut *life, Life::Ended)),
            Life::Task | Life::Ended => None,
        };
        drop(life);
        if alone.is_some() {
            worker.control.close();
            worker.sharing.withdraw(worker);
        } else {
            worker.control.leave(member);
        }
    }
}
