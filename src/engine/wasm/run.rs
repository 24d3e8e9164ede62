//! A guest at work on one event, and the body of a reply that it still writes.
//!
//! The guest is no task of its own: it computes when the one who waits for its reply polls, first the intake for the
//! head, then the intake's connection for each piece of the body. So an event costs no wake-up, a slow client slows
//! its guest, and a client that goes away takes the guest with it.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::runtime::Admission;
use super::sharing::Attend;
use crate::event::{Body, BodyError, EventId, Failure, FailureKind};

/// Pieces of a reply that is whole already are made one up to this size, in bytes; larger ones are not copied.
const JOIN_LIMIT: usize = 32 << 10;

/// What holds for one guest.
pub(super) struct Terms {
    pub(super) component: Arc<str>,
    pub(super) event: EventId,
    pub(super) started: Instant,
    pub(super) timeout: Duration,
    /// Cancelled when the engine shall leave nothing running.
    pub(super) stop: CancellationToken,
    pub(super) _tracked: TaskTrackerToken,
    /// Where the guest has it, and not the instance.
    pub(super) _admission: Option<Admission>,
}

impl Terms {
    /// What ends the event from outside.
    fn end(&self) -> End {
        let (timeout, stop) = (self.timeout, self.stop.clone());
        let deadline = self.started + timeout;
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
type End = Pin<Box<dyn Future<Output = Failure> + Send>>;

/// What the event waits for.
enum Work {
    /// A guest of its own.
    Own(Guest),
    /// An instance that may have other events, too.
    Shared(Box<dyn Attend>),
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
    /// It was not done at once.
    pending: bool,
    terms: Terms,
}

impl Run {
    pub(super) fn new(terms: Terms, guest: Guest) -> Self {
        Self::of(terms, Work::Own(guest))
    }

    /// In an instance that may have other events, too.
    pub(super) fn shared(terms: Terms, attendance: impl Attend + 'static) -> Self {
        Self::of(terms, Work::Shared(Box::new(attendance)))
    }

    fn of(terms: Terms, work: Work) -> Self {
        Self {
            guest: Some(work),
            end: None,
            pending: false,
            terms,
        }
    }

    fn out_of_time(&self) -> bool {
        self.terms.started.elapsed() >= self.terms.timeout
    }

    /// The failure of an instance that others have, too, if it ended meanwhile.
    fn failed(&mut self) -> Option<Failure> {
        match &mut self.guest {
            Some(Work::Shared(attendance)) => attendance.failed(),
            _ => None,
        }
    }

    /// Logs a failure that no reply can tell of any more.
    fn report(&self, failure: &Failure) {
        let Terms { component, event, .. } = &self.terms;
        let traceback = failure.traceback.as_deref().unwrap_or_default();
        tracing::warn!(target: "guest", %component, %event, "{failure}\n{traceback}");
    }

    /// Lets the guest finish what it does after its reply.
    fn detach(mut self) {
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
        // A guest that computes without end is polled again at each tick, maybe before timers are looked at.
        let late = self.end.is_some() && self.out_of_time();
        if let Some(end) = &mut self.end {
            let ended = match end.as_mut().poll(cx) {
                Poll::Ready(failure) => Some(failure),
                Poll::Pending => late.then(|| timed_out(self.terms.timeout)),
            };
            if let Some(failure) = ended {
                self.guest = None;
                return Poll::Ready(Err(failure));
            }
        }
        let Some(guest) = &mut self.guest else {
            return Poll::Ready(Ok(()));
        };
        // Unwind safety: after a panic the guest, with all that it had, is dropped.
        let polled = catch_unwind(AssertUnwindSafe(|| guest.poll(cx)));
        if let Poll::Ready(result) = polled.unwrap_or_else(|_| Poll::Ready(Err(panicked()))) {
            self.guest = None;
            return Poll::Ready(result);
        }
        if !std::mem::replace(&mut self.pending, true) {
            // A guest that only waited for its own tasks is done the next time, and has no need of a timer.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.end.is_none() {
            let mut end = self.terms.end();
            let polled = end.as_mut().poll(cx);
            self.end = Some(end);
            if let Poll::Ready(failure) = polled {
                self.guest = None;
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

/// The body of a reply whose guest has not ended: what `source` holds, then what the guest still writes.
///
/// It ends well when the source says so or, where the source can't tell, when the guest ends well; and breaks when the
/// guest fails.
pub(super) struct Unfinished<S> {
    source: S,
    run: Option<Run>,
    failure: Option<Failure>,
    /// How much of the announced content-length is still to come.
    promised: Option<u64>,
}

impl<S> Unfinished<S>
where
    S: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    S::Error: Into<BodyError>,
{
    /// The body that `run` goes on writing to `source`; `promised` is its announced length in bytes.
    pub(super) fn body(source: S, run: Run, promised: Option<u64>) -> Body {
        Body::stream(Self {
            source,
            run: Some(run),
            failure: None,
            promised,
        })
    }

    /// Lets the guest work. True if it ended.
    fn work(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(run) = &mut self.run else { return true };
        match Pin::new(&mut *run).poll(cx) {
            Poll::Pending => false,
            Poll::Ready(result) => {
                if let Err(failure) = result {
                    run.report(&failure);
                    self.failure = Some(failure);
                }
                self.run = None;
                true
            }
        }
    }

    fn the_end(&mut self) -> Option<Result<Frame<Bytes>, BodyError>> {
        if let Some(mut run) = self.run.take() {
            match run.failed() {
                // What there is of a body ends with its instance.
                Some(failure) => {
                    run.report(&failure);
                    self.failure = Some(failure);
                }
                None => run.detach(),
            }
        }
        self.failure.take().map(|failure| Err(failure.into()))
    }
}

impl<S> HttpBody for Unfinished<S>
where
    S: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    S::Error: Into<BodyError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let mut worked = false;
        loop {
            match Pin::new(&mut this.source).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    if let (Some(promised), Some(data)) = (&mut this.promised, frame.data_ref()) {
                        *promised = promised.saturating_sub(data.len() as u64);
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                Poll::Ready(Some(Err(error))) => {
                    this.run = None;
                    return Poll::Ready(Some(Err(error.into())));
                }
                Poll::Ready(None) => return Poll::Ready(this.the_end()),
                Poll::Pending if this.run.is_none() => return Poll::Ready(this.the_end()),
                Poll::Pending if worked => return Poll::Pending,
                Poll::Pending => {
                    this.work(cx);
                    worked = true;
                }
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.promised.map(SizeHint::with_exact).unwrap_or_default()
    }
}

impl<S> Drop for Unfinished<S> {
    fn drop(&mut self) {
        // Whoever counts what was announced doesn't ask for the end; that the client has it all is no reason to stop.
        if self.promised == Some(0)
            && let Some(run) = self.run.take()
        {
            run.detach();
        }
    }
}

/// The body that `run`'s guest, which has ended, left in `source`: what is there of it, and what somebody else still
/// sends, where the guest passes on a body that it has from elsewhere. `promised` is its announced length in bytes.
///
/// # Errors
/// The source's, if the guest left it broken.
pub(super) fn finished<S>(mut source: S, run: Run, promised: Option<u64>) -> Result<Body, S::Error>
where
    S: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    S::Error: Into<BodyError>,
{
    let mut pieces = Pieces::default();
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        match Pin::new(&mut source).poll_frame(&mut cx) {
            Poll::Ready(Some(frame)) => pieces.push(frame?),
            Poll::Ready(None) => return Ok(pieces.into_body()),
            Poll::Pending => {
                return Ok(Body::stream(PassedOn {
                    pieces,
                    source,
                    end: None,
                    terms: run.terms,
                    promised,
                }));
            }
        }
    }
}

/// A body that comes from elsewhere, and has the time of the event whose guest passed it on.
struct PassedOn<S> {
    pieces: Pieces,
    source: S,
    end: Option<End>,
    terms: Terms,
    promised: Option<u64>,
}

impl<S> HttpBody for PassedOn<S>
where
    S: HttpBody<Data = Bytes> + Unpin,
    S::Error: Into<BodyError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Some(frame) = this.pieces.pop() {
            return Poll::Ready(Some(Ok(frame)));
        }
        if let Poll::Ready(frame) = Pin::new(&mut this.source).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let end = this.end.get_or_insert_with(|| this.terms.end());
        end.as_mut().poll(cx).map(|failure| Some(Err(failure.into())))
    }

    fn size_hint(&self) -> SizeHint {
        self.promised.map(SizeHint::with_exact).unwrap_or_default()
    }
}

/// Frames that are all there.
#[derive(Default)]
struct Pieces {
    frames: VecDeque<Frame<Bytes>>,
    /// Data that is left, in bytes.
    length: u64,
    trailers: bool,
}

impl Pieces {
    fn push(&mut self, frame: Frame<Bytes>) {
        match frame.data_ref() {
            Some(data) => self.length += data.len() as u64,
            None => self.trailers = true,
        }
        self.frames.push_back(frame);
    }

    fn pop(&mut self) -> Option<Frame<Bytes>> {
        let frame = self.frames.pop_front()?;
        if let Some(data) = frame.data_ref() {
            self.length -= data.len() as u64;
        }
        Some(frame)
    }

    fn into_body(mut self) -> Body {
        if self.trailers {
            return Body::stream(self);
        }
        let mut data = std::iter::from_fn(|| self.frames.pop_front()).flat_map(Frame::into_data);
        let first = data.next().unwrap_or_default();
        if self.length == first.len() as u64 {
            return first.into();
        }
        if self.length <= JOIN_LIMIT as u64 {
            let mut whole = BytesMut::with_capacity(self.length as usize);
            whole.extend_from_slice(&first);
            data.for_each(|piece| whole.extend_from_slice(&piece));
            return whole.freeze().into();
        }
        drop(data);
        self.frames.push_front(Frame::data(first));
        Body::stream(self)
    }
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(self.pop().map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}
