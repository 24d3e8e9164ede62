//! An engine that is looked at: every event that it has is recorded, with when its reply began and when it ended.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::recorder::{Asked, Recorder, Request, now};
use crate::engine::{Engine, Handling, Working};
use crate::event::{Body, BodyError, Event, Input, Reply};

/// Has everything that `engine` does for `component` recorded.
pub fn observe(component: Arc<str>, engine: Arc<dyn Engine>, recorder: Arc<Recorder>) -> Arc<dyn Engine> {
    Arc::new(Observed {
        component,
        engine,
        recorder,
    })
}

struct Observed {
    component: Arc<str>,
    engine: Arc<dyn Engine>,
    recorder: Arc<Recorder>,
}

impl Engine for Observed {
    fn handle(&self, event: Event) -> Handling {
        let mut record = self.record(&event);
        let handling = self.engine.handle(event);
        Box::pin(async move {
            let reply = handling.await;
            match reply {
                Ok(Reply::Http(response)) => {
                    record.head(response.status());
                    Ok(Reply::Http(response.map(|body| match body.try_into_bytes() {
                        Ok(bytes) => {
                            record.sent(bytes.len());
                            bytes.into()
                        }
                        Err(body) => Body::stream(Recorded { body, record }),
                    })))
                }
                Ok(Reply::Value(value)) => {
                    record.head(StatusCode::OK);
                    record.sent(value.len());
                    Ok(Reply::Value(value))
                }
                Err(failure) => {
                    record.head(failure.kind.status());
                    record.failed(failure.message.clone());
                    Err(failure)
                }
            }
        })
    }

    fn stop(&self, grace: Duration) -> Working {
        self.engine.stop(grace)
    }

    fn describe(&self) -> String {
        self.engine.describe()
    }

    fn has_own_port(&self) -> bool {
        self.engine.has_own_port()
    }
}

impl Observed {
    fn record(&self, event: &Event) -> Record {
        let asked = match &event.input {
            Input::Http(request) => Asked::http(request),
            Input::Message(message) => Asked::Message {
                bytes: message.body.len(),
            },
        };
        Record {
            recorder: self.recorder.clone(),
            began: Instant::now(),
            told: Some(Request {
                id: event.context.id,
                component: self.component.clone(),
                time: now(),
                depth: event.context.depth,
                asked,
                head: None,
                whole: Duration::ZERO,
                status: None,
                bytes: 0,
                error: None,
            }),
        }
    }
}

/// What is known of an event; told when it is dropped, which is its end, however it came about.
struct Record {
    recorder: Arc<Recorder>,
    began: Instant,
    /// Taken when it is told.
    told: Option<Request>,
}

impl Record {
    fn head(&mut self, status: StatusCode) {
        if let Some(told) = &mut self.told {
            told.head = Some(self.began.elapsed());
            told.status = Some(status.as_u16());
        }
    }

    fn sent(&mut self, bytes: usize) {
        if let Some(told) = &mut self.told {
            told.bytes += bytes as u64;
        }
    }

    fn failed(&mut self, error: String) {
        if let Some(told) = &mut self.told {
            told.error = Some(error);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(mut told) = self.told.take() {
            told.whole = self.began.elapsed();
            self.recorder.request(told);
        }
    }
}

/// A body whose end is the event's end.
struct Recorded {
    body: Body,
    record: Record,
}

impl HttpBody for Recorded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => self.record.sent(frame.data_ref().map_or(0, Bytes::len)),
            Some(Err(error)) => self.record.failed(error.to_string()),
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
