//! Components for `wasi:http/proxy` 0.2: each request gets an instance of its own, made from what is linked already.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use http::header::{CONTENT_LENGTH, HOST};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use wasmtime_wasi_http::WasiHttpView as _;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme as WasiScheme};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use super::host::{ComponentHost, grants, wasi_body};
use super::log::Log;
use super::run::{Run, Unfinished, finished};
use super::{Shared, failure};
use crate::event::{Body, Context, Failure, Reply};

/// What the guest set as its response; filled while the guest is polled.
type Slot = Arc<Mutex<Option<Result<http::Response<HyperOutgoingBody>, ErrorCode>>>>;

/// Gives `request` to a fresh instance.
pub(super) async fn http(
    shared: &Shared,
    pre: &ProxyPre<ComponentHost>,
    request: http::Request<Body>,
    context: &Context,
) -> Result<Reply, Failure> {
    let terms = shared.terms(context).await?;
    let log = Log::new(&shared.component, context.id, "stderr");
    let grants = grants(
        &shared.environment,
        None,
        Log::new(&shared.component, context.id, "stdout"),
        log.clone(),
    );
    let mut store = shared
        .runtime
        .store(ComponentHost::new(grants, shared.limits(), &shared.component));

    let slot = Slot::default();
    let prepared = {
        let scheme = match context.scheme {
            "https" => WasiScheme::Https,
            _ => WasiScheme::Http,
        };
        let request = with_authority(request, context).map(wasi_body);
        let slot = slot.clone();
        let mut http = store.data_mut().http();
        http.new_incoming_request(scheme, request).and_then(|request| {
            let out = http.new_response_outparam_from_callback(move |response| {
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(response);
            })?;
            Ok((request, out))
        })
    };
    let (request, out) = prepared.map_err(|error| failure::bad_request(&error))?;

    let pre = pre.clone();
    let guest_log = log.clone();
    let guest = Box::pin(async move {
        let handled = async {
            let guest = pre.instantiate_async(&mut store).await?;
            guest
                .wasi_http_incoming_handler()
                .call_handle(&mut store, request, out)
                .await
        };
        match handled.await {
            Ok(()) => Ok(()),
            Err(error) => failure::ended(&error, &guest_log, store.data().limits.refused()),
        }
    });
    let mut run = Run::new(terms, guest);

    let (response, ended) = std::future::poll_fn(|cx| {
        let polled = Pin::new(&mut run).poll(cx);
        let response = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (polled, response) {
            (Poll::Pending, None) => Poll::Pending,
            (Poll::Ready(Err(failure)), _) => Poll::Ready(Err(failure)),
            (polled, Some(Ok(response))) => Poll::Ready(Ok((response, polled.is_ready()))),
            (_, Some(Err(code))) => Poll::Ready(Err(failure::broke_interface(
                format!("the guest answered with an error in place of a response: {code}"),
                &log,
            ))),
            (Poll::Ready(Ok(())), None) => Poll::Ready(Err(failure::broke_interface(
                "the guest returned without a response: it never called `response-outparam.set`",
                &log,
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
            &log,
        ));
    }
    if ended {
        let (head, body) = response.into_parts();
        let body = finished(body).map_err(|error| {
            failure::broke_interface(format!("the guest left its response unfinished: {error}"), &log)
        })?;
        return Ok(Reply::Http(http::Response::from_parts(head, body)));
    }
    let promised = response
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    Ok(Reply::Http(response.map(|body| Unfinished::body(body, run, promised))))
}

/// A request without a host, which HTTP/1.0 allows and `wasi:http` doesn't, is one to our own address.
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
