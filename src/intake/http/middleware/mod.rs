//! What a manifest's `[http]` asks for around every request: between the connection and the router. A program that asks
//! for nothing has no [`Middleware`], and its requests go by it without a branch more than that.
//!
//! ```text
//! request -> id -> CORS -> rate limit -> compression -> body limit -> time limit -> router
//! ```

mod around;
mod body;
mod rate;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use http::header::{ACCESS_CONTROL_REQUEST_METHOD, CACHE_CONTROL, CONTENT_ENCODING, ETAG, RETRY_AFTER};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use tower::{Layer, ServiceExt, service_fn};
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{And, DefaultPredicate, Predicate};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

use self::body::Limited;
use self::rate::Rate;
use super::problem;
use crate::event::trace::{self, REQUEST_ID};
use crate::event::{Body, EventId, Failure, FailureKind};
use crate::program::manifest::{CorsKeys, HttpKeys};

pub use around::{Around, Asked};

/// Compresses what is worth it, and may be.
type Compression = CompressionLayer<And<DefaultPredicate, MayTransform>>;

type MayTransform = fn(StatusCode, Version, &HeaderMap, &Extensions) -> bool;

/// What is asked for, ready to be used.
pub struct Middleware {
    request_id: bool,
    rate: Option<Rate>,
    cors: Option<CorsLayer>,
    compression: Option<Compression>,
    /// The largest body of a request, in bytes.
    body_limit: Option<u64>,
    /// From the request's head to the reply's.
    timeout: Option<Duration>,
    /// Whether clients see what failed inside.
    reveal: bool,
}

impl Middleware {
    /// What `keys`, which have been checked, ask for; nothing where they ask for nothing.
    pub fn new(keys: &HttpKeys, reveal: bool) -> Option<Self> {
        let middleware = Self {
            request_id: keys.request_id,
            rate: keys.rate_limit.as_ref().map(Rate::new),
            cors: keys.cors.as_ref().map(cors),
            compression: keys.compression.then(compression),
            body_limit: keys.body_limit,
            timeout: keys
                .timeout
                .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            reveal,
        };
        let any = middleware.request_id
            || middleware.rate.is_some()
            || middleware.cors.is_some()
            || middleware.compression.is_some()
            || middleware.body_limit.is_some()
            || middleware.timeout.is_some();
        any.then_some(middleware)
    }

    /// Gives the request to `next`, or answers it. `client` is whose connection it came over; without one it came from a
    /// host, behind which clients can't be told apart and whose protocol has no compressed replies.
    pub async fn around<F>(
        &self,
        mut request: Request<Body>,
        event: EventId,
        client: Option<IpAddr>,
        next: impl FnOnce(Request<Body>) -> F + Send,
    ) -> Response<Body>
    where
        F: Future<Output = Response<Body>> + Send,
    {
        let id = self.request_id.then(|| trace::request_id(request.headers_mut(), event));
        let compression = self.compression.as_ref().filter(|_| client.is_some());
        let admit = async |request| {
            let rate = self.rate.as_ref().zip(client);
            match rate.map(|(rate, client)| rate.admit(client, Instant::now())) {
                Some(Err(wait)) => self.too_many(wait),
                _ => self.compressed(request, compression, next).await,
            }
        };
        let mut response = self.shared(request, admit).await;
        if let Some(id) = id {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        response
    }

    /// With the headers that let pages of other origins read the response, whatever it is; preflights are answered here.
    async fn shared<F>(
        &self,
        mut request: Request<Body>,
        next: impl FnOnce(Request<Body>) -> F + Send,
    ) -> Response<Body>
    where
        F: Future<Output = Response<Body>> + Send,
    {
        // The layer answers every OPTIONS, of which only preflights are its own (Fetch standard, "CORS-preflight request").
        let asks_program =
            *request.method() == Method::OPTIONS && !request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        if asks_program {
            *request.method_mut() = Method::GET;
        }
        let mut next = Some(next);
        let inner = service_fn(move |mut request: Request<Body>| {
            if asks_program {
                *request.method_mut() = Method::OPTIONS;
            }
            // Called once for each: both layers hand one request to it, or answer themselves.
            let next = next.take();
            async move {
                Ok::<_, Infallible>(match next {
                    Some(next) => next(request).await,
                    None => Response::new(Body::empty()),
                })
            }
        });
        let Ok(response) = match &self.cors {
            Some(cors) => cors.layer(inner).oneshot(request).await,
            None => inner.oneshot(request).await,
        };
        response
    }

    async fn compressed<F>(
        &self,
        request: Request<Body>,
        compression: Option<&Compression>,
        next: impl FnOnce(Request<Body>) -> F + Send,
    ) -> Response<Body>
    where
        F: Future<Output = Response<Body>> + Send,
    {
        let Some(compression) = compression else {
            return self.limited(request, next).await;
        };
        let mut next = Some(next);
        let given = OnceLock::new();
        let inner = service_fn(|request| {
            let (next, given) = (next.take(), &given);
            async move {
                let response = match next {
                    Some(next) => self.limited(request, next).await,
                    None => Response::new(Body::empty()),
                };
                let _ = given.set((response.status(), response.headers().contains_key(CONTENT_ENCODING)));
                Ok::<_, Infallible>(response)
            }
        });
        let Ok(mut response) = compression.layer(inner).oneshot(request).await;
        if let Some((status, was_encoded)) = given.get() {
            // To a client that takes nothing at all, not even what is not encoded, the layer says 406, but by then the program
            // has done what it was asked for.
            *response.status_mut() = *status;
            if !was_encoded && response.headers().contains_key(CONTENT_ENCODING) {
                weaken(response.headers_mut());
            }
        }
        response.map(Body::stream)
    }

    async fn limited<F>(&self, request: Request<Body>, next: impl FnOnce(Request<Body>) -> F) -> Response<Body>
    where
        F: Future<Output = Response<Body>> + Send,
    {
        let (request, passed) = match self.body_limit {
            Some(limit) => match Limited::new(request, limit) {
                Ok((request, passed)) => (request, Some((limit, passed))),
                Err(()) => return self.too_large(limit),
            },
            None => (request, None),
        };
        let reply = self.timed(next(request));
        match passed {
            // Whatever the program would make of a body that breaks off, this is why it does.
            Some((limit, passed)) => tokio::select! {
                biased;
                () = passed.cancelled() => self.too_large(limit),
                response = reply => response,
            },
            None => reply.await,
        }
    }

    async fn timed(&self, reply: impl Future<Output = Response<Body>>) -> Response<Body> {
        let Some(limit) = self.timeout else {
            return reply.await;
        };
        tokio::time::timeout(limit, reply).await.unwrap_or_else(|_| {
            let message = format!("no reply within the {} s of [http] timeout", limit.as_secs_f64());
            self.failed(Failure::new(FailureKind::Timeout, message))
        })
    }

    fn too_large(&self, limit: u64) -> Response<Body> {
        let message = format!("the request's body is larger than [http] body_limit, {limit} bytes");
        self.failed(Failure::new(FailureKind::TooLarge, message))
    }

    fn too_many(&self, wait: Duration) -> Response<Body> {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let message =
            format!("too many requests from this address: [http] rate_limit lets the next one in {seconds} s");
        let mut response = self.failed(Failure::new(FailureKind::TooMany, message));
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
        response
    }

    fn failed(&self, failure: Failure) -> Response<Body> {
        problem::response_with(failure, self.reveal)
    }
}

fn compression() -> Compression {
    CompressionLayer::new().compress_when(DefaultPredicate::new().and(may_transform as MayTransform))
}

/// Whether a reply doesn't say that nobody may change it on its way (RFC 9111, section 5.2.2.6).
fn may_transform(_: StatusCode, _: Version, headers: &HeaderMap, _: &Extensions) -> bool {
    !headers.get_all(CACHE_CONTROL).iter().any(|value| {
        let mut directives = value.as_bytes().split(|byte| *byte == b',');
        directives.any(|directive| directive.trim_ascii().eq_ignore_ascii_case(b"no-transform"))
    })
}

/// Has an entity tag say no more than that the content is the same: byte by byte it is the program's no longer, and whoever has
/// half of it may not be given the other half of the program's (RFC 9110, section 8.8.1).
fn weaken(headers: &mut HeaderMap) {
    let Some(tag) = headers.get(ETAG).filter(|tag| tag.as_bytes().starts_with(b"\"")) else {
        return;
    };
    if let Ok(weak) = HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat()) {
        headers.insert(ETAG, weak);
    }
}

fn cors(keys: &CorsKeys) -> CorsLayer {
    let any = |list: &[String]| list.iter().any(|word| word == "*");
    let origin = if any(&keys.origins) {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(
            keys.origins
                .iter()
                .filter_map(|origin| HeaderValue::try_from(origin).ok()),
        )
    };
    let names = |list: &[String]| -> Vec<HeaderName> { list.iter().filter_map(|name| name.parse().ok()).collect() };
    let mut layer = CorsLayer::new()
        .allow_origin(origin)
        .allow_credentials(keys.credentials)
        .allow_methods(match &keys.methods {
            Some(methods) => AllowMethods::list(methods.iter().filter_map(|name| name.parse::<Method>().ok())),
            None => AllowMethods::mirror_request(),
        })
        .allow_headers(match &keys.headers {
            Some(headers) => AllowHeaders::list(names(headers)),
            None => AllowHeaders::mirror_request(),
        })
        .expose_headers(names(&keys.expose));
    if let Some(seconds) = keys.max_age {
        layer = layer.max_age(Duration::from_secs(seconds));
    }
    layer
}
