//! Components for `wasi:http/proxy` 0.2: each request gets an instance of its own, made from what is linked already.

use wasmtime_wasi_http::WasiHttpView as _;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;

use super::exchange::{self, Slot};
use super::host::ComponentHost;
use super::run::Run;
use super::{Shared, failure};
use crate::event::{Body, Context, Failure, Reply};

/// Gives `request` to a fresh instance.
pub(super) async fn http(
    shared: &Shared,
    pre: &ProxyPre<ComponentHost>,
    request: http::Request<Body>,
    context: &Context,
) -> Result<Reply, Failure> {
    let terms = shared.terms(context).await?;
    let (mut store, log) = exchange::store(shared, context);
    let slot = Slot::default();
    let prepared = {
        let scheme = match context.scheme {
            "https" => Scheme::Https,
            _ => Scheme::Http,
        };
        let request = exchange::request(request, context);
        let slot = slot.clone();
        let mut http = store.data_mut().http();
        http.new_incoming_request(scheme, request).and_then(|request| {
            let out = http.new_response_outparam_from_callback(move |response| {
                slot.set(response.map_err(|code| code.to_string()));
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
    exchange::reply(Run::new(terms, guest), &slot, &log).await
}
