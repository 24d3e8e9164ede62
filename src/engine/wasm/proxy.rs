//! Components for `wasi:http/proxy` 0.2: one request at a time, and an instance for each unless the program allows more.

use std::sync::Arc;

use wasmtime_wasi_http::WasiHttpView as _;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;

use super::exchange::{self, Slot};
use super::host::ComponentHost;
use super::instances::Instances;
use super::run::Run;
use super::{Shared, failure};
use crate::event::{Body, Context, Failure, Reply};

/// Gives `request` to an instance.
pub(super) async fn http(
    shared: &Arc<Shared>,
    instances: &Arc<Instances<ProxyPre<ComponentHost>>>,
    request: http::Request<Body>,
    context: &Context,
) -> Result<Reply, Failure> {
    let method = request.method().clone();
    let terms = shared.terms(context).await?;
    let mut place = instances.place(shared, context)?;
    let log = place.log.clone();
    let slot = Arc::new(Slot::default());
    let prepared = {
        let scheme = match context.scheme {
            "https" => Scheme::Https,
            _ => Scheme::Http,
        };
        let request = exchange::request(request, context);
        let slot = slot.clone();
        let mut http = place.store.data_mut().http();
        http.new_incoming_request(scheme, request).and_then(|request| {
            let out = http.new_response_outparam_from_callback(move |response| {
                slot.set(response.map_err(|code| code.to_string()));
            })?;
            Ok((request, out))
        })
    };
    let (request, out) = prepared.map_err(|error| failure::bad_request(&error))?;

    let (shared, instances) = (shared.clone(), instances.clone());
    let guest = Box::pin(async move {
        let handled = async {
            let (guest, store) = place.guest(&instances.template).await?;
            guest
                .wasi_http_incoming_handler()
                .call_handle(store, request, out)
                .await
        };
        let handled = handled.await;
        instances.settle(&shared, place, handled)
    });
    exchange::reply(&method, Run::new(terms, guest), &slot, &log).await
}
