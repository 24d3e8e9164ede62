//! What runs programs. The router hands an [`Event`] to one [`Engine`]; what comes back goes the same way back.
//!
//! A new language is one folder here, one arm in [`start`] and one line in `program::detect`.

pub mod backoff;
pub mod executable;
pub mod files;
pub mod keeper;
pub mod listen;
mod loopback;
pub mod node;
pub mod output;
pub mod process;
pub mod python;
#[cfg(test)]
mod testing;
pub mod wasm;
pub mod worker;

use std::collections::BTreeMap;
use std::future::Future;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

pub use self::loopback::Loopback;
use crate::event::{Event, Failure, Reply};
use crate::program::{Component, EngineKind};

/// The work on one event, to be awaited by the intake's task of that event. Dropping it tells the program that
/// nobody waits any more.
pub type Handling = Pin<Box<dyn Future<Output = Result<Reply, Failure>> + Send>>;

/// Work on the engine itself.
pub type Working = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs one component of a program.
pub trait Engine: Send + Sync + 'static {
    /// Gives `event` to the program.
    fn handle(&self, event: Event) -> Handling;

    /// Tells the program to end, and sees to it that nothing of it is left when this is done, within `grace`.
    /// Events given to [`Engine::handle`] afterwards fail.
    fn stop(&self, grace: Duration) -> Working;

    /// What was found in the program, for the line that tells the user: "`app` is an ASGI application".
    fn describe(&self) -> String;

    /// Whether it listens on a port of its own choice, so that no other of it can be started as long as it runs.
    fn has_own_port(&self) -> bool {
        false
    }
}

/// What engines need to know of the machine, whoever set it up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a program may take from start to its first "ready".
    pub start_timeout: Duration,
    /// The longest that one event may take.
    pub event_timeout: Duration,
    /// The largest body that is ever held whole in memory, in bytes.
    pub body_limit: usize,
    /// Where compiled Wasm is kept between runs; `None` keeps it in memory only.
    pub cache: Option<PathBuf>,
    /// Directories that Python programs may import from beside their own, first one first.
    pub packages: Vec<PathBuf>,
    /// Environment of every program; a component's own wins.
    pub environment: Vec<(String, String)>,
    /// The port where executables are expected when they don't read `$PORT`.
    pub conventional_port: u16,
    /// Processors to use for programs.
    pub cores: usize,
    /// The most worker processes of one component; `None` for as many as there are processors, two at least.
    pub workers: Option<usize>,
    /// Interpreters that were started ahead.
    pub warm: worker::Warm,
    /// The program that the component is part of, for requests to its other components.
    pub loopback: Loopback,
    /// The Unix socket of the guest API, where there is one.
    pub guest_api: Option<PathBuf>,
}

/// How many processors this process may use. Looked up once: it takes the system a good part of what a start takes.
pub fn processors() -> usize {
    static PROCESSORS: LazyLock<usize> =
        LazyLock::new(|| std::thread::available_parallelism().map_or(1, NonZeroUsize::get));
    *PROCESSORS
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            start_timeout: Duration::from_secs(50),
            event_timeout: Duration::from_secs(300),
            body_limit: 16 << 20,
            cache: None,
            packages: Vec::new(),
            environment: Vec::new(),
            conventional_port: 8080,
            cores: processors(),
            workers: None,
            warm: worker::Warm::default(),
            loopback: Loopback::default(),
            guest_api: None,
        }
    }
}

/// Why a component could not be started: a sentence, and the program's own account where it has one.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct StartError {
    pub message: String,
    /// The program's traceback or its last lines of stderr.
    pub traceback: Option<String>,
}

impl StartError {
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            traceback: None,
        }
    }

    #[must_use]
    pub fn with_traceback(mut self, traceback: impl Into<String>) -> Self {
        self.traceback = Some(traceback.into());
        self
    }
}

impl Settings {
    /// These, with what `component` has of its own.
    fn of(&self, component: &Component) -> Self {
        let keys = &component.keys;
        // Out of range they have been refused, where the manifest was read.
        let seconds = |seconds: Option<f64>| seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        Self {
            start_timeout: seconds(keys.start_timeout).unwrap_or(self.start_timeout),
            event_timeout: seconds(keys.request_timeout).unwrap_or(self.event_timeout),
            // What is said for this one run wins.
            workers: self.workers.or_else(|| Some(keys.workers?.on(self.cores))),
            ..self.clone()
        }
    }

    /// The variables that are named for all programs, and for `component`, whose own win.
    fn environment_of(&self, component: &Component) -> Vec<(String, String)> {
        let mut all: BTreeMap<String, String> = self.environment.iter().cloned().collect();
        all.extend(component.environment.clone());
        all.into_iter().collect()
    }
}

/// Starts what runs `component`, and returns when it can take events.
pub async fn start(component: &Component, settings: &Settings) -> Result<Arc<dyn Engine>, StartError> {
    let settings = &settings.of(component);
    match component.engine {
        EngineKind::Python => python::start(component, settings).await,
        EngineKind::Node => node::start(component, settings).await,
        EngineKind::Executable => executable::start(component, settings).await,
        EngineKind::Wasm => wasm::start(component, settings).await,
        EngineKind::Static => files::start(component).await,
    }
}

/// Begins to make what `components` will need beside themselves, while what comes before their start is done.
pub fn make_ready(components: &[Component]) {
    let is_wasm = |component: &&Component| component.engine == EngineKind::Wasm;
    wasm::make_ready(components.iter().filter(is_wasm));
}

/// Starts the interpreters of this machine ahead of the program that will need one of them.
pub fn warm_up(settings: &Settings) {
    python::warm_up(&settings.warm, settings);
    // On the smallest machines the second one would take time and memory from the first, which is the likelier one.
    if settings.cores > 1 {
        node::warm_up(&settings.warm, settings);
    }
}
