//! A guest at work on one event.
//!
//! The guest is no task of its own: it computes when the one who waits for its reply polls, first the intake for the
//! head, then the intake's connection for each piece of the body. So an event costs no wake-up, a slow client slows
//! its guest, and a client that goes away takes the guest with it.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio_util::task::task_tracker::TaskTrackerToken;

use super::Shared;
use super::runtime::Admission;
use super::sharing::Attendance;
use crate::event::{EventId, Failure, FailureKind};

/// What holds for one guest.
pub(super) struct Terms {
    pub(super) shared: Arc<Shared>,
    pub(super) event: EventId,
    pub(super) started: Instant,
    pub(super) _tracked: TaskTrackerToken,
    /// Where the guest has it, and not the instance.
    pub(super) _admission: Option<Admission>,
}

impl Terms {
    /// When the event's time is over.
    pub(super) fn deadline(&self) -> Instant {
        self.started + self.shared.timeout
    }

    /// What ends the event from outside.
    pub(super) fn end(&self) -> End {
        let (timeout, stop) = (self.shared.timeout, self.shared.stop.clone());
        let deadline = self.deadline();
        Box::pin(async move {
            tokio::select! {
                () = stop.cancelled() => Failure::new(FailureKind::Gone, "the program was stopped while it had this event"),
                () = tokio::time::sleep_until(deadline.into()) => timed_out(timeout),
            }
        })
    }
}

/// The whole way of one guest, from its instance to its end.
pub(super) type Guest = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;
pub(super) type End = Pin<Box<dyn Future<Output = Failure> + Send>>;

/// What the event waits for.
enum Work {
    /// A guest of its own.
    Own(Guest),
    /// An instance that may have other events, too.
    Shared(Attendance),
}

impl Work {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        match self {
            Self::Own(guest) => guest.as_mut().poll(cx),
            Self::Shared(attendance) => Pin::new(attendance).poll(cx),
        }
    }
}

/// A guest at work: done when the guest is, or with the failure that ended it. Dropping it ends the guest.
pub(super) struct Run {
    guest: Option<Work>,
    /// What may end the guest from outside; made when it has to wait for somebody else, which most never do.
    end: Option<End>,
    /// It was polled before.
    polled: bool,
    pub(super) terms: Terms,
}

impl Run {
    pub(super) fn new(terms: Terms, guest: Guest) -> Self {
        Self::of(terms, Work::Own(guest))
    }

    /// In an instance that may have other events, too.
    pub(super) fn shared(terms: Terms, attendance: Attendance) -> Self {
        Self::of(terms, Work::Shared(attendance))
    }

    fn of(terms: Terms, work: Work) -> Self {
        Self {
            guest: Some(work),
            end: None,
            polled: false,
            terms,
        }
    }

    fn out_of_time(&self) -> bool {
        self.terms.started.elapsed() >= self.terms.shared.timeout
    }

    /// The failure of an instance that others have, too, if it ended meanwhile.
    pub(super) fn failed(&mut self) -> Option<Failure> {
        match &mut self.guest {
            Some(Work::Shared(attendance)) => attendance.failed(),
            _ => None,
        }
    }

    /// Logs a failure that no reply can tell of any more.
    pub(super) fn report(&self, failure: &Failure) {
        let Terms { shared, event, .. } = &self.terms;
        let component = &shared.component;
        let traceback = failure.traceback.as_deref().unwrap_or_default();
        tracing::warn!(target: "guest", %component, %event, "{failure}\n{traceback}");
    }

    /// Lets the guest finish what it does after its reply.
    pub(super) fn detach(mut self) {
        if let Some(Work::Shared(attendance)) = &mut self.guest {
            attendance.let_go();
            return;
        }
        let Ok(tokio) = tokio::runtime::Handle::try_current() else {
            return;
        };
        tokio.spawn(async move {
            if let Err(failure) = (&mut self).await {
                self.report(&failure);
            }
        });
    }
}

impl Future for Run {
    type Output = Result<(), Failure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        // A guest that computes without end is polled again at each tick, maybe before timers are looked at.
        let late = this.end.is_some() && this.out_of_time();
        if let Some(end) = &mut this.end {
            let ended = match end.as_mut().poll(cx) {
                Poll::Ready(failure) => Some(failure),
                Poll::Pending => late.then(|| timed_out(this.terms.shared.timeout)),
            };
            if let Some(failure) = ended {
                this.guest = None;
                return Poll::Ready(Err(failure));
            }
        }
        let Some(guest) = &mut this.guest else {
            return Poll::Ready(Ok(()));
        };
        // A guest that only waited for its own tasks goes on when it is polled once more: to be woken for that would have
        // the runtime wake another thread.
        let once_more = !std::mem::replace(&mut this.polled, true);
        // Unwind safety: after a panic the guest, with all that it had, is dropped.
        let polled = catch_unwind(AssertUnwindSafe(|| match guest.poll(cx) {
            Poll::Pending if once_more => guest.poll(cx),
            polled => polled,
        }));
        if let Poll::Ready(result) = polled.unwrap_or_else(|_| Poll::Ready(Err(panicked()))) {
            this.guest = None;
            return Poll::Ready(result);
        }
        if this.end.is_none() {
            let mut end = this.terms.end();
            let polled = end.as_mut().poll(cx);
            this.end = Some(end);
            if let Poll::Ready(failure) = polled {
                this.guest = None;
                return Poll::Ready(Err(failure));
            }
        }
        Poll::Pending
    }
}

/// What a guest asked for made our side of its interface panic; that is this event's failure and nobody else's.
pub(super) fn panicked() -> Failure {
    Failure::new(
        FailureKind::Program,
        "polyinit itself failed at something that the guest asked for; the log says where",
    )
}

fn timed_out(timeout: Duration) -> Failure {
    Failure::new(
        FailureKind::Timeout,
        format!("the guest was not done after {} s and was ended", timeout.as_secs_f64()),
    )
}
