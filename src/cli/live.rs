//! The program that runs now, where another may take its place: for `serve --watch`. Between the intake and the router.

use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::RwLock;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::engine::Handling;
use crate::event::{Body, BodyError, Event, Failure, FailureKind, Input, Reply};
use crate::router::{Router, Running};

/// How long events under way may take once another program has taken the place of theirs.
const PATIENCE: Duration = Duration::from_secs(60);

/// What takes events now.
pub(super) struct Live {
    state: Arc<RwLock<State>>,
}

#[derive(Clone)]
enum State {
    Running(Generation),
    /// It could not be built or started; why, and what is still under way with the one before.
    Broken(Arc<str>, Option<TaskTracker>),
}

/// One program, from its start until another takes its place.
#[derive(Clone)]
struct Generation {
    router: Arc<Router>,
    under_way: TaskTracker,
}

impl Live {
    pub fn new() -> Self {
        Self {
            state: Arc::new(RwLock::new(State::Broken("the program is being started".into(), None))),
        }
    }

    fn replace(&self, state: State) -> State {
        std::mem::replace(&mut *self.state.write(), state)
    }

    /// Gives an event to the program, or says why there is none. `give` is a method of the router.
    pub fn give(&self, event: Event, give: fn(&Router, Event) -> Handling) -> Handling {
        let asker = Asker::of(&event);
        match now(&self.state) {
            State::Running(Generation { router, under_way }) => {
                let (token, state) = (under_way.token(), self.state.clone());
                Box::pin(async move {
                    match give(&router, event).await {
                        Ok(reply) => Ok(held(reply, token)),
                        // What it has waited for could not be started.
                        Err(failure) if failure.kind == FailureKind::Unavailable => match now(&state) {
                            State::Broken(why, _) => broken(asker, &why),
                            State::Running(_) => Err(failure),
                        },
                        Err(failure) => Err(failure),
                    }
                })
            }
            State::Broken(why, _) => Box::pin(std::future::ready(broken(asker, &why))),
        }
    }

    /// Puts a program of these components in the place of what is there. Those of the `former` ones that are not in it are
    /// ended when their events are done.
    pub fn run(&self, components: Vec<Running>, former: Vec<Running>) {
        let new = State::Running(Generation {
            router: Arc::new(Router::new(components)),
            under_way: TaskTracker::new(),
        });
        end(former, self.replace(new).under_way());
    }

    /// Has every request answered with `why` from now on.
    pub fn fail(&self, why: &str) {
        let under_way = now(&self.state).under_way();
        self.replace(State::Broken(why.into(), under_way));
    }
}

impl State {
    fn under_way(self) -> Option<TaskTracker> {
        match self {
            Self::Running(Generation { under_way, .. }) => Some(under_way),
            Self::Broken(_, under_way) => under_way,
        }
    }
}

fn now(state: &RwLock<State>) -> State {
    state.read().clone()
}

/// The reply with `token` for as long as its body is under way.
pub(super) fn held(reply: Reply, token: TaskTrackerToken) -> Reply {
    match reply {
        Reply::Http(response) => Reply::Http(response.map(|body| match body.try_into_bytes() {
            Ok(bytes) => bytes.into(),
            Err(body) => Body::stream(Held { body, _token: token }),
        })),
        value => value,
    }
}

/// Ends these components in the background, once nothing is under way with them.
fn end(former: Vec<Running>, under_way: Option<TaskTracker>) {
    if former.is_empty() {
        return;
    }
    tokio::spawn(async move {
        if let Some(under_way) = under_way {
            under_way.close();
            if tokio::time::timeout(PATIENCE, under_way.wait()).await.is_err() {
                tracing::warn!(
                    "some requests took more than {} s, and end with the program they were given to",
                    PATIENCE.as_secs()
                );
            }
        }
        Router::new(former).stop(super::serve::GRACE).await;
    });
}

/// A body that is under way as long as it is.
struct Held {
    body: Body,
    _token: TaskTrackerToken,
}

impl HttpBody for Held {
    type Data = bytes::Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<bytes::Bytes>, BodyError>>> {
        std::pin::Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Who is to be told that a program is broken.
#[derive(Clone, Copy)]
enum Asker {
    Browser,
    OtherClient,
    /// It sent a message.
    Network,
}

impl Asker {
    fn of(event: &Event) -> Self {
        let Input::Http(request) = &event.input else {
            return Self::Network;
        };
        match request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok()) {
            Some(accept) if accept.contains("text/html") => Self::Browser,
            _ => Self::OtherClient,
        }
    }
}

/// What a developer sees of a program that is broken: a page in a browser, which looks again by itself; text elsewhere.
fn broken(asker: Asker, why: &str) -> Result<Reply, Failure> {
    let (kind, body) = match asker {
        Asker::Browser => ("text/html; charset=utf-8", page(why)),
        Asker::OtherClient => ("text/plain; charset=utf-8", format!("{why}\n")),
        Asker::Network => return Err(Failure::new(FailureKind::Unavailable, why)),
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(Reply::Http(response))
}

fn page(why: &str) -> String {
    let why = escaped(why);
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"1\">\
         <title>polyinit: not running</title>\n\
         <style>body{{font:16px/1.5 system-ui,sans-serif;margin:2rem;color-scheme:light dark}}\
         pre{{white-space:pre-wrap;border-left:4px solid #c33;padding:.5rem 1rem}}</style>\n\
         <h1>The program is not running</h1>\n<pre>{why}</pre>\n<p>This page looks again every second.</p></html>\n"
    )
}

/// Text for HTML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
