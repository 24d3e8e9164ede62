//! A guest's program: none yet, being started, running, or told to end.

use std::io::Cursor;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::data::Data;
use super::image_environment;
use super::place::{Place, PlaceError};
use super::shell;
use crate::engine::worker::Warm;
use crate::engine::{self, Settings, StartError};
use crate::event::{Event, Failure, FailureKind, Reply};
use crate::guest_api;
use crate::intake::Handler;
use crate::intake::aleph;
use crate::intake::http::Around;
use crate::intake::internal::Gateway;
use crate::program::detect::FileKind;
use crate::program::{self, Hint, Interface, Program, archive};
use crate::report;
use crate::router::{Router, Running};
use crate::schedule;
use crate::wire::{Configuration, ConfigurationAnswer, Encoding};

/// How long after the halt has begun the program is killed, and the least that it has to shut down once its last event
/// is over. The host gives 5 s for everything.
const KILL_AFTER: Duration = Duration::from_millis(3000);
const STOP_GRACE: Duration = Duration::from_millis(900);

/// How long after the start what was found is logged: the host gets our answer first, and the one to its first event.
const FIRST_EVENT: Duration = Duration::from_millis(20);

/// How long interpreters that were started ahead are kept after that, if the program turned out not to need them.
const SPARE_INTERPRETERS: Duration = Duration::from_secs(1);

/// How long syncing disks may take before the host is told that all is done.
const SYNC_DEADLINE: Duration = Duration::from_millis(800);

/// What the host is told where it may not run commands.
const NO_SHELL: &str =
    "the shell is off in this machine: `shell = true` in /etc/polyinit.toml of its image turns it on\n";

/// The program's name for its own address, and where it finds the guest API (the network's SDK reads these).
const API_HOST: &str = "http://localhost";

pub struct Guest {
    place: Place,
    settings: Settings,
    state: Mutex<State>,
    data: Data,
    /// What the program asks for around requests.
    around: Around,
    /// Whether the host may run commands.
    shell: bool,
    /// When the halt has begun.
    closed: OnceLock<Instant>,
}

enum State {
    /// Waiting for the host.
    Unconfigured,
    Configuring,
    Running(Arc<Router>),
    /// With what is to be stopped.
    Halted(Option<Arc<Router>>),
}

impl Guest {
    pub fn new(place: Place, settings: Settings) -> Self {
        let data = Data::new(place.path("/data"));
        Self {
            place,
            settings,
            state: Mutex::new(State::Unconfigured),
            data,
            around: Around::default(),
            shell: false,
            closed: OnceLock::new(),
        }
    }

    /// Whether the host may run commands, which it may not unless this says so.
    pub fn with_shell(self, shell: bool) -> Self {
        Self { shell, ..self }
    }

    /// What the program asks for around requests, once there is one.
    pub fn around(&self) -> Around {
        self.around.clone()
    }

    async fn set_up(&self, configuration: Configuration) -> Result<Arc<Router>, PlaceError> {
        for (name, value) in configuration.variables.iter().flatten() {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(format!("variables: {name:?} and its value can't be in an environment").into());
            }
        }
        self.place.set_up(&configuration, &self.settings).await?;
        let input = configuration.input_data.as_deref().map_or(&[][..], Vec::as_slice);
        let volumes = &configuration.volumes;
        let is_volume = volumes
            .iter()
            .any(|volume| Path::new(&volume.mount) == Path::new("/data"));
        self.data.fill(input, is_volume)?;
        let Program { mut components, http } = self.unpack(&configuration)?;
        for component in &mut components {
            for (name, value) in configuration.variables.iter().flatten() {
                component
                    .environment
                    .entry(name.clone())
                    .or_insert_with(|| value.clone());
            }
        }
        let mut settings = self.settings_for(&configuration);
        let socket = self.place.path("/run/polyinit/components.sock");
        let gateway = Gateway::between(&components, &socket, &mut settings.environment).await;
        let loopback = settings.loopback.clone();
        let scheduled = components.clone();
        let started = components.into_iter().map(|component| {
            let settings = settings.clone();
            async move {
                let engine = engine::start(&component, &settings).await?;
                Ok::<_, StartError>(Running { component, engine })
            }
        });
        let router = futures_util::future::try_join_all(started).await?;
        let found = router.iter().map(ToString::to_string).collect();
        tokio::spawn(after_start(found, report::age(), settings.warm));
        let router = Arc::new(Router::new(router));
        loopback.lead_to(&router, Router::call);
        let handler: Handler = {
            let router = router.clone();
            Arc::new(move |event| router.call(event))
        };
        let mut schedules = schedule::keep(scheduled.iter(), &handler);
        schedules.detach_all();
        if let Some(gateway) = gateway {
            tokio::spawn(gateway.serve(handler, false));
        }
        self.around.ask(&http, false);
        Ok(router)
    }

    /// Puts the program where the protocol says, and finds out what it is.
    fn unpack(&self, configuration: &Configuration) -> Result<Program, PlaceError> {
        let executable = configuration.interface == "executable";
        let code = configuration.code.as_deref().map(Vec::as_slice).unwrap_or_default();
        if code.is_empty() && configuration.encoding != Encoding::Squashfs {
            return Err("the configuration has no code, and its encoding is one that has".into());
        }
        let mut entrypoint = configuration.entrypoint.clone();
        let root = match configuration.encoding {
            Encoding::Squashfs => self.place.path("/opt/code"),
            Encoding::Zip => {
                let root = self.place.path(if executable { "/opt/code" } else { "/opt" });
                std::fs::create_dir_all(&root)?;
                archive::unzip(Cursor::new(code), &root).map_err(|error| format!("code: {error}"))?;
                root
            }
            Encoding::Plain => {
                let root = self.place.path("/opt/code");
                entrypoint = write_plain(&root, code, &configuration.entrypoint, executable)?;
                root
            }
        };
        let hint = Hint {
            entrypoint: Some(entrypoint).filter(|entrypoint| !entrypoint.is_empty()),
            engine: None,
            interface: Some(if executable {
                Interface::Executable
            } else {
                Interface::Asgi
            }),
            packages: self.settings.packages.clone(),
            // Its folder's name is ours.
            name: Some("program".to_owned()),
        };
        Ok(program::find(&root, &hint)?)
    }

    /// The environment that the image gives, and that programs and the network's SDK rely on.
    fn settings_for(&self, configuration: &Configuration) -> Settings {
        let mut settings = self.settings.clone();
        settings.guest_api = Some(self.place.api_socket());
        let socket = self.place.api_socket().display().to_string();
        settings
            .environment
            .extend(image_environment::read(&self.place.path(image_environment::FILE)));
        let mut set = |name: &str, value: &str| settings.environment.push((name.to_owned(), value.to_owned()));
        set("ALEPH_INIT_VERSION", "2.0.0");
        set("ALEPH_API_HOST", API_HOST);
        set(guest_api::VARIABLE, &socket);
        set("ALEPH_REMOTE_CRYPTO_HOST", API_HOST);
        set("ALEPH_REMOTE_CRYPTO_UNIX_SOCKET", &socket);
        set("PYTHONPATH", "/opt/aleph/libs");
        // The program's folder is in memory, or read-only: bytecode written there would be read by nobody.
        set("PYTHONDONTWRITEBYTECODE", "1");
        if let Ok(name) = crate::machine::hostname::from_hash(&configuration.vm_hash) {
            set("ALEPH_ADDRESS_TO_USE", &name);
        }
        settings
    }
}

/// Logs what was found and how long it took, and ends the interpreters that were not needed. The host waits for our answer,
/// and sends the first event right after it: what neither needs can wait, and consoles are slow.
async fn after_start(found: Vec<String>, age: Duration, warm: Warm) {
    tokio::time::sleep(FIRST_EVENT).await;
    for line in found {
        tracing::info!("{line}");
    }
    tracing::info!("configured after {:.1} ms", age.as_secs_f64() * 1e3);
    tokio::time::sleep(SPARE_INTERPRETERS).await;
    for (component, start) in report::start::starts() {
        tracing::info!("{component}: {start}");
    }
    tokio::task::spawn_blocking(move || warm.clear());
}

/// Writes a program that is one file, and says what its entrypoint is then.
///
/// For a Python program the protocol's entrypoint is a variable in it; for an executable, the file's name. What the
/// bytes themselves say it is goes before either.
fn write_plain(root: &Path, code: &[u8], entrypoint: &str, executable: bool) -> Result<String, PlaceError> {
    let kind = FileKind::of_bytes(code, Path::new(""));
    let (name, found): (PathBuf, String) = match kind {
        FileKind::Wasm => ("program.wasm".into(), "program.wasm".into()),
        FileKind::Other | FileKind::Script if !executable => {
            let found = if entrypoint.is_empty() {
                "main.py".into()
            } else {
                format!("main:{entrypoint}")
            };
            ("main.py".into(), found)
        }
        _ => {
            let name = Path::new(entrypoint).file_name().unwrap_or("program".as_ref());
            (name.into(), name.to_string_lossy().into_owned())
        }
    };
    let path = root.join(name);
    let write = || {
        std::fs::create_dir_all(root)?;
        std::fs::write(&path, code)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
    };
    write().map_err(|error| format!("the program can't be written to {}: {error}", path.display()))?;
    Ok(found)
}

impl aleph::Guest for Guest {
    async fn configure(&self, configuration: Configuration) -> ConfigurationAnswer {
        {
            let mut state = self.state.lock();
            if !matches!(*state, State::Unconfigured) {
                return failure("this machine has its configuration already", None);
            }
            *state = State::Configuring;
        }
        let outcome = self.set_up(configuration).await;
        let mut state = self.state.lock();
        match outcome {
            Ok(router) => {
                *state = State::Running(router);
                report::reached("configured");
                ConfigurationAnswer::Success
            }
            Err(error) => {
                *state = State::Unconfigured;
                tracing::error!("the configuration failed: {error}");
                let traceback = error
                    .downcast_ref::<StartError>()
                    .and_then(|error| error.traceback.clone());
                failure(&error.to_string(), traceback)
            }
        }
    }

    async fn handle(&self, event: Event) -> Result<Reply, Failure> {
        let unavailable = |why: &str| Err(Failure::new(FailureKind::Unavailable, why));
        let router = match &*self.state.lock() {
            State::Running(router) => router.clone(),
            State::Unconfigured => return unavailable("this machine has no configuration yet, so no program"),
            State::Configuring => return unavailable("the program is still being started"),
            State::Halted(_) => return unavailable("this machine is being halted"),
        };
        router.handle(event).await
    }

    async fn output_data(&self) -> Bytes {
        self.data.changed().await
    }

    fn close(&self) {
        self.closed.get_or_init(Instant::now);
        let mut state = self.state.lock();
        *state = match std::mem::replace(&mut *state, State::Halted(None)) {
            State::Running(router) => State::Halted(Some(router)),
            // A host may say it twice, or a signal may come as well: each waits until all has ended.
            halted @ State::Halted(_) => halted,
            _ => State::Halted(None),
        };
    }

    async fn halt(&self) {
        let router = match &*self.state.lock() {
            State::Halted(router) => router.clone(),
            _ => None,
        };
        let spent = self.closed.get().map_or(Duration::ZERO, Instant::elapsed);
        let grace = KILL_AFTER.saturating_sub(spent).max(STOP_GRACE);
        let program = async {
            if let Some(router) = router {
                router.stop(grace).await;
            }
        };
        tokio::join!(program, self.place.halt());
        self.settings.warm.clear();
        // sync(2) waits for disks. One that takes longer than the host's patience is waited for once more when it is
        // unmounted.
        let sync = tokio::task::spawn_blocking(nix::unistd::sync);
        let _ = tokio::time::timeout(SYNC_DEADLINE, sync).await;
    }

    async fn shell(&self, command: String) -> Vec<u8> {
        match self.shell {
            true => shell::run(&command).await,
            false => NO_SHELL.into(),
        }
    }
}

fn failure(error: &str, traceback: Option<String>) -> ConfigurationAnswer {
    ConfigurationAnswer::Failure {
        error: error.to_owned(),
        traceback: traceback.unwrap_or_else(|| error.to_owned()),
    }
}
