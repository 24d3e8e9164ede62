//! HTTP/1.1 and HTTP/2 (with prior knowledge, h2c) over TCP: what a developer's machine and a pod have.

pub mod access_log;
mod client;
pub(super) mod cookies;
mod extended;
mod head_timer;
mod middleware;
pub(super) mod problem;
mod stream;
mod upload;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CONTENT_LENGTH, HOST};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::client::{Client, Patience, Socket, UnderWay};
use self::head_timer::HeadTimer;
pub use self::middleware::{Around, Asked};
use super::{ACCEPT_PAUSE, Handler};
use crate::again::Again;
use crate::event::{Body, Context, Event, Failure, FailureKind, Input, Reply};
use crate::program::manifest::AccessLog;

/// How long clients are waited for.
const PATIENCE: Patience = Patience {
    head: Duration::from_secs(30),
    reply: Duration::from_secs(60),
    farewell: Duration::from_millis(500),
};

/// What is told of each request once its reply's head is known.
#[derive(Debug)]
pub struct Served<'a> {
    pub context: &'a Context,
    pub method: &'a Method,
    pub path: &'a str,
    pub status: StatusCode,
    /// The reply's headers.
    pub headers: &'a HeaderMap,
    /// From the request's head to the reply's head.
    pub time: Duration,
    pub failure: Option<&'a Failure>,
    /// How the program wants it written down, where it says.
    pub access_log: Option<AccessLog>,
}

/// How requests are taken.
pub struct Options {
    /// Told of each request.
    pub observer: Box<dyn Fn(Served<'_>) + Send + Sync>,
    /// Whether clients see what failed inside: messages and tracebacks. For development.
    pub reveal: bool,
    /// What is done around each request.
    pub around: Around,
    /// How long requests under way may take once the end is asked for.
    pub grace: Duration,
}

/// Serves `listener` until `shutdown`, then lets the requests under way finish, and ends those that don't in time.
///
/// # Errors
/// None that last: a connection's errors end that connection.
pub async fn serve(
    listener: TcpListener,
    handler: Handler,
    options: Options,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let server = listener.local_addr()?;
    let options = Arc::new(options);
    let mut under_way = JoinSet::new();
    loop {
        let (stream, address) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("can't accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = shutdown.cancelled() => break,
        };
        // Those that have ended since: to wait for them would be a wake-up for each.
        while under_way.try_join_next().is_some() {}
        let client = Arc::new(Client::default());
        let service = {
            let (handler, options, client) = (handler.clone(), options.clone(), client.clone());
            service_fn(move |request| {
                let under_way = client.asks(request.version());
                answer(request, under_way, address, server, handler.clone(), options.clone())
            })
        };
        let mut builder = connections();
        builder.http2().enable_connect_protocol();
        let connection = builder
            .serve_connection_with_upgrades(io_of(stream, client.clone()), service)
            .into_owned();
        // Of its own: each turn of each connection looks at it.
        let end = shutdown.child_token();
        under_way.spawn(async move {
            let part = |connection: Pin<&mut auto::UpgradeableConnection<'_, _, _, _>>| connection.graceful_shutdown();
            // A client that goes away or sends nonsense is that client's affair.
            match Again::new(client.wait_for(connection, part, PATIENCE, &end)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(client = %address, "connection ended: {error}"),
                Err(awaited) => tracing::debug!(client = %address, "connection ended: {awaited}"),
            }
        });
    }
    drop(listener);
    let ended = async { while under_way.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(options.grace, ended).await;
    // A program whose events nobody has ended would not come to its own end.
    under_way.shutdown().await;
    Ok(())
}

/// How a connection is served, HTTP/1.1 and HTTP/2 alike.
pub(super) fn connections() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(HeadTimer::default())
        .header_read_timeout(PATIENCE.head);
    builder.http2().timer(TokioTimer::new());
    builder
}

fn io_of(stream: TcpStream, client: Arc<Client>) -> TokioIo<Socket<TcpStream>> {
    // Heads and short bodies are written at once; waiting for more to send with them would only delay.
    let _ = stream.set_nodelay(true);
    TokioIo::new(Socket::new(stream, client))
}

async fn answer(
    request: Request<Incoming>,
    under_way: UnderWay,
    client: SocketAddr,
    server: SocketAddr,
    handler: Handler,
    options: Arc<Options>,
) -> Result<Response<Body>, Infallible> {
    let began = Instant::now();
    let mut request = upload::take(request);
    cookies::join(&mut request);
    let named = name_host(&mut request);
    let is_extended = extended::unfold(&mut request);
    let (method, uri, version) = (request.method().clone(), request.uri().clone(), request.version());
    let mut context = Context::next();
    context.client = Some(client);
    context.server = Some(server);
    let given = |request| give(request, context.clone(), &handler, options.reveal);
    let asked = options.around.now();
    let response = match (named, asked.as_deref().and_then(Asked::middleware)) {
        (Err(failure), _) => problem::response_with(failure, options.reveal),
        (Ok(()), None) => given(request).await,
        (Ok(()), Some(middleware)) => middleware.around(request, context.id, Some(client.ip()), given).await,
    };
    let response = if is_extended {
        extended::fold(response)
    } else {
        without_what_no_client_takes(response, &method)
    };
    (options.observer)(Served {
        context: &context,
        method: &method,
        path: uri.path_and_query().map_or("/", |path| path.as_str()),
        status: response.status(),
        headers: response.headers(),
        time: began.elapsed(),
        failure: response.extensions().get(),
        access_log: asked.as_deref().and_then(Asked::access_log),
    });
    if is_extended && response.status().is_success() {
        // The WebSocket is a stream of its connection's, which tells nobody when it ends.
        under_way.without_end();
        return Ok(response);
    }
    let response = response.map(|body| under_way.until_the_end_of(body));
    Ok(match version {
        Version::HTTP_2 => response.map(|body| stream::overseen(body, PATIENCE.reply)),
        _ => response,
    })
}

/// Has the `Host` of a request be whom its target names, where that is whole (RFC 9112, section 3.2.2; RFC 9113, section
/// 8.3.1): whoever reads the one reads the other.
///
/// # Errors
/// There are several, or none over HTTP/1.1 (RFC 9112, section 3.2). The target is nothing but a host's name, as only
/// CONNECT's is (section 3.2.3): a path without its slash would seem to be that.
fn name_host(request: &mut Request<Body>) -> Result<(), Failure> {
    let authority = request
        .uri()
        .authority()
        .filter(|_| request.method() != Method::CONNECT);
    // Without a user and a password, which belong to nobody else (RFC 9110, section 4.2.4).
    let named = authority.and_then(|authority| HeaderValue::try_from(authority.as_str().rsplit('@').next()?).ok());
    if authority.is_some() && request.uri().scheme().is_none() {
        let message = "the request's target is neither a path nor a whole address";
        return Err(Failure::new(FailureKind::BadEvent, message));
    }
    let version = request.version();
    let headers = request.headers_mut();
    if let Some(named) = named {
        headers.insert(HOST, named);
    }
    let wrong = match headers.get_all(HOST).iter().count() {
        0 if version == Version::HTTP_11 => "the request names no host, which HTTP/1.1 asks for",
        0 | 1 => return Ok(()),
        _ => "the request names several hosts",
    };
    Err(Failure::new(FailureKind::BadEvent, wrong))
}

/// The reply to a request by `method` without the body that replies of its kind don't have (RFC 9110, section 6.4.1), and
/// without the length of one where that could be none's (section 8.6). hyper sees to it over HTTP/1.1; over HTTP/2 such a body
/// would be a stream that is broken.
pub(super) fn without_what_no_client_takes(mut response: Response<Body>, method: &Method) -> Response<Body> {
    let status = response.status();
    if status == StatusCode::NO_CONTENT {
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    let is_head = method == Method::HEAD;
    if is_head && let Some(length @ 1..) = response.body().size_hint().exact() {
        response.headers_mut().entry(CONTENT_LENGTH).or_insert(length.into());
    }
    if is_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        *response.body_mut() = Body::empty();
    }
    response
}

/// Hands the request to the router; what comes back as a response, with the failure in its extensions where it is one.
pub(super) async fn give(request: Request<Body>, context: Context, handler: &Handler, reveal: bool) -> Response<Body> {
    give_to(request, context, |event| handler(event), reveal).await
}

/// The same, whoever `takes` it.
pub(super) async fn give_to<F>(
    request: Request<Body>,
    context: Context,
    takes: impl FnOnce(Event) -> F,
    reveal: bool,
) -> Response<Body>
where
    F: Future<Output = Result<Reply, Failure>>,
{
    let event = Event {
        context,
        input: Input::Http(request),
    };
    match takes(event).await {
        Ok(Reply::Http(response)) => response,
        Ok(Reply::Value(value)) => Response::new(value.into()),
        Err(failure) => problem::response_with(failure, reveal),
    }
}

/// Binds `address`, for [`TcpListener::from_std`]; with a sentence that says what to do where that fails.
///
/// # Errors
/// [`Failure`]'s message is meant for the one who chose the address.
pub fn bind(address: SocketAddr) -> Result<std::net::TcpListener, Failure> {
    let bound = std::net::TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    bound.map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => {
                ": another program listens there; choose another with --listen, port 0 for a free one"
            }
            io::ErrorKind::PermissionDenied => ": ports below 1024 need privileges; choose a higher one with --listen",
            _ => "",
        };
        Failure::new(
            FailureKind::Unavailable,
            format!("can't listen on {address}: {error}{hint}"),
        )
    })
}
