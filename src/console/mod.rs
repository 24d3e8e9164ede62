//! The console of a developer: what the program is made of and what happens in it, live, at `/_polyinit/`.
//!
//! ```text
//! start -> Observed engines --record--+
//! log, what programs print -----------+--> Recorder --> page, JSON, server-sent events
//! boot stages ------------------------+
//! ```
//!
//! Nothing of it is there unless it is asked for, and it is only given to whoever asks for this machine by a name that
//! means this machine: a page elsewhere, whose name leads here, is not.

mod memory;
mod observed;
mod recorder;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, ORIGIN};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use parking_lot::RwLock;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::engine::Handling;
use crate::event::{Body, BodyError, Event, Failure, FailureKind, Input, Reply};
use crate::intake::Handler;
use crate::program::Component;
use crate::report::{self, milliseconds};
use crate::router::{self, Running};

pub use recorder::Recorder;

/// Where it is.
pub const PATH: &str = "/_polyinit/";

const PAGE: &str = include_str!("page.html");

/// The largest message that can be sent from the page, in bytes.
const MESSAGE_LIMIT: usize = 16 << 20;

/// What the page may do: nothing but what is in it, and asking us.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The console of one program.
pub struct Console {
    recorder: Arc<Recorder>,
    components: RwLock<Vec<Described>>,
    /// Whether everybody may see it, and not only those on this machine.
    open: bool,
    /// Cancelled when nothing more is told.
    end: CancellationToken,
}

/// What is told of a component.
struct Described {
    component: Component,
    found: String,
}

impl Console {
    /// Begins to record. `open` lets everybody see it, not only those who ask for this machine as `localhost`. Pages are told of
    /// what happens until the `end`, so that none of them is waited for then.
    pub fn new(open: bool, end: CancellationToken) -> Arc<Self> {
        let recorder = Arc::new(Recorder::default());
        let lines = recorder.clone();
        report::log::tap(move |line| lines.log(line));
        Arc::new(Self {
            recorder,
            components: RwLock::default(),
            open,
            end,
        })
    }

    /// Records what happens with this component from now on.
    pub fn observe(&self, running: Running) -> Running {
        let Running { component, engine } = running;
        let described = Described {
            component: component.clone(),
            found: engine.describe(),
        };
        let mut components = self.components.write();
        components.retain(|other| other.component.name != component.name);
        components.push(described);
        components.sort_by(|a, b| a.component.name.cmp(&b.component.name));
        let engine = observed::observe(component.name.as_str().into(), engine, self.recorder.clone());
        Running { component, engine }
    }

    /// Answers what is for the console, and gives the rest to `program`.
    pub fn in_front_of(self: &Arc<Self>, program: Handler) -> Handler {
        let console = self.clone();
        Arc::new(move |event| match &event.input {
            Input::Http(request) if request.uri().path().starts_with(PATH) && console.is_for(request) => {
                console.clone().handle(event, &program)
            }
            _ => program(event),
        })
    }

    /// Whether who asks means this machine. A page of somebody else can make a browser ask for a name of its own that leads
    /// here, but not for ours.
    fn is_for(&self, request: &Request<Body>) -> bool {
        let header = |name| {
            request
                .headers()
                .get(name)
                .and_then(|value: &HeaderValue| value.to_str().ok())
        };
        let host = request
            .uri()
            .authority()
            .map(|authority| authority.as_str())
            .or(header(HOST));
        let is_local = |host: &str| {
            let name = host.rsplit_once(':').map_or(host, |(name, port)| {
                if port.bytes().all(|byte| byte.is_ascii_digit()) {
                    name
                } else {
                    host
                }
            });
            ["localhost", "127.0.0.1", "[::1]"].contains(&name)
        };
        let same_origin = header(ORIGIN).is_none_or(|origin| origin.split_once("://").map(|(_, host)| host) == host);
        same_origin && (self.open || host.is_some_and(is_local))
    }

    fn handle(self: Arc<Self>, event: Event, program: &Handler) -> Handling {
        let Input::Http(request) = event.input else {
            return program(event);
        };
        let program = program.clone();
        Box::pin(async move {
            let path = &request.uri().path()[PATH.len()..];
            match (request.method(), path) {
                (&Method::GET | &Method::HEAD, "") => Ok(page()),
                (&Method::GET, "state") => {
                    let state = tokio::task::spawn_blocking(move || self.state()).await;
                    let state = state.map_err(|error| Failure::new(FailureKind::Unavailable, error.to_string()))?;
                    Ok(reply("application/json", state.to_string()))
                }
                (&Method::GET, "events") => Ok(self.events()),
                (&Method::POST, "message") => message(request.into_body(), &program).await,
                _ => Err(Failure::new(
                    FailureKind::NotFound,
                    format!("the console has no {} {}", request.method(), request.uri().path()),
                )),
            }
        })
    }

    /// Everything that the page shows at first.
    fn state(&self) -> serde_json::Value {
        let processes = crate::engine::process::living();
        let components = self.components.read();
        let routes = router::routes_of(components.iter().map(|described| &described.component));
        let describe = |(place, Described { component, found }): (usize, &Described)| {
            let routes: Vec<String> = routes
                .iter()
                .filter(|(_, of)| *of == place)
                .map(|(route, _)| route.to_string())
                .collect();
            let leaders = processes.iter().filter(|(name, _)| *name == component.name);
            let used: Vec<_> = leaders.map(|(_, leader)| memory::of_session(*leader)).collect();
            json!({
                "name": component.name,
                "engine": component.engine,
                "why": component.why,
                "found": found,
                "routes": routes,
                "messages": component.takes_messages(components.len() == 1),
                "processes": used.iter().map(|used| used.processes).sum::<usize>(),
                "memory": used.iter().map(|used| used.bytes).sum::<u64>(),
            })
        };
        let stages = report::stages();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "age_ms": milliseconds(report::age()),
            "memory": memory::of_self(),
            "boot": stages.iter().map(|(what, after)| json!([what, milliseconds(*after)])).collect::<Vec<_>>(),
            "starts": report::start::json(),
            "components": components.iter().enumerate().map(describe).collect::<Vec<_>>(),
            "routes": routes
                .iter()
                .map(|(route, place)| json!([route.to_string(), components[*place].component.name]))
                .collect::<Vec<_>>(),
            "requests": self.recorder.requests(),
            "log": self.recorder.lines(),
        })
    }

    /// What happens from now on, as server-sent events (HTML Standard, 9.2).
    fn events(&self) -> Reply {
        let told = self.recorder.follow();
        let pieces = futures_util::stream::unfold(told, async |mut told| {
            let text = told.next().await?;
            Some((
                Ok::<_, BodyError>(Frame::data(Bytes::from(format!("data: {text}\n\n")))),
                told,
            ))
        });
        // Something at once, so that the client knows that it is heard.
        let first = futures_util::stream::iter([Ok(Frame::data(Bytes::from_static(b": here it comes\n\n")))]);
        let body = StreamBody::new(first.chain(pieces).take_until(self.end.clone().cancelled_owned()));
        let mut response = Response::new(Body::stream(body));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Reply::Http(response)
    }
}

/// Gives the program the network message that `body` is.
async fn message(body: Body, program: &Handler) -> Result<Reply, Failure> {
    let body = body.collect(MESSAGE_LIMIT).await?;
    let text = String::from_utf8(body.to_vec())
        .map_err(|_| Failure::new(FailureKind::BadEvent, "the message is not UTF-8, so no JSON"))?;
    program(Event::message(text)).await
}

fn page() -> Reply {
    let Reply::Http(mut response) = reply("text/html; charset=utf-8", PAGE) else {
        return reply("text/plain", "");
    };
    let policy = HeaderValue::from_static(POLICY);
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    Reply::Http(response)
}

fn reply(kind: &'static str, body: impl Into<Body>) -> Reply {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Reply::Http(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_means_this_machine_sees_it() {
        let asks = |open: bool, headers: &[(http::HeaderName, &'static str)]| {
            let mut request = Request::new(Body::empty());
            for (name, value) in headers {
                request.headers_mut().insert(name, HeaderValue::from_static(value));
            }
            let console = Console {
                recorder: Arc::default(),
                components: RwLock::default(),
                open,
                end: CancellationToken::new(),
            };
            console.is_for(&request)
        };
        for host in ["localhost:8080", "127.0.0.1", "[::1]:80"] {
            assert!(asks(false, &[(HOST, host)]), "{host}");
        }
        assert!(!asks(false, &[(HOST, "evil.example:8080")]));
        assert!(!asks(false, &[]));
        assert!(asks(true, &[(HOST, "shop.example")]));
        assert!(asks(false, &[(HOST, "localhost:1"), (ORIGIN, "http://localhost:1")]));
        for origin in ["http://evil.example", "null", "http://localhost:2"] {
            assert!(!asks(true, &[(HOST, "localhost:1"), (ORIGIN, origin)]), "{origin}");
        }
    }
}
