//! An engine that is looked at: every event that it has is recorded, with when its reply began and when it ended.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use serde_json::{Value, json};

use super::milliseconds;
use super::recorder::{Recorder, now};
use crate::engine::{Engine, Handling, Working};
use crate::event::{Body, BodyError, Event, Failure, Input, Reply};

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
        let mut record = Record {
            recorder: self.recorder.clone(),
            began: Instant::now(),
            told: describe(&self.component, &event),
            bytes: 0,
        };
        let handling = self.engine.handle(event);
        Box::pin(async move {
            let reply = handling.await;
            record.head();
            match reply {
                Ok(Reply::Http(response)) => {
                    record.told["status"] = response.status().as_u16().into();
                    Ok(Reply::Http(response.map(|body| match body.try_into_bytes() {
                        Ok(bytes) => {
                            record.sent(bytes.len());
                            bytes.into()
                        }
                        Err(body) => Body::stream(Recorded { body, record }),
                    })))
                }
                Ok(Reply::Value(value)) => {
                    record.told["status"] = 200.into();
                    record.sent(value.len());
                    Ok(Reply::Value(value))
                }
                Err(failure) => Err(record.failed(failure)),
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

fn describe(component: &str, event: &Event) -> Value {
    let mut told = json!({
        "id": event.context.id.to_string(),
        "component": component,
        "time": now(),
        "depth": event.context.depth,
    });
    match &event.input {
        Input::Http(request) => {
            told["method"] = request.method().as_str().into();
            told["path"] = request.uri().path_and_query().map_or("/", |path| path.as_str()).into();
            let id = request.headers().get("x-request-id").and_then(|id| id.to_str().ok());
            told["request_id"] = id.into();
        }
        Input::Message(message) => {
            told["method"] = "message".into();
            told["path"] = format!("{} bytes", message.body.len()).into();
        }
    }
    told
}

/// What is known of an event; told when it is dropped, which is its end, however it came about.
struct Record {
    recorder: Arc<Recorder>,
    began: Instant,
    told: Value,
    /// Of the reply.
    bytes: u64,
}

impl Record {
    fn head(&mut self) {
        self.told["head_ms"] = milliseconds(self.began.elapsed()).into();
    }

    fn sent(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    fn failed(&mut self, failure: Failure) -> Failure {
        self.told["status"] = failure.kind.status().as_u16().into();
        self.told["error"] = failure.message.as_str().into();
        failure
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.told["whole_ms"] = milliseconds(self.began.elapsed()).into();
        self.told["bytes"] = self.bytes.into();
        self.recorder.request(std::mem::take(&mut self.told));
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
            Some(Err(error)) => self.record.told["error"] = error.to_string().into(),
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
