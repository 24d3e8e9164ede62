//! The two ends of a `wasi:http` guest, whichever version it is for: the request as it takes it, and the reply that
//! its response becomes.

use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, ready};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Method, StatusCode};
use http_body::{Body as HttpBody, Frame};
use parking_lot::Mutex;
use wasmtime_wasi_http::{Error as HttpError, WasiBody};

use super::body::{Broken, Pieces, begun, finished};
use super::failure;
use super::host::wasi_body;
use super::log::Log;
use super::run::Run;
use crate::event::{Body, Context, Failure, Reply};

/// Where the guest's response, or the error in place of it, is put while the guest is polled.
#[derive(Default)]
pub(super) struct Slot(Mutex<Option<Response>>);

/// What the guest answered, or the error in place of it.
pub(super) type Response = Result<http::Response<WasiBody>, String>;

impl Slot {
    pub(super) fn set(&self, response: Response) {
        *self.0.lock() = Some(response);
    }

    fn take(&self) -> Option<Response> {
        self.0.lock().take()
    }
}

/// The request as `wasi:http` takes it: one without a host, which HTTP/1.0 allows, is one to our own address.
pub(super) fn request(request: http::Request<Body>, context: &Context) -> http::Request<WasiBody> {
    with_authority(request, context).map(wasi_body)
}

/// The reply to a request by `method` that `run`'s guest gives by way of `slot`.
///
/// # Errors
/// The guest's failure, as long as nothing of a reply is on its way.
pub(super) async fn reply(method: &Method, mut run: Run, slot: &Slot, log: &Log) -> Result<Reply, Failure> {
    let (response, ended) = std::future::poll_fn(|cx| {
        let polled = Pin::new(&mut run).poll(cx);
        let response = slot.take();
        match (polled, response) {
            (Poll::Pending, None) => Poll::Pending,
            // Most likely of the refusal of a body that is as it should be.
            (Poll::Ready(Err(failure)), Some(Ok(response))) if is_head_alone(method, &response) => {
                log.report(&failure);
                Poll::Ready(Ok((response, true)))
            }
            (Poll::Ready(Err(failure)), _) => Poll::Ready(Err(failure)),
            (polled, Some(Ok(response))) => Poll::Ready(Ok((response, polled.is_ready()))),
            (_, Some(Err(error))) => Poll::Ready(Err(failure::broke_interface(
                format!("the guest answered with an error in place of a response: {error}"),
                log,
            ))),
            (Poll::Ready(Ok(())), None) => Poll::Ready(Err(failure::broke_interface(
                "the guest returned without a response: it never called `response-outparam.set`",
                log,
            ))),
        }
    })
    .await?;

    if response.status().is_informational() {
        return Err(failure::broke_interface(
            format!(
                "the guest answered with status {}, which is not a final one",
                response.status()
            ),
            log,
        ));
    }
    let head_alone = is_head_alone(method, &response);
    let promised = promised(&response);
    let (head, body) = response.into_parts();
    let body = match (head_alone, ended) {
        (true, true) => Ok(Body::empty()),
        (true, false) => begun(Unwanted(body), run, None).await,
        (false, true) => finished(Pieces::default(), body, run, promised),
        (false, false) => begun(body, run, promised).await,
    };
    let body = body.map_err(|broken| match broken {
        Broken::Guest(failure) => failure,
        Broken::Body(error) => {
            failure::broke_interface(format!("the guest left its response unfinished: {error}"), log)
        }
    })?;
    if let (false, Some(promised), Some(length)) = (head_alone, promised, body.size_hint().exact())
        && promised != length
    {
        return Err(failure::broke_interface(
            format!("the guest announced `Content-Length: {promised}` and wrote {length} bytes"),
            log,
        ));
    }
    Ok(Reply::Http(http::Response::from_parts(head, body)))
}

/// The length of the body as the head announces it, in bytes.
fn promised<B>(response: &http::Response<B>) -> Option<u64> {
    response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Whether the head is all that the client gets, and has the length of a body that another request would get (RFC 9110,
/// section 8.6). `wasi:http` knows nothing of that, and takes the body for one that is too short.
fn is_head_alone<B>(method: &Method, response: &http::Response<B>) -> bool {
    (method == Method::HEAD || response.status() == StatusCode::NOT_MODIFIED) && promised(response).is_some()
}

/// A body that nobody gets: it only ends, whatever is in it and however that is.
struct Unwanted(WasiBody);

impl HttpBody for Unwanted {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        while let Some(Ok(_)) = ready!(Pin::new(&mut self.0).poll_frame(cx)) {}
        Poll::Ready(None)
    }
}

fn with_authority(mut request: http::Request<Body>, context: &Context) -> http::Request<Body> {
    let named =
        request.uri().authority().is_some() || request.headers().get(HOST).is_some_and(|host| host.to_str().is_ok());
    if !named {
        let authority = context
            .server
            .and_then(|server| Authority::try_from(server.to_string()).ok())
            .unwrap_or_else(|| Authority::from_static("localhost"));
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.authority = Some(authority);
        parts.scheme.get_or_insert(Scheme::HTTP);
        parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_without_a_host_gets_our_address() {
        let mut context = Context::next();
        let request = || http::Request::get("/a?b").body(Body::empty()).unwrap();
        assert_eq!(with_authority(request(), &context).uri(), "http://localhost/a?b");
        context.server = Some("[::1]:8080".parse().unwrap());
        assert_eq!(with_authority(request(), &context).uri(), "http://[::1]:8080/a?b");
        let named = http::Request::get("/a").header(HOST, "x").body(Body::empty()).unwrap();
        assert_eq!(with_authority(named, &context).uri(), "/a");
    }
}
