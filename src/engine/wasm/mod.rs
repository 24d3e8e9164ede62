//! WebAssembly inside this process: between the router, which gives it events, and Wasmtime.
//!
//! ```text
//! file -> load (compile, cache) -> link (exports, imports) -> start
//! event -> proxy (wasi:http) ---+--> run: a fresh instance, polled by the one who waits for the reply
//!      \-> command (cgi, stdio) +
//! ```
//!
//! `runtime` and `limits` are what all guests share, `host` what each is granted, `failure` and `log` what is told of
//! them.

mod cache;
mod cgi;
mod command;
mod failure;
mod host;
pub mod inspect;
mod limits;
mod link;
mod load;
mod log;
mod proxy;
mod run;
mod runtime;
mod stdio;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::limits::Limits;
use self::link::Linked;
use self::run::Terms;
use self::runtime::Runtime;
use super::{Engine, Handling, Settings, StartError, Working};
use crate::event::{Context, Event, Failure, FailureKind, Input};
use crate::program::{Component, Entrypoint};

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
    // Compiling takes seconds for a large program.
    let prepared = tokio::task::spawn_blocking(move || prepare(&path, &shown, cache.as_deref()));
    let (runtime, linked) = tokio::time::timeout(settings.start_timeout, prepared)
        .await
        .map_err(|_| {
            StartError::new(format!(
                "{} was not compiled within {} s",
                file.display(),
                settings.start_timeout.as_secs()
            ))
        })?
        .map_err(|error| StartError::new(format!("{} broke the compiler: {error}", file.display())))??;
    Ok(Arc::new(Wasm {
        shared: Arc::new(Shared {
            component: component.name.as_str().into(),
            runtime,
            environment: environment(component, settings),
            timeout: settings.event_timeout,
            body_limit: settings.body_limit,
            memories: linked.memories,
            stop: CancellationToken::new(),
            guests: TaskTracker::new(),
        }),
        linked: Arc::new(linked),
    }))
}

/// Compiles the Wasm file at `path` ahead of time, for every machine of this architecture: the content of a `.cwasm`
/// file, which starts without a compiler's time and memory. Takes seconds for a large program.
///
/// # Errors
/// [`StartError`] if the file can't be read or is no valid WebAssembly.
pub fn compile(path: &Path) -> Result<Vec<u8>, StartError> {
    load::compile(&runtime::portable_compiler()?, path)
}

/// Where [`start`] looks for the compiled code of the Wasm file at `path`, before it compiles the file itself.
///
/// # Errors
/// [`StartError`] if the file can't be read.
pub fn place_ahead(path: &Path) -> Result<PathBuf, StartError> {
    load::place_ahead(path)
}

/// What was named for programs, and for this one, whose own wins; nothing that this process itself has.
fn environment(component: &Component, settings: &Settings) -> Vec<(String, String)> {
    let mut all: BTreeMap<String, String> = settings.environment.iter().cloned().collect();
    all.extend(component.environment.clone());
    all.into_iter().collect()
}

fn prepare(path: &Path, shown: &str, cache: Option<&Path>) -> Result<(&'static Runtime, Linked), StartError> {
    let runtime = runtime::runtime()?;
    let code = load::load(&runtime.engine, path, cache)?;
    Ok((runtime, link::link(runtime, &code, shown)?))
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
    environment: Vec<(String, String)>,
    timeout: Duration,
    /// The largest answer to a message, in bytes.
    body_limit: usize,
    /// Places that one instance takes.
    memories: u32,
    /// Ends every guest.
    stop: CancellationToken,
    /// Guests at work.
    guests: TaskTracker,
}

impl Shared {
    /// A place for a guest, and the terms that it has it on.
    async fn terms(&self, context: &Context) -> Result<Terms, Failure> {
        let started = Instant::now();
        let tracked = self.guests.token();
        if self.guests.is_closed() {
            return Err(Failure::new(FailureKind::Unavailable, "the program has been stopped"));
        }
        Ok(Terms {
            component: self.component.clone(),
            event: context.id,
            started,
            timeout: self.timeout,
            stop: self.stop.clone(),
            _tracked: tracked,
            _admission: self.runtime.admit(self.memories).await?,
        })
    }

    fn limits(&self) -> Limits {
        Limits::new(&self.runtime.budget)
    }
}

impl Engine for Wasm {
    fn handle(&self, event: Event) -> Handling {
        let (shared, linked) = (self.shared.clone(), self.linked.clone());
        Box::pin(async move {
            let Event { context, input } = event;
            match (input, &*linked) {
                (Input::Http(request), Linked { proxy: Some(proxy), .. }) => {
                    proxy::http(&shared, proxy, request, &context).await
                }
                (
                    Input::Http(request),
                    Linked {
                        command: Some(command), ..
                    },
                ) => command::http(&shared, command, request, &context).await,
                (
                    Input::Message(message),
                    Linked {
                        command: Some(command), ..
                    },
                ) => command::message(&shared, command, message, &context).await,
                (Input::Message(_), _) => Err(Failure::new(
                    FailureKind::NotFound,
                    format!(
                        "{} takes no messages: it is a component for HTTP alone; one that exports `wasi:cli/run` too is given them on stdin",
                        shared.component
                    ),
                )),
                (Input::Http(_), _) => Err(Failure::new(
                    FailureKind::NotFound,
                    format!("{} takes no HTTP requests", shared.component),
                )),
            }
        })
    }

    fn stop(&self, grace: Duration) -> Working {
        let shared = self.shared.clone();
        Box::pin(async move {
            shared.guests.close();
            if tokio::time::timeout(grace, shared.guests.wait()).await.is_err() {
                shared.stop.cancel();
            }
        })
    }

    fn describe(&self) -> String {
        self.linked.description.to_owned()
    }
}
