//! The body of a reply: what a guest has written of it, what it still writes, and what somebody else sends by its way.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::task::coop::has_budget_remaining;
use tokio_util::task::AbortOnDropHandle;

use super::run::{End, Run, Terms};
use crate::event::{Body, BodyError, Failure};

/// Pieces of a reply that is whole already are made one up to this size, in bytes; larger ones are not copied.
const JOIN_LIMIT: usize = 32 << 10;
/// The most pieces that are taken of a reply before its head is sent.
const AT_FIRST: usize = 64;

/// Why there is no body.
pub(super) enum Broken<E> {
    /// The guest failed.
    Guest(Failure),
    /// The guest left it so.
    Body(E),
}

/// The body that `run`'s guest, whose response is there, writes to `source`; `promised` is its announced length in bytes.
/// Most guests write a short one without waiting for anybody else: that is taken in one piece, and sent as one.
///
/// # Errors
/// What is wrong with the guest, or with what it wrote, as long as it didn't wait.
pub(super) async fn begun<S>(mut source: S, mut run: Run, promised: Option<u64>) -> Result<Body, Broken<S::Error>>
where
    S: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    S::Error: Into<BodyError>,
{
    let mut pieces = Pieces::default();
    let goes_on = std::future::poll_fn(|cx| Poll::Ready(pieces.gather(&mut source, &mut run, cx))).await?;
    match goes_on {
        GoesOn::Nobody => finished(pieces, source, run, promised),
        GoesOn::Guest => {
            if let Some(failure) = run.failed() {
                return Err(Broken::Guest(failure));
            }
            run.detach();
            Ok(pieces.into_body())
        }
        GoesOn::Both => Ok(Unfinished::body(pieces, source, run, promised)),
    }
}

/// Who goes on after a guest had to wait, or was done.
enum GoesOn {
    /// The guest has ended.
    Nobody,
    /// The body has ended, and the guest not.
    Guest,
    Both,
}

/// The body of a reply whose guest has not ended: what `source` holds, then what the guest still writes.
///
/// It ends well when the source says so or, where the source can't tell, when the guest ends well; and breaks when the
/// guest fails.
pub(super) struct Unfinished<S> {
    /// What comes first.
    pieces: Pieces,
    source: S,
    writer: Arc<Writer>,
    /// How much of the announced content-length is still to come.
    promised: Option<u64>,
    _overseer: AbortOnDropHandle<()>,
}

/// The guest that writes a body, as those know it who may end it: the one who asks for the body, and the clock.
struct Writer {
    guest: Mutex<Writing>,
    /// The one who waits for the body.
    reader: AtomicWaker,
}

enum Writing {
    Run(Run),
    Failed(Failure),
    Ended,
}

impl Writer {
    fn take(&self) -> Writing {
        std::mem::replace(&mut *self.guest.lock(), Writing::Ended)
    }

    /// Ends the guest once its time is over. The guest itself sees to that where somebody asks for more of the body: one
    /// whose client takes nothing would keep its place for as long as that client likes.
    fn oversee(self: &Arc<Self>, run: &Run) -> AbortOnDropHandle<()> {
        let (end, writer) = (run.terms.end(), Arc::downgrade(self));
        AbortOnDropHandle::new(tokio::spawn(async move {
            let failure = end.await;
            let Some(writer) = writer.upgrade() else { return };
            let mut guest = writer.guest.lock();
            if let Writing::Run(run) = &*guest {
                run.report(&failure);
                let ended = std::mem::replace(&mut *guest, Writing::Failed(failure));
                drop(guest);
                drop(ended);
                writer.reader.wake();
            }
        }))
    }
}

impl<S> Unfinished<S>
where
    S: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    S::Error: Into<BodyError>,
{
    /// The body that `run` goes on writing to `source` after these `pieces`; `promised` is its announced length in bytes.
    pub(super) fn body(pieces: Pieces, source: S, run: Run, promised: Option<u64>) -> Body {
        let writer = Arc::new(Writer {
            guest: Mutex::new(Writing::Ended),
            reader: AtomicWaker::new(),
        });
        let overseer = writer.oversee(&run);
        *writer.guest.lock() = Writing::Run(run);
        Body::stream(Self {
            pieces,
            source,
            writer,
            promised,
            _overseer: overseer,
        })
    }

    /// Lets the guest work.
    fn work(&mut self, cx: &mut Context<'_>) {
        self.writer.reader.register(cx.waker());
        let mut guest = self.writer.guest.lock();
        let Writing::Run(run) = &mut *guest else { return };
        if let Poll::Ready(result) = Pin::new(&mut *run).poll(cx) {
            let ended = match result {
                Ok(()) => Writing::Ended,
                Err(failure) => {
                    run.report(&failure);
                    Writing::Failed(failure)
                }
            };
            *guest = ended;
        }
    }

    fn is_over(&self) -> bool {
        !matches!(*self.writer.guest.lock(), Writing::Run(_))
    }

    fn the_end(&mut self) -> Option<Result<Frame<Bytes>, BodyError>> {
        let failure = match self.writer.take() {
            Writing::Run(mut run) => match run.failed() {
                // What there is of a body ends with its instance.
                Some(failure) => {
                    run.report(&failure);
                    Some(failure)
                }
                None => {
                    run.detach();
                    None
                }
            },
            Writing::Failed(failure) => Some(failure),
            Writing::Ended => None,
        };
        failure.map(|failure| Err(failure.into()))
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
            let next = match this.pieces.pop() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None => match Pin::new(&mut this.source).poll_frame(cx) {
                    // There may be more: tokio makes a task wait that has had much in one turn. Not every source has woken it then.
                    Poll::Pending if !has_budget_remaining() => {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    polled => polled,
                },
            };
            match next {
                Poll::Ready(Some(Ok(frame))) => {
                    if let (Some(promised), Some(data)) = (&mut this.promised, frame.data_ref()) {
                        *promised = promised.saturating_sub(data.len() as u64);
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                Poll::Ready(Some(Err(error))) => {
                    drop(this.writer.take());
                    return Poll::Ready(Some(Err(error.into())));
                }
                Poll::Ready(None) => return Poll::Ready(this.the_end()),
                Poll::Pending if this.is_over() => return Poll::Ready(this.the_end()),
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
            && let Writing::Run(run) = self.writer.take()
        {
            run.detach();
        }
    }
}

/// The body that `run`'s guest, which has ended, left: `pieces` of it, what is there in `source`, and what somebody else
/// still sends, where the guest passes on a body that it has from elsewhere. `promised` is its announced length in bytes.
///
/// # Errors
/// The source's, if the guest left it broken.
pub(super) fn finished<S>(
    mut pieces: Pieces,
    mut source: S,
    run: Run,
    promised: Option<u64>,
) -> Result<Body, Broken<S::Error>>
where
    S: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    S::Error: Into<BodyError>,
{
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        match Pin::new(&mut source).poll_frame(&mut cx) {
            Poll::Ready(Some(frame)) => pieces.push(frame.map_err(Broken::Body)?),
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
pub(super) struct Pieces {
    /// The one that most replies have, for which no queue is needed.
    first: Option<Frame<Bytes>>,
    later: VecDeque<Frame<Bytes>>,
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
        if self.is_empty() {
            self.first = Some(frame);
        } else {
            self.later.push_back(frame);
        }
    }

    /// Takes what there is in `source`, and what `run`'s guest writes as long as it doesn't wait.
    fn gather<S>(&mut self, source: &mut S, run: &mut Run, cx: &mut Context<'_>) -> Result<GoesOn, Broken<S::Error>>
    where
        S: HttpBody<Data = Bytes> + Unpin,
    {
        loop {
            let before = self.len();
            while let Poll::Ready(frame) = Pin::new(&mut *source).poll_frame(cx) {
                match frame {
                    Some(frame) => self.push(frame.map_err(Broken::Body)?),
                    None => return Ok(GoesOn::Guest),
                }
                if self.length > JOIN_LIMIT as u64 || self.len() > AT_FIRST {
                    return Ok(GoesOn::Both);
                }
            }
            if self.len() == before {
                return Ok(GoesOn::Both);
            }
            if let Poll::Ready(ended) = Pin::new(&mut *run).poll(cx) {
                ended.map_err(Broken::Guest)?;
                return Ok(GoesOn::Nobody);
            }
        }
    }

    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.later.len()
    }

    fn is_empty(&self) -> bool {
        self.first.is_none() && self.later.is_empty()
    }

    fn pop(&mut self) -> Option<Frame<Bytes>> {
        let frame = self.first.take().or_else(|| self.later.pop_front())?;
        if let Some(data) = frame.data_ref() {
            self.length -= data.len() as u64;
        }
        Some(frame)
    }

    fn into_body(mut self) -> Body {
        if self.trailers {
            return Body::stream(self);
        }
        if self.later.is_empty() {
            let data = self.pop().and_then(|frame| frame.into_data().ok());
            return data.unwrap_or_default().into();
        }
        if self.length <= JOIN_LIMIT as u64 {
            let mut whole = BytesMut::with_capacity(self.length as usize);
            for data in std::iter::from_fn(|| self.pop()).filter_map(|frame| frame.into_data().ok()) {
                whole.extend_from_slice(&data);
            }
            return whole.freeze().into();
        }
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
        self.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        // HTTP/1.1 has no place for trailers after a body whose length is told first.
        if self.trailers {
            return SizeHint::default();
        }
        SizeHint::with_exact(self.length)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::stream;
    use http_body_util::StreamBody;
    use tokio::sync::mpsc;
    use tokio::task::coop::consume_budget;

    use super::super::stdio::Stdout;
    use super::*;

    /// What a body whose guest has ended gives first to a task that has had its turn already, and waits for its next.
    async fn given_at_last<S>(source: S) -> Option<Bytes>
    where
        S: HttpBody<Data = Bytes> + Unpin + Send + 'static,
        S::Error: Into<BodyError>,
    {
        let writer = Writer {
            guest: Mutex::new(Writing::Ended),
            reader: AtomicWaker::new(),
        };
        let mut body = Unfinished {
            pieces: Pieces::default(),
            source,
            writer: Arc::new(writer),
            promised: None,
            _overseer: AbortOnDropHandle::new(tokio::spawn(async {})),
        };
        let mut is_first = true;
        let frame = std::future::poll_fn(|cx| {
            if std::mem::take(&mut is_first) {
                while has_budget_remaining() {
                    let _ = std::pin::pin!(consume_budget()).poll(cx);
                }
            }
            Pin::new(&mut body).poll_frame(cx)
        });
        let frame = tokio::time::timeout(Duration::from_secs(60), frame).await;
        frame
            .expect("it is woken")
            .map(|frame| frame.unwrap().into_data().unwrap())
    }

    #[tokio::test]
    async fn a_reply_does_not_end_where_its_task_has_had_its_turn() {
        let (pieces, mut written) = mpsc::channel(1);
        let rest = Bytes::from_static(b"the rest");
        pieces.try_send(Ok::<_, BodyError>(Frame::data(rest.clone()))).unwrap();
        let source = StreamBody::new(stream::poll_fn(move |cx| written.poll_recv(cx)));
        assert_eq!(given_at_last(source).await, Some(rest));
        assert_eq!(given_at_last(Stdout::default()).await, None);
    }

    #[test]
    fn the_length_of_a_body_is_not_told_where_trailers_come_after_it() {
        let mut pieces = Pieces::default();
        pieces.push(Frame::data(Bytes::from_static(b"hello")));
        assert_eq!(pieces.size_hint().exact(), Some(5));
        pieces.push(Frame::trailers(http::HeaderMap::new()));
        assert_eq!(pieces.size_hint().exact(), None);
        assert_eq!(pieces.into_body().size_hint().exact(), None);
    }
}
