//! Components for `wasi:http/service` 0.3, whose `handle` is asynchronous: tasks of the guest go on after it has
//! returned a response, to write the body among others. An instance has one request at a time here, and many in its life.

use std::pin::Pin;
use std::sync::Arc;

use http::header::HOST;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use wasmtime_wasi_http::p3::Request;
use wasmtime_wasi_http::p3::bindings::ServicePre;
use wasmtime_wasi_http::{Error as HttpError, WasiBody, WasiHttpView as _};

use super::Shared;
use super::exchange::{self, Slot};
use super::host::ComponentHost;
use super::instances::Instances;
use super::run::Run;
use crate::event::{Body, Context, Failure, Reply};

/// Tells the guest how the request's body ended.
type Sent = Pin<Box<dyn Future<Output = Result<(), HttpError>> + Send>>;

/// Gives `request` to an instance.
pub(super) async fn http(
    shared: &Arc<Shared>,
    instances: &Arc<Instances<ServicePre<ComponentHost>>>,
    request: http::Request<Body>,
    context: &Context,
) -> Result<Reply, Failure> {
    let terms = shared.terms(context).await?;
    let mut place = instances.place(shared, context)?;
    let log = place.log.clone();
    let request = absolute(exchange::request(request, context), context);
    let slot = Slot::default();

    let (shared, instances, filled) = (shared.clone(), instances.clone(), slot.clone());
    let guest = Box::pin(async move {
        let handled = async {
            let (guest, store) = place.guest(&instances.template).await?;
            store
                .run_concurrent(async |accessor| {
                    let (request, sent) = accessor.with(|mut store| {
                        let (request, sent) = Request::from_http(store.data_mut().http().hooks, request);
                        (request, Box::pin(sent) as Sent)
                    });
                    filled.set(match guest.handle(accessor, request).await? {
                        Ok(response) => Ok(accessor.with(|store| response.into_http(store, sent))?),
                        Err(code) => Err(code.to_string()),
                    });
                    std::future::poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
                    Ok(())
                })
                .await?
        };
        let handled = handled.await;
        instances.settle(&shared, place, handled)
    });
    exchange::reply(Run::new(terms, guest), &slot, &log).await
}

/// Version 0.3 looks for scheme and authority in the URI alone.
fn absolute(mut request: http::Request<WasiBody>, context: &Context) -> http::Request<WasiBody> {
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(if context.scheme == "https" {
        Scheme::HTTPS
    } else {
        Scheme::HTTP
    });
    parts.authority = parts.authority.or_else(|| {
        let host = request.headers().get(HOST)?;
        Authority::try_from(host.as_bytes()).ok()
    });
    parts.authority.get_or_insert(Authority::from_static("localhost"));
    parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    request
}
