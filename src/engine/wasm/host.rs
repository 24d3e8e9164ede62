//! What a guest's store holds, and with it what the guest is granted: its request, stdout and stderr, clocks,
//! randomness and the environment that was named for it. No files, no sockets, no requests of its own.

use http_body_util::BodyExt as _;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::cli::StdoutStream;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{
    DEFAULT_FORBIDDEN_HEADERS, Error as HttpError, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView,
    WasiHttpHooks, WasiHttpView,
};

use super::limits::{HasLimits, Limits};
use super::log::Log;
use super::stdio::Stdin;

/// Resources (streams, bodies, headers) that a guest may hold at once; some hold buffers outside its own memory.
const RESOURCES: usize = 2048;

/// The store's data of a component.
pub(super) struct ComponentHost {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    hooks: Hooks,
    pub(super) limits: Limits,
}

impl ComponentHost {
    pub(super) fn new(mut wasi: WasiCtxBuilder, limits: Limits, component: &std::sync::Arc<str>) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES);
        Self {
            table,
            wasi: wasi.build(),
            http: WasiHttpCtx::new(),
            hooks: Hooks {
                component: component.clone(),
            },
            limits,
        }
    }
}

/// The store's data of a core module.
pub(super) struct ModuleHost {
    pub(super) wasi: WasiP1Ctx,
    pub(super) limits: Limits,
}

/// The grants of one guest.
pub(super) fn grants(
    environment: &[(String, String)],
    stdin: Option<Stdin>,
    stdout: impl StdoutStream + 'static,
    stderr: Log,
) -> WasiCtxBuilder {
    let mut wasi = WasiCtxBuilder::new();
    wasi.envs(environment)
        .stdout(stdout)
        .stderr(stderr)
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false);
    if let Some(stdin) = stdin {
        wasi.stdin(stdin);
    }
    wasi
}

impl HasLimits for ComponentHost {
    fn limits(&mut self) -> &mut Limits {
        &mut self.limits
    }
}

impl HasLimits for ModuleHost {
    fn limits(&mut self) -> &mut Limits {
        &mut self.limits
    }
}

impl WasiView for ComponentHost {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for ComponentHost {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            ctx: &mut self.http,
            table: &mut self.table,
            hooks: &mut self.hooks,
        }
    }
}

/// Refuses requests that a guest wants to send.
struct Hooks {
    component: std::sync::Arc<str>,
}

type Sending<T> = Box<dyn Future<Output = Result<T, HttpError>> + Send>;

impl WasiHttpHooks for Hooks {
    fn is_forbidden_header(&mut self, name: &http::HeaderName) -> bool {
        DEFAULT_FORBIDDEN_HEADERS.contains(name)
    }

    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        _options: Option<RequestOptions>,
        _sent: Sending<()>,
    ) -> Sending<(http::Response<WasiBody>, Sending<()>)> {
        let (component, uri) = (&self.component, request.uri());
        tracing::warn!(
            target: "guest", %component,
            "refused the request to {uri} that the guest wanted to send: Wasm guests are granted no outgoing requests"
        );
        Box::new(async { Err(HttpError::HttpRequestDenied) })
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

/// The request's body as `wasi:http` takes it.
pub(super) fn wasi_body(body: crate::event::Body) -> WasiBody {
    body.map_err(|error| HttpError::InternalError(Some(format!("the request's body broke off: {error}"))))
        .boxed_unsync()
}
