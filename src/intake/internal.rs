//! Requests between a program's components, which never leave the machine: `http://NAME.internal`, through the Unix socket
//! in `$POLYINIT_SOCKET` or the HTTP proxy in `$POLYINIT_PROXY`.
//!
//! ```text
//! component --HTTP, Host: NAME.internal--> Gateway --> router, by name --> the other component
//! ```
//!
//! Circles of calls are bounded by the number of calls under way: of those for one request, if components pass on the
//! `x-request-id` or `traceparent` of their own request, and of all calls if they do not.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::header::HOST;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use super::http::{connections, cookies, give, problem, without_what_no_client_takes};
use super::{ACCEPT_PAUSE, Handler};
use crate::again::Again;
use crate::event::trace::{self, REQUEST_ID, TRACEPARENT};
use crate::event::{Body, Context, Failure, FailureKind, call};
use crate::guest_api;
use crate::program::Component;
use crate::router::INTERNAL;

/// How deep components may call each other for one request, where that is known: for guests inside this process.
pub const DEPTH: u8 = 8;

/// Calls under way at once for one request. Whether they are nested or beside each other can't be told. More than most
/// programs make at once, and fewer than a Python worker has threads.
const CALLS_FOR_ONE: u8 = 32;

/// Calls under way at once.
const CALLS: usize = 1024;

/// The variable that leads to the Unix socket.
pub const SOCKET: &str = "POLYINIT_SOCKET";

/// The variable that leads to the proxy, as `http://127.0.0.1:PORT`.
pub const PROXY: &str = "POLYINIT_PROXY";

/// Where components reach each other. Connections that come before [`Gateway::serve`] wait.
pub struct Gateway {
    path: PathBuf,
    unix: UnixListener,
    tcp: TcpListener,
}

impl Gateway {
    /// Opens the way from component to component if there are several, and adds to their `environment` where it is.
    pub async fn between(
        components: &[Component],
        path: &Path,
        environment: &mut Vec<(String, String)>,
    ) -> Option<Self> {
        if components.len() < 2 {
            return None;
        }
        Self::open(path, environment).await
    }

    /// As [`Gateway::between`], however many components there will be.
    pub async fn open(path: &Path, environment: &mut Vec<(String, String)>) -> Option<Self> {
        let bound = Self::bind(path).await;
        match bound.and_then(|gateway| Ok((gateway.variables()?, gateway))) {
            Ok((variables, gateway)) => {
                environment.extend(variables);
                Some(gateway)
            }
            Err(error) => {
                tracing::warn!("components can't call each other: {error}");
                None
            }
        }
    }

    /// Listens on the Unix socket `path` and on a free port of the loopback address.
    ///
    /// # Errors
    /// A sentence that says which of them can't be listened on.
    async fn bind(path: &Path) -> io::Result<Self> {
        let unix = guest_api::bind(path).map_err(io::Error::other)?;
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        Ok(Self {
            path: path.to_owned(),
            unix,
            tcp,
        })
    }

    /// What programs are told of it in their environment.
    fn variables(&self) -> io::Result<[(String, String); 2]> {
        let proxy = format!("http://{}", self.tcp.local_addr()?);
        Ok([
            (SOCKET.to_owned(), self.path.display().to_string()),
            (PROXY.to_owned(), proxy),
        ])
    }

    /// Gives the requests of components to `handler`, until it is dropped. `reveal` as for the HTTP intake.
    pub async fn serve(self, handler: Handler, reveal: bool) {
        let calls = Arc::new(Calls {
            chains: Mutex::default(),
            handler,
            reveal,
        });
        loop {
            let accepted = tokio::select! {
                accepted = self.unix.accept() => accepted.map(|(stream, _)| spawn(stream, &calls)),
                accepted = self.tcp.accept() => accepted.map(|(stream, _)| {
                    let _ = stream.set_nodelay(true);
                    spawn(stream, &calls);
                }),
            };
            if let Err(error) = accepted {
                tracing::warn!("can't accept a component's connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn spawn(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, calls: &Arc<Calls>) {
    let calls = calls.clone();
    tokio::spawn(async move {
        let service = service_fn(move |request| {
            let calls = calls.clone();
            async move { calls.answer(request).await }
        });
        // A component that goes away or sends nonsense is that component's affair.
        let connections = connections();
        let connection = connections.serve_connection(TokioIo::new(stream), service);
        if let Err(error) = Again::new(connection).await {
            tracing::debug!("a component's connection ended: {error}");
        }
    });
}

struct Calls {
    /// How many calls are under way for one request, by what names it.
    chains: Mutex<HashMap<Box<[u8]>, u8>>,
    handler: Handler,
    reveal: bool,
}

impl Calls {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let mut request = request.map(Body::stream);
        cookies::join(&mut request);
        let method = request.method().clone();
        let context = Context::next();
        let entered = self.enter(&mut request, &context);
        let uri = request.uri().clone();
        let response = match entered {
            Ok(call) => {
                let context = Context {
                    depth: call.depth,
                    ..context
                };
                give(request, context, &self.handler, self.reveal).await
            }
            Err(failure) => problem::response_with(failure, self.reveal),
        };
        if let Some(failure) = response.extensions().get::<Failure>() {
            failure.log("", call(&method, &uri));
        }
        Ok(without_what_no_client_takes(response, &method))
    }

    /// Makes the request one for a component, and counts it.
    fn enter(&self, request: &mut Request<Body>, context: &Context) -> Result<Call<'_>, Failure> {
        name_host(request)?;
        let chain = match chain(request.headers()) {
            Some(chain) => chain,
            None => trace::request_id(request.headers_mut(), context.id).as_bytes().into(),
        };
        let mut chains = self.chains.lock();
        let loops = |message| Err(Failure::new(FailureKind::Loop, message));
        if chains.len() >= CALLS && !chains.contains_key(&chain) {
            return loops(format!(
                "{CALLS} calls between components are under way: do they call each other in a circle?"
            ));
        }
        let count = chains.entry(chain.clone()).or_default();
        if *count >= CALLS_FOR_ONE {
            return loops(format!(
                "{CALLS_FOR_ONE} calls between components are under way for one request: do they call each other in a circle?"
            ));
        }
        *count += 1;
        Ok(Call {
            calls: self,
            chain,
            // Calls beside each other count as deep ones: whoever is called may still call one more.
            depth: (*count).min(DEPTH - 1),
        })
    }
}

/// A call that is under way.
struct Call<'a> {
    calls: &'a Calls,
    chain: Box<[u8]>,
    depth: u8,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let mut chains = self.calls.chains.lock();
        if let Some(count) = chains.get_mut(&self.chain) {
            *count -= 1;
            if *count == 0 {
                chains.remove(&self.chain);
            }
        }
    }
}

/// What names the request that a call is made for: the trace (W3C Trace Context, 3.2: version, trace, parent, flags), or
/// the request's id.
fn chain(headers: &HeaderMap) -> Option<Box<[u8]>> {
    const LONGEST: usize = 128;
    let trace = headers.get(TRACEPARENT).and_then(|value| value.as_bytes().get(3..35));
    let id = headers.get(REQUEST_ID).map(HeaderValue::as_bytes);
    trace
        .or(id)
        .filter(|id| !id.is_empty() && id.len() <= LONGEST)
        .map(Into::into)
}

/// Puts the component's host into target and `Host` alike: a proxy's client has it in the target, `http://NAME.internal/path`
/// (RFC 9112, 3.2.2), any other one in `Host`.
fn name_host(request: &mut Request<Body>) -> Result<(), Failure> {
    let bad = |message: String| Failure::new(FailureKind::BadEvent, message);
    if request.method() == Method::CONNECT {
        return Err(bad(
            "components are reached by plain http://NAME.internal, and not through CONNECT".to_owned(),
        ));
    }
    let authority = match request.uri().authority() {
        Some(authority) => authority.as_str().to_owned(),
        None => match request.headers().get(HOST).map(HeaderValue::to_str) {
            Some(Ok(host)) => host.to_owned(),
            _ => return Err(bad(format!("the request names no host: http://NAME{INTERNAL}"))),
        },
    };
    let authority: Authority = authority
        .parse()
        .map_err(|_| bad(format!("{authority:?} is no host")))?;
    if !authority.host().to_ascii_lowercase().ends_with(INTERNAL) {
        let message = format!(
            "{} is no component: http://NAME{INTERNAL} is, and nothing else goes this way",
            authority.host()
        );
        return Err(bad(message));
    }
    let path = request.uri().path_and_query().cloned();
    let uri = Uri::builder()
        .scheme(Scheme::HTTP)
        .authority(authority.clone())
        .path_and_query(path.unwrap_or(PathAndQuery::from_static("/")))
        .build();
    *request.uri_mut() = uri.map_err(|error| bad(error.to_string()))?;
    let host = HeaderValue::try_from(authority.as_str()).map_err(|error| bad(error.to_string()))?;
    request.headers_mut().insert(HOST, host);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        [(http::HeaderName::from_static(name), HeaderValue::from_static(value))]
            .into_iter()
            .collect()
    }

    #[test]
    fn a_chain_is_known_by_its_trace_or_its_id() {
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(
            &*chain(&headers("traceparent", trace)).unwrap(),
            b"4bf92f3577b34da6a3ce929d0e0e4736"
        );
        assert_eq!(&*chain(&headers("x-request-id", "a")).unwrap(), b"a");
        assert_eq!(chain(&headers("traceparent", "00-short")), None);
        assert_eq!(chain(&HeaderMap::new()), None);
    }

    #[test]
    fn only_components_are_reached() {
        let named = |target: &str, host: Option<&'static str>| {
            let mut request = Request::new(Body::empty());
            *request.uri_mut() = target.parse().unwrap();
            request
                .headers_mut()
                .extend(host.map(|host| (HOST, HeaderValue::from_static(host))));
            name_host(&mut request).map(|()| request.uri().to_string())
        };
        assert_eq!(named("/a?b", Some("api.internal")).unwrap(), "http://api.internal/a?b");
        assert_eq!(
            named("http://API.internal:80/a", Some("x")).unwrap(),
            "http://API.internal:80/a"
        );
        for (target, host) in [
            ("/", Some("example.org")),
            ("http://example.org/", Some("api.internal")),
            ("/", None),
        ] {
            assert!(named(target, host).is_err(), "{target} {host:?}");
        }
    }
}
