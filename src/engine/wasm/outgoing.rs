//! Requests that guests send: to hosts that the program names, over connections that are kept for the next request; to
//! the program's other components (`self`), without a connection; to the guest API (`aleph`), over its Unix socket.
//!
//! ```text
//! guest -> Hooks -> rules -+-> client -> connect (resolve, check, TCP or Unix socket, TLS) -> host
//!                          \-> Loopback -> router -> another component
//! ```

mod apart;
pub(super) mod bounds;
pub(super) mod connect;

use std::error::Error as _;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::uri::{Authority, PathAndQuery, Uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper_util::client::legacy::connect::capture_connection;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use wasmtime_wasi_http::{DEFAULT_FORBIDDEN_HEADERS, Error as HttpError, RequestOptions, WasiBody, WasiHttpHooks};

use self::connect::{Connector, Unconnected};
use super::host::wasi_body;
use super::log::Log;
use crate::engine::Loopback;
use crate::event::trace::Trace;
use crate::event::{Body, Context, Event, EventId, Input};
use crate::program::sandbox::{HostRule, Scheme};

/// Requests of one instance that may be under way at once.
const OPEN: usize = 64;
/// Components that one event may come through, each by a request of the one before.
const DEPTH: u8 = 8;
/// To connect, and then again for the head of a reply, where the guest doesn't say.
const PATIENCE: Duration = Duration::from_secs(600);
/// Connections to one host that are kept between requests, and for how long.
const KEPT: usize = 32;
const KEPT_FOR: Duration = Duration::from_secs(30);
/// The host that is the program itself, what ends a host that is one of its components, and the host that is the guest API.
const PROGRAM: &str = "self";
const INTERNAL: &str = ".internal";
const ALEPH: &str = "aleph";

type Sending<T> = Box<dyn Future<Output = Result<T, HttpError>> + Send>;
type Answer = http::Response<WasiBody>;

/// Where the guests of one program may send requests to, and the connections there.
pub(super) struct Outgoing {
    component: Arc<str>,
    pub(super) rules: Arc<[HostRule]>,
    loopback: Loopback,
    /// The Unix socket of the guest API, where there is one.
    guest_api: Option<PathBuf>,
    client: OnceLock<Client<Connector, WasiBody>>,
}

impl Outgoing {
    pub(super) fn new(
        component: Arc<str>,
        rules: Arc<[HostRule]>,
        loopback: Loopback,
        guest_api: Option<PathBuf>,
    ) -> Self {
        Self {
            component,
            rules,
            loopback,
            guest_api,
            client: OnceLock::new(),
        }
    }

    /// What goes along with requests that a guest sends to other components for this event; nothing where it can't.
    pub(super) fn trace(&self, input: &Input, id: EventId) -> Option<Arc<Trace>> {
        let calls = self.rules.contains(&HostRule::Program);
        calls.then(|| match input {
            Input::Http(request) => Arc::new(Trace::of(request.headers(), id)),
            Input::Message(_) => Arc::new(Trace::of(&HeaderMap::new(), id)),
        })
    }

    fn client(&self) -> &Client<Connector, WasiBody> {
        self.client.get_or_init(|| {
            let connector = Connector::new(self.rules.clone(), self.guest_api.clone());
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(KEPT_FOR)
                .pool_max_idle_per_host(KEPT)
                .build(connector)
        })
    }

    /// Where a request goes.
    ///
    /// # Errors
    /// The line of the manifest that would allow it.
    fn way(&self, uri: &Uri) -> Result<Way, String> {
        let host = uri.host().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let component = bare.ends_with(INTERNAL);
        if (bare == PROGRAM || component) && self.rules.contains(&HostRule::Program) {
            return Ok(Way::Program);
        }
        if bare == ALEPH && self.rules.contains(&HostRule::Aleph) {
            return Ok(Way::Host);
        }
        let https = uri.scheme() == Some(&http::uri::Scheme::HTTPS);
        let scheme = if https { Scheme::Https } else { Scheme::Http };
        let usual = if https { 443 } else { 80 };
        let port = uri.port_u16().unwrap_or(usual);
        if self
            .rules
            .iter()
            .any(|rule| rule.names(bare) && rule.permits(scheme, port))
        {
            return Ok(Way::Host);
        }
        let port = if port == usual {
            String::new()
        } else {
            format!(":{port}")
        };
        Err(match bare {
            PROGRAM | ALEPH => bare.to_owned(),
            _ if component => PROGRAM.to_owned(),
            _ => format!("{}://{host}{port}", scheme.as_str()),
        })
    }
}

enum Way {
    Host,
    Program,
}

/// A guest's own: what `wasi:http` asks of its host.
pub(super) struct Hooks {
    outgoing: Arc<Outgoing>,
    log: Log,
    /// Components that the event at hand has come through; the first, where there are several.
    depth: u8,
    /// What requests for it are followed by.
    trace: Option<Arc<Trace>>,
    /// Made for the first request.
    open: Option<Arc<Semaphore>>,
}

impl Hooks {
    pub(super) fn new(outgoing: Arc<Outgoing>, log: Log) -> Self {
        Self {
            outgoing,
            log,
            depth: 0,
            trace: None,
            open: None,
        }
    }

    /// For another event.
    pub(super) fn begin(&mut self, context: &Context) {
        self.depth = context.depth;
        self.trace.clone_from(&context.trace);
    }

    /// Requests that are under way.
    pub(super) fn under_way(&self) -> usize {
        self.open.as_ref().map_or(0, |open| OPEN - open.available_permits())
    }

    /// For another event beside those that there are. Whose a request is then nobody can tell, and a wrong name would lead
    /// astray whoever goes by it: they get one of their own from here on.
    pub(super) fn share(&mut self) {
        if self.trace.is_some() {
            self.trace = Some(Arc::new(Trace::of(&HeaderMap::new(), Context::next().id)));
        }
    }

    fn send(
        &mut self,
        mut request: http::Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<Sending<Answer>, HttpError> {
        normalize(request.uri_mut()).map_err(|wrong| {
            self.log.refuse(&format!("refused a request: {wrong}"));
            HttpError::HttpRequestUriInvalid
        })?;
        let way = self.outgoing.way(request.uri()).map_err(|line| {
            let uri = request.uri();
            self.log.refuse(&format!(
                "refused the request to {uri}: {} is not granted that host; to allow it: hosts = [{line:?}] in \
                 [components.{}.wasm] of polyinit.toml, or --allow-host {line}",
                self.outgoing.component, self.outgoing.component
            ));
            HttpError::HttpRequestDenied
        })?;
        let open = self.open.get_or_insert_with(|| Arc::new(Semaphore::new(OPEN)));
        let permit = open.clone().try_acquire_owned().map_err(|_| {
            self.log.refuse(&format!(
                "refused a request: {OPEN} are under way already for one instance"
            ));
            HttpError::ConnectionLimitReached
        })?;
        match way {
            Way::Host => {
                let outgoing = self.outgoing.clone();
                let log = self.log.clone();
                Ok(Box::new(async move {
                    outgoing.exchange(request, options, permit, &log).await
                }))
            }
            Way::Program => {
                if self.depth >= DEPTH {
                    return Err(HttpError::LoopDetected);
                }
                if request.uri().host() == Some(PROGRAM) {
                    let path = request.uri().path_and_query().cloned();
                    *request.uri_mut() = Uri::from(path.unwrap_or(PathAndQuery::from_static("/")));
                }
                if let Some(trace) = &self.trace {
                    trace.go_along(request.headers_mut());
                }
                let mut event = Event::http(request.map(Body::stream));
                event.context.depth = self.depth + 1;
                let loopback = self.outgoing.loopback.clone();
                // There is nothing to connect to; the component itself has its time for the event.
                let patience = options.first_byte_timeout.unwrap_or(Duration::MAX);
                Ok(Box::new(async move {
                    let response = tokio::time::timeout(patience, apart::ask(loopback, event))
                        .await
                        .map_err(|_| HttpError::ConnectionReadTimeout)?
                        .map_err(|failure| HttpError::InternalError(Some(failure.to_string())))?;
                    Ok(response.map(|body| Received::body(wasi_body(body), permit, options.between_bytes_timeout)))
                }))
            }
        }
    }
}

impl WasiHttpHooks for Hooks {
    fn is_forbidden_header(&mut self, name: &http::HeaderName) -> bool {
        DEFAULT_FORBIDDEN_HEADERS.contains(name)
    }

    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _sent: Sending<()>,
    ) -> Sending<(Answer, Sending<()>)> {
        let sending = self.send(request, options.unwrap_or_default());
        Box::new(async move {
            let response = Box::into_pin(sending?).await?;
            Ok((response, Box::new(async { Ok(()) }) as Sending<()>))
        })
    }

    /// The most that a guest may write at once, in bytes.
    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        32 << 10
    }

    /// Writes that wait for the client (and one more): all of a reply of 32 KiB from a guest that writes by the page.
    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        7
    }
}

impl Outgoing {
    async fn exchange(
        &self,
        mut request: http::Request<WasiBody>,
        options: RequestOptions,
        permit: OwnedSemaphorePermit,
        log: &Log,
    ) -> Result<Answer, HttpError> {
        let uri = request.uri().clone();
        let mut connection = capture_connection(&mut request);
        let mut sending = pin!(self.client().request(request));
        let connecting = async {
            tokio::select! {
                biased;
                sent = &mut sending => Some(sent),
                () = async { drop(connection.wait_for_connection_metadata().await) } => None,
            }
        };
        let sent = match tokio::time::timeout(options.connect_timeout.unwrap_or(PATIENCE), connecting).await {
            Err(_) => return Err(HttpError::ConnectionTimeout),
            Ok(Some(sent)) => sent,
            Ok(None) => tokio::time::timeout(options.first_byte_timeout.unwrap_or(PATIENCE), sending)
                .await
                .map_err(|_| HttpError::ConnectionReadTimeout)?,
        };
        match sent {
            Err(error) => Err(tell(&error, &uri, log)),
            Ok(response) => Ok(response.map(|body| {
                let body = body.map_err(HttpError::Hyper).boxed_unsync();
                Received::body(body, permit, options.between_bytes_timeout)
            })),
        }
    }
}

/// Has the host of a target be in lower case, which is how hosts are compared (RFC 3986, section 3.2.2).
///
/// # Errors
/// What names no host alone: a user, whom nobody may send along (RFC 9110, section 4.2.4), or a port that is none, which
/// would be taken for the usual one.
fn normalize(uri: &mut Uri) -> Result<(), &'static str> {
    let Some(authority) = uri.authority() else {
        return Ok(());
    };
    let text = authority.as_str();
    if text.contains('@') {
        return Err("its authority names a user");
    }
    if !matches!(&text[authority.host().len()..], "" | ":") && authority.port_u16().is_none() {
        return Err("its port is no number from 0 to 65535");
    }
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        let lower = Authority::try_from(text.to_ascii_lowercase()).ok();
        let mut parts = std::mem::take(uri).into_parts();
        parts.authority = lower;
        *uri = Uri::from_parts(parts).unwrap_or_default();
    }
    Ok(())
}

/// What went wrong, as `wasi:http` says it, and in the guest's log as it was.
fn tell(error: &ClientError, uri: &Uri, log: &Log) -> HttpError {
    let mut cause = error.source();
    let mut deepest = error.to_string();
    let mut known = None;
    while let Some(this) = cause {
        deepest = this.to_string();
        if let Some(error) = this.downcast_ref::<Unconnected>() {
            known = Some(error.as_http());
            break;
        }
        if let Some(HttpError::HttpRequestBodySize(written)) = this.downcast_ref() {
            known = Some(HttpError::HttpRequestBodySize(*written));
            break;
        }
        if let Some(error) = this.downcast_ref::<hyper::Error>()
            && (error.is_parse() || error.is_user())
        {
            known = Some(HttpError::HttpProtocolError);
        }
        cause = this.source();
    }
    log.refuse(&format!("the request to {uri} failed: {deepest}"));
    known.unwrap_or(HttpError::ConnectionTerminated)
}

/// The body of a reply that a guest receives.
struct Received {
    body: WasiBody,
    /// The most that may pass between two pieces.
    patience: Option<Duration>,
    waiting: Option<Pin<Box<Sleep>>>,
    _permit: OwnedSemaphorePermit,
}

impl Received {
    fn body(body: WasiBody, permit: OwnedSemaphorePermit, patience: Option<Duration>) -> WasiBody {
        let received = Self {
            body,
            patience,
            waiting: None,
            _permit: permit,
        };
        received.boxed_unsync()
    }
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.waiting = None;
            return Poll::Ready(frame);
        }
        let Some(patience) = self.patience else {
            return Poll::Pending;
        };
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(waiting.as_mut().poll(cx));
        Poll::Ready(Some(Err(HttpError::ConnectionReadTimeout)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(rules: &[&str], uri: &str) -> Result<Way, String> {
        let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let outgoing = Outgoing::new("api".into(), rules, Loopback::default(), None);
        outgoing.way(&uri.parse().unwrap())
    }

    #[test]
    fn the_line_that_would_allow_a_request_does() {
        for uri in [
            "https://api.example.org/a?b",
            "http://api.example.org:8080/",
            "http://127.0.0.1:81/",
            "https://[::1]/",
            "http://self/x",
            "http://shop.internal/x",
            "http://aleph/api",
        ] {
            let line = way(&["https://other.example.org"], uri).err().unwrap();
            assert!(way(&[&line], uri).is_ok(), "{uri}: {line}");
        }
    }

    #[test]
    fn hosts_are_compared_in_lower_case_and_ports_are_numbers() {
        let normalized = |uri: &str| {
            let mut uri: Uri = uri.parse().unwrap();
            normalize(&mut uri).map(|()| uri.to_string())
        };
        assert_eq!(normalized("http://Shop.INTERNAL/A").unwrap(), "http://shop.internal/A");
        for whole in [
            "http://[::1]:80/",
            "http://a.example/",
            "http://a.example:/x",
            "http://a.example:65535/",
        ] {
            assert_eq!(normalized(whole).unwrap(), whole);
        }
        assert!(normalized("http://127.0.0.1:72935/").unwrap_err().contains("port"));
        assert!(normalized("http://me:secret@a.example/").unwrap_err().contains("user"));
    }

    #[test]
    fn a_host_called_self_is_none_unless_it_is_named() {
        assert!(matches!(way(&["self"], "http://self/"), Ok(Way::Program)));
        assert!(matches!(way(&["self"], "http://shop.internal/"), Ok(Way::Program)));
        assert!(matches!(way(&["http://self"], "http://self/"), Ok(Way::Host)));
        assert!(way(&["self"], "http://self.example.org/").is_err());
    }
}
