//! Bounds for what Wasmtime keeps of a guest's requests outside the guest's memory, however long it is: methods and
//! authorities. What is too long is refused as what is malformed.

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi_http::WasiHttpView as _;
use wasmtime_wasi_http::p2::bindings::http::types as p2;
use wasmtime_wasi_http::p3::bindings::http::types as p3;

use crate::engine::wasm::host::ComponentHost;

/// The longest method or authority that a guest may give a request, in bytes.
const LONGEST: usize = 1024;

type Host<'a> = StoreContextMut<'a, ComponentHost>;
/// What the functions of `wasi:http` return that set a part of a request.
type Set = wasmtime::Result<(Result<(), ()>,)>;

/// Puts our functions in the place of Wasmtime's; `concurrent`: those of WASI 0.3 as well.
pub(in crate::engine::wasm) fn add_to_linker(
    linker: &mut Linker<ComponentHost>,
    concurrent: bool,
) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    define_p2(linker)?;
    if concurrent {
        define_p3(linker)?;
    }
    linker.allow_shadowing(false);
    Ok(())
}

/// Sets what is `length` bytes long, unless that is too long.
fn bounded(length: usize, set: impl FnOnce() -> wasmtime::Result<Result<(), ()>>) -> Set {
    Ok((if length > LONGEST { Err(()) } else { set()? },))
}

fn define_p2(linker: &mut Linker<ComponentHost>) -> wasmtime::Result<()> {
    use p2::{HostOutgoingRequest as _, Method, OutgoingRequest};
    type Request = Resource<OutgoingRequest>;

    let mut types = linker.instance("wasi:http/types@0.2.12")?;
    types.func_wrap(
        "[method]outgoing-request.set-method",
        |mut store: Host<'_>, (request, method): (Request, Method)| -> Set {
            let length = if let Method::Other(name) = &method {
                name.len()
            } else {
                0
            };
            bounded(length, || store.data_mut().http().set_method(request, method))
        },
    )?;
    types.func_wrap(
        "[method]outgoing-request.set-authority",
        |mut store: Host<'_>, (request, authority): (Request, Option<String>)| -> Set {
            let length = authority.as_ref().map_or(0, String::len);
            bounded(length, || store.data_mut().http().set_authority(request, authority))
        },
    )
}

fn define_p3(linker: &mut Linker<ComponentHost>) -> wasmtime::Result<()> {
    use p3::{HostRequest as _, Method};
    type Request = Resource<p3::Request>;

    let mut types = linker.instance("wasi:http/types@0.3.0")?;
    types.func_wrap(
        "[method]request.set-method",
        |mut store: Host<'_>, (request, method): (Request, Method)| -> Set {
            let length = if let Method::Other(name) = &method {
                name.len()
            } else {
                0
            };
            bounded(length, || store.data_mut().http().set_method(request, method))
        },
    )?;
    types.func_wrap(
        "[method]request.set-authority",
        |mut store: Host<'_>, (request, authority): (Request, Option<String>)| -> Set {
            let length = authority.as_ref().map_or(0, String::len);
            bounded(length, || store.data_mut().http().set_authority(request, authority))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_functions_that_are_replaced_are_wasmtimes() {
        let mut config = wasmtime::Config::new();
        config.concurrency_support(true);
        let engine = wasmtime::Engine::new(&config).unwrap();
        let mut linker = Linker::<ComponentHost>::new(&engine);
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker).unwrap();
        wasmtime_wasi_http::p3::add_to_linker(&mut linker).unwrap();
        for twice in [define_p2(&mut linker), define_p3(&mut linker)] {
            let error = format!("{:#}", twice.unwrap_err());
            assert!(error.contains("defined twice"), "{error}");
        }
    }
}
