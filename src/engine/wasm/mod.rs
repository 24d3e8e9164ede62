//! WebAssembly inside this process: between the router, which gives it events, and Wasmtime.
//!
//! ```text
//! file -> load (compile, cache) -> link (exports, imports) -> start
//! event -> instances -> proxy, service, message --+--> run: a guest, polled by the one who waits for the reply
//!      |-> sharing (an instance at work) -> service-+
//!      \-> command (cgi, stdio) -------------------+
//! ```
//!
//! `runtime` and `limits` are what all guests share; `host` is what each is granted, `outgoing` and `sockets` what of it
//! leads out of this process; `body` is what they write of a reply; `failure` and `log` are what is told of them, and
//! `refusal` why a file is none.

mod body;
mod cache;
mod cgi;
mod command;
mod exchange;
mod failure;
mod host;
pub mod inspect;
mod instances;
mod limits;
mod link;
mod load;
mod log;
mod message;
mod outgoing;
mod outside;
mod proxy;
mod refusal;
mod run;
mod runtime;
mod service;
mod sharing;
mod sockets;
mod stdio;
#[cfg(test)]
mod tests;

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wasmtime::Store;
use wasmtime_wasi::WasiCtxBuilder;

use self::host::Grants;
use self::limits::{HasLimits, Limits};
use self::link::{Http, Linked};
use self::load::Source;
use self::outgoing::Outgoing;
use self::run::Terms;
use self::runtime::{Kind, Runtime};
use super::{Engine, Handling, Settings, StartError, Working};
use crate::event::{Context, Event, Failure, FailureKind, Input};
use crate::program::limits::Size;
use crate::program::{Component, Entrypoint};
use crate::report::start::Start;

/// Files up to this size, in bytes, are read ahead of their start to see what they need.
const AHEAD_LIMIT: u64 = 32 << 20;

/// What a guest may give us in one call, whatever the largest answer is, in bytes.
const LEAST_AT_ONCE: usize = 1 << 20;

/// Begins to make what `components` will need, on a thread of its own: [`start`] waits for it or, where it can't be made,
/// says why.
pub fn make_ready<'a>(components: impl Iterator<Item = &'a Component>) {
    let files: Vec<_> = components
        .filter_map(|component| match &component.entrypoint {
            Entrypoint::File(file) => Some((component.root.join(file), component.keys.wasm.fuel.is_some())),
            Entrypoint::Module { .. } => None,
        })
        .collect();
    if files.is_empty() {
        return;
    }
    // One after another: never more than one file is held for this.
    let make = move || {
        for (path, metered) in files {
            make_for(&path, metered);
        }
    };
    // Without a thread it is made when it is needed.
    let _ = std::thread::Builder::new().name("wasm-engine".into()).spawn(make);
}

/// Makes what the file at `path` needs, once for all files that need the same.
fn make_for(path: &Path, metered: bool) {
    if !path.metadata().is_ok_and(|metadata| metadata.len() <= AHEAD_LIMIT) {
        return;
    }
    let Ok(source) = Source::read(path) else { return };
    let machinery = source.machinery();
    if let Ok(runtime) = runtime::runtime(Kind { machinery, metered })
        && source.may_be_component()
    {
        let _ = runtime.offered();
    }
}

/// Compiles and links the component's Wasm file.
///
/// # Errors
/// [`StartError`] with what is wrong with the file: no WebAssembly, imports that are not offered, nothing to run; or
/// that it wasn't compiled within [`Settings::start_timeout`].
pub async fn start(component: &Component, settings: &Settings) -> Result<Arc<dyn Engine>, StartError> {
    let Entrypoint::File(file) = &component.entrypoint else {
        return Err(StartError::new(format!(
            "{}: a Wasm component begins with a file, not with a module",
            component.name
        )));
    };
    let path = component.root.join(file);
    let shown = file.display().to_string();
    let cache = settings.cache.clone();
    let (sandbox, cores) = (component.keys.wasm.clone(), settings.cores);
    let began = Instant::now();
    // Compiling takes seconds for a large program.
    let prepared = tokio::task::spawn_blocking(move || {
        let source = Source::read(&path)?;
        source.prepare(cache.as_deref());
        let runtime = runtime::runtime(Kind {
            machinery: source.machinery(),
            metered: sandbox.fuel.is_some(),
        })?;
        let code = source.load(&runtime.engine, cache.as_deref()).map_err(|error| {
            if sandbox.fuel.is_some() && source.is_compiled() {
                StartError::new(format!(
                    "{shown} was compiled without the counting of fuel, which its `fuel` asks for; give the .wasm file that it was made from"
                ))
            } else {
                error
            }
        })?;
        let loaded = began.elapsed();
        let linked = link::link(runtime, &code, &shown, &sandbox, cores)?;
        Ok((runtime, linked, [("load", loaded), ("link", began.elapsed() - loaded)]))
    });
    let (runtime, linked, parts) = tokio::time::timeout(settings.start_timeout, prepared)
        .await
        .map_err(|_| {
            StartError::new(format!(
                "{} was not compiled within {} s",
                file.display(),
                settings.start_timeout.as_secs()
            ))
        })?
        .map_err(|error| StartError::new(format!("{} broke the compiler: {error}", file.display())))??;
    let name: Arc<str> = component.name.as_str().into();
    let sandbox = &component.keys.wasm;
    for directory in &sandbox.directories {
        host::open(&mut WasiCtxBuilder::new(), directory).map_err(StartError::new)?;
    }
    let outgoing = Outgoing::new(
        name.clone(),
        sandbox.hosts.clone().into(),
        settings.loopback.clone(),
        settings.guest_api.clone(),
    );
    let shared = Arc::new(Shared {
        component: name.clone(),
        runtime,
        grants: Grants {
            component: name,
            environment: settings.environment_of(component),
            directories: sandbox.directories.clone(),
            arguments: sandbox.arguments.clone(),
            outgoing: Arc::new(outgoing),
            sockets: linked.sockets,
        },
        timeout: settings.event_timeout,
        body_limit: settings.body_limit,
        memories: linked.memories,
        memory_limit: memory_limit(component.keys.memory, runtime)?,
        fuel: sandbox.fuel.map(NonZeroU64::get),
        stop: CancellationToken::new(),
        guests: TaskTracker::new(),
    });
    // For the first event; whatever else is still to do until then goes before it.
    linked.make_ahead(&shared);
    Start::of(parts).note(&component.name);
    Ok(Arc::new(Wasm {
        shared,
        linked: Arc::new(linked),
    }))
}

/// Compiles the Wasm file at `path` ahead of time, for every machine of this architecture: the content of a `.cwasm`
/// file, which starts without a compiler's time and memory. Takes seconds for a large program.
///
/// # Errors
/// [`StartError`] if the file can't be read or is no valid WebAssembly.
pub fn compile(path: &Path) -> Result<Vec<u8>, StartError> {
    let source = Source::read(path)?;
    source.compile(&runtime::portable_compiler(Kind {
        machinery: source.machinery(),
        metered: false,
    })?)
}

/// Where [`start`] looks for the compiled code of the Wasm file at `path`, before it compiles the file itself.
///
/// # Errors
/// [`StartError`] if the file can't be read.
pub fn place_ahead(path: &Path) -> Result<PathBuf, StartError> {
    Ok(Source::read(path)?.place_ahead())
}

/// The memory that one instance may have, in bytes: what the program says, or what the machine has for one.
fn memory_limit(said: Option<Size>, runtime: &Runtime) -> Result<usize, StartError> {
    let most = runtime.budget.per_guest();
    let Some(said) = said else { return Ok(most) };
    usize::try_from(said.0)
        .ok()
        .filter(|said| *said <= most)
        .ok_or_else(|| {
            StartError::new(format!(
                "memory is {said}: an instance has {} MiB at most on this machine",
                most >> 20
            ))
        })
}

/// One program.
struct Wasm {
    shared: Arc<Shared>,
    linked: Arc<Linked>,
}

/// What all events of one program have in common.
struct Shared {
    component: Arc<str>,
    runtime: &'static Runtime,
    grants: Grants,
    timeout: Duration,
    /// The largest answer to a message, in bytes.
    body_limit: usize,
    /// Places that one instance takes.
    memories: u32,
    /// Memory that one instance may have, in bytes.
    memory_limit: usize,
    /// Fuel that one event may use, where it is counted.
    fuel: Option<u64>,
    /// Ends every guest.
    stop: CancellationToken,
    /// Guests at work.
    guests: TaskTracker,
}

impl Shared {
    /// A place for a guest, and the terms that it has it on.
    async fn terms(self: &Arc<Self>, context: &Context) -> Result<Terms, Failure> {
        let terms = self.terms_without_place(context)?;
        Ok(Terms {
            _admission: Some(self.runtime.admit(self.memories).await?),
            ..terms
        })
    }

    /// The terms for an event whose instance has its place from elsewhere.
    fn terms_without_place(self: &Arc<Self>, context: &Context) -> Result<Terms, Failure> {
        let started = Instant::now();
        let tracked = self.guests.token();
        if self.is_stopped() {
            return Err(Failure::new(FailureKind::Unavailable, "the program has been stopped"));
        }
        Ok(Terms {
            shared: self.clone(),
            event: context.id,
            started,
            _tracked: tracked,
            _admission: None,
        })
    }

    fn is_stopped(&self) -> bool {
        self.guests.is_closed()
    }

    fn limits(&self) -> Limits {
        Limits::new(self.runtime.budget, self.memory_limit)
    }

    fn store<T: HasLimits + Send + 'static>(&self, data: T) -> Store<T> {
        let mut store = self.runtime.store(data, self.fuel);
        // As much as a guest gives us in one call: nothing is larger than the answer to a message.
        store.set_hostcall_fuel(self.body_limit.max(LEAST_AT_ONCE) + LEAST_AT_ONCE);
        store
    }

    fn wind_up<T>(&self, store: &mut Store<T>) {
        self.runtime.wind_up(store, self.fuel);
    }
}

impl Engine for Wasm {
    fn handle(&self, event: Event) -> Handling {
        let (shared, linked) = (self.shared.clone(), self.linked.clone());
        Box::pin(async move {
            let Event { mut context, input } = event;
            context.trace = shared.grants.outgoing.trace(&input, context.id);
            let Linked {
                http, message, command, ..
            } = &*linked;
            match input {
                Input::Http(request) => match (http, command) {
                    (Some(Http::Proxy(proxy)), _) => proxy::http(&shared, proxy, request, &context).await,
                    (Some(Http::Service(service)), _) => service::http(&shared, service, request, &context).await,
                    (None, Some(command)) => command::http(&shared, command, request, &context).await,
                    (None, None) => Err(Failure::new(
                        FailureKind::NotFound,
                        format!(
                            "{} takes no HTTP requests: it is there for messages alone",
                            shared.component
                        ),
                    )),
                },
                Input::Message(body) => match (message, command) {
                    (Some(handler), _) => message::message(&shared, handler, body.body, &context).await,
                    (None, Some(command)) => command::message(&shared, command, body, &context).await,
                    (None, None) => Err(Failure::new(
                        FailureKind::NotFound,
                        format!(
                            "{} takes no messages: it is a component for HTTP alone; one that exports `{}` too is given them, and one that exports `wasi:cli/run` has them on stdin",
                            shared.component,
                            message::INTERFACE
                        ),
                    )),
                },
            }
        })
    }

    fn stop(&self, grace: Duration) -> Working {
        let (shared, linked) = (self.shared.clone(), self.linked.clone());
        Box::pin(async move {
            shared.guests.close();
            if tokio::time::timeout(grace, shared.guests.wait()).await.is_err() {
                shared.stop.cancel();
            }
            linked.clear();
        })
    }

    fn describe(&self) -> String {
        self.linked.description.clone()
    }
}
