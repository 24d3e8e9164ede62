//! From a file to a program that listens.

use std::collections::HashSet;
use std::future::Future;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Pid;
use tokio::time::Instant;

use crate::engine::listen::{self, Listener};
use crate::engine::process::{self, Confinement, Launch, Process};
use crate::engine::{Settings, StartError};
use crate::program::{Component, Entrypoint};
use crate::report::start::Start as Took;

/// How often the kernel is asked whether the program listens. Asking costs some 20 µs, and a start is noticed at most this
/// and the timer's own millisecond late.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// A program that listens somewhere else by then is told where it is waited for.
const HINT_AFTER: Duration = Duration::from_secs(2);

/// What to do about that.
const OWN_PORT: &str = "one that takes a port of its own choice is found where PORT in its environment names that port";

/// Something that can be started, again and again, and then serves HTTP.
pub trait Start: Send + Sync + 'static {
    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// The kernel does not start it, it ends before it listens, or it does not listen in time.
    fn start(&self) -> Starting<'_>;
}

pub type Starting<'a> = Pin<Box<dyn Future<Output = Result<Listening, StartError>> + Send + 'a>>;

/// A program that was seen to listen.
#[derive(Debug)]
pub struct Listening {
    pub process: Process,
    /// Where it can be reached, the likeliest first; never empty.
    pub addresses: Vec<SocketAddr>,
    /// The socket it listens with, where that was looked for.
    pub listener: Option<Listener>,
    /// Whether its port is another than the one that it was given: one that it always takes.
    pub own_port: bool,
    /// What its start took.
    pub start: Took,
}

/// Where a program may listen.
#[derive(Debug, Clone)]
pub struct Ports {
    /// Told to the program.
    port: u16,
    conventional: u16,
    /// Whether `port` is the same at every start.
    is_fixed: bool,
    /// `PORT` and `HOST`, unless the component's environment has them.
    pub environment: Vec<(String, String)>,
}

impl Ports {
    /// `$PORT` as the environment of `component` has it, or else a port that is free at the moment.
    ///
    /// # Errors
    /// Its `PORT` is no port number, or there is no free port.
    pub fn choose(component: &Component, settings: &Settings) -> Result<Self, StartError> {
        let name = &component.name;
        let given = process::environment(component, settings);
        let given = |wanted: &str| Some(&given.iter().rev().find(|(name, _)| name == wanted)?.1);
        let mut environment = Vec::new();
        let fixed = given("PORT");
        let port = match fixed {
            Some(port) => port
                .parse()
                .map_err(|_| StartError::new(format!("{name}: PORT={port} in its environment is no port number")))?,
            None => {
                let port = listen::free_port()
                    .map_err(|error| StartError::new(format!("{name}: there is no free port to give it: {error}")))?;
                environment.push(("PORT".to_owned(), port.to_string()));
                port
            }
        };
        if given("HOST").is_none() {
            // Nobody but us has to reach it.
            environment.push(("HOST".to_owned(), "127.0.0.1".to_owned()));
        }
        let conventional = settings.conventional_port;
        Ok(Self {
            port,
            conventional,
            is_fixed: fixed.is_some(),
            environment,
        })
    }
}

impl std::fmt::Display for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "port {} ($PORT) or {}", self.port, self.conventional)
    }
}

/// Waits until a program that was started listens.
pub struct Lookout {
    ports: Ports,
    /// Sockets that listened before: somebody else's, on whichever port.
    others: HashSet<u32>,
    patience: Duration,
    deadline: Instant,
}

impl Lookout {
    /// To be made before the program starts, whose time begins now.
    ///
    /// # Errors
    /// The kernel does not tell what listens.
    pub fn new(ports: Ports, settings: &Settings) -> io::Result<Self> {
        let others = listen::listeners()?
            .into_iter()
            .map(|listener| listener.inode)
            .collect();
        Ok(Self {
            ports,
            others,
            patience: settings.start_timeout,
            deadline: Instant::now() + settings.start_timeout,
        })
    }

    /// Returns when `process`, which people know as `name`, listens. `advice` is for a program that ends instead, with its
    /// status.
    ///
    /// # Errors
    /// It ends before, or does not listen in time.
    pub async fn wait(
        self,
        mut process: Process,
        name: &str,
        advice: impl FnOnce(Option<i32>) -> &'static str,
    ) -> Result<Listening, StartError> {
        let leader = process.leader();
        let found = tokio::select! {
            found = tokio::time::timeout_at(self.deadline, self.look(leader, name)) => found,
            exit = process.ended() => {
                let ports = &self.ports;
                let advice = advice(exit.as_ref().ok().and_then(|exit| exit.code()));
                let exit = match exit {
                    Ok(exit) => exit.to_string(),
                    Err(error) => format!("ended, nobody can tell how ({error}),"),
                };
                return Err(StartError::new(format!("{name} {exit} before it listened on {ports}; {advice}"))
                    .with_traceback(process.last_words().await));
            }
        };
        match found {
            Ok(Ok(listener)) => Ok(Listening {
                process,
                addresses: listener.reach(),
                listener: Some(listener),
                start: Took::default(),
                own_port: self.ports.is_fixed || listener.address.port() != self.ports.port,
            }),
            Ok(Err(error)) => Err(blind(name, &error)),
            Err(_) => {
                let error = self.in_vain(&process, name);
                // How it ends does not matter, but that it has: nothing of it is left when this is told.
                let _ = process.stop(Duration::ZERO).await;
                Err(error)
            }
        }
    }

    /// Waits until a process of the session that `leader` leads listens on one of the ports.
    async fn look(&self, leader: Pid, name: &str) -> io::Result<Listener> {
        let ports = [self.ports.port, self.ports.conventional];
        let mut hint = Some(Instant::now() + HINT_AFTER);
        loop {
            let mut candidates: Vec<_> = self.new_listeners()?;
            candidates.retain(|candidate| ports.contains(&candidate.address.port()));
            if !candidates.is_empty() {
                let held = listen::sockets_of(leader);
                candidates.retain(|candidate| held.contains(&candidate.inode));
                candidates.sort_by_key(|candidate| candidate.address.port() != self.ports.port);
                if let Some(found) = candidates.first() {
                    return Ok(*found);
                }
            }
            if hint.is_some_and(|hint| hint <= Instant::now()) {
                hint = None;
                if let Some(addresses) = addresses_of(leader) {
                    tracing::warn!(
                        "{name} listens on {addresses} so far, and is waited for on {}; {OWN_PORT}",
                        self.ports
                    );
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn new_listeners(&self) -> io::Result<Vec<Listener>> {
        let mut listeners = listen::listeners()?;
        listeners.retain(|listener| !self.others.contains(&listener.inode));
        Ok(listeners)
    }

    fn in_vain(&self, process: &Process, name: &str) -> StartError {
        let instead = match addresses_of(process.leader()) {
            None => "it listens nowhere".to_owned(),
            Some(addresses) => format!("it listens on {addresses}; {OWN_PORT}"),
        };
        let (ports, patience) = (&self.ports, self.patience);
        StartError::new(format!(
            "{name} did not listen on {ports} within {patience:?}: {instead}"
        ))
        .with_traceback(process.tail().text())
    }
}

/// Where the processes of the session that `leader` leads listen, for people.
fn addresses_of(leader: Pid) -> Option<String> {
    let held = listen::held_by(leader).unwrap_or_default();
    let addresses: Vec<String> = held.iter().map(|listener| listener.address.to_string()).collect();
    (!addresses.is_empty()).then(|| addresses.join(", "))
}

/// The error of [`Lookout::new`], for people.
pub fn blind(name: &str, error: &io::Error) -> StartError {
    StartError::new(format!("{name}: can't tell what listens on this machine: {error}"))
}

/// An executable file, started as it is.
pub struct ExecutableFile {
    component: Component,
    settings: Settings,
    file: PathBuf,
}

impl ExecutableFile {
    /// # Errors
    /// There is no such file, or it can't be made executable.
    pub fn new(component: &Component, settings: &Settings) -> Result<Self, StartError> {
        Ok(Self {
            component: component.clone(),
            settings: settings.clone(),
            file: executable_file(component)?,
        })
    }

    async fn launch(&self) -> Result<Listening, StartError> {
        let name = format!("{}: {}", self.component.name, self.file.display());
        let ports = Ports::choose(&self.component, &self.settings)?;
        let confinement = Confinement::of(&self.component)?;
        let mut environment = process::environment(&self.component, &self.settings);
        environment.extend(ports.environment.iter().cloned());
        let lookout = Lookout::new(ports, &self.settings).map_err(|error| blind(&name, &error))?;
        let launch = Launch {
            component: self.component.name.clone(),
            program: self.file.clone(),
            arguments: Vec::new(),
            directory: self.component.root.clone(),
            environment,
            channel: None,
            confinement,
        };
        let began = Instant::now();
        let process = launch.start().await.map_err(|error| self.not_started(&name, &error))?;
        let spawned = Instant::now();
        let advice = |status| advice(status, || is_for_another_machine(&self.file));
        let mut listening = lookout.wait(process, &name, advice).await?;
        listening.start = Took::of([("spawn", spawned - began), ("listen", spawned.elapsed())]);
        Ok(listening)
    }

    fn not_started(&self, name: &str, error: &io::Error) -> StartError {
        let why = match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT) if first_line_ends_in_return(&self.file) => {
                "its first line ends in CR LF, as on Windows, where an interpreter's name has to end in LF alone"
            }
            Some(Errno::ENOENT) if self.file.exists() => {
                "what it needs to run is not there: the interpreter that its first line names, or the dynamic loader \
                 (link it statically)"
            }
            Some(Errno::ENOENT) => "there is no such file",
            Some(Errno::ENOEXEC) => "it is made for another kind of machine, or is no executable at all",
            Some(Errno::EACCES) => "it may not be executed there (chmod +x; not on a file system mounted noexec)",
            _ => return StartError::new(format!("{name} can't be started: {error}")),
        };
        StartError::new(format!("{name} can't be started: {why} ({error})"))
    }
}

impl Start for ExecutableFile {
    fn start(&self) -> Starting<'_> {
        Box::pin(self.launch())
    }
}

/// The file to execute: below the component's root, and executable, made so where it lacks that.
///
/// # Errors
/// There is no such file, or it can't be made executable.
fn executable_file(component: &Component) -> Result<PathBuf, StartError> {
    let Entrypoint::File(file) = &component.entrypoint else {
        return Err(StartError::new(format!(
            "{}: an executable's entrypoint is a file, not a module",
            component.name
        )));
    };
    let refuse = |file: &Path, why: &str| {
        Err(StartError::new(format!(
            "{}: {}: {why}",
            component.name,
            file.display()
        )))
    };
    // Absolute, since the program starts in another directory than we are in.
    let file = match std::path::absolute(component.root.join(file)) {
        Ok(file) => file,
        Err(error) => return refuse(file, &error.to_string()),
    };
    let metadata = match std::fs::metadata(&file) {
        Ok(metadata) if metadata.is_file() => metadata,
        Ok(_) => return refuse(&file, "is no file"),
        Err(error) => return refuse(&file, &error.to_string()),
    };
    let mode = metadata.permissions().mode();
    if mode & 0o111 == 0 {
        // Whoever may read it may execute it: archives made on other systems have no such bit.
        let executable = std::fs::Permissions::from_mode(mode | (mode & 0o444) >> 2);
        if let Err(error) = std::fs::set_permissions(&file, executable) {
            return refuse(
                &file,
                &format!("is not executable (chmod +x), and can't be made so here: {error}"),
            );
        }
    }
    Ok(file)
}

/// What is to be done about a program that ended with `status` before it listened. The C library has given what the kernel
/// refuses to a shell by then, which ends with one of these.
pub(super) fn advice(status: Option<i32>, is_for_another_machine: impl Fn() -> bool) -> &'static str {
    match status {
        Some(2 | 126 | 127) if is_for_another_machine() => "it is made for another kind of machine",
        _ => "it has to stay in the foreground and serve HTTP there",
    }
}

/// Whether `file` is ELF of another class, byte order or architecture than we are.
fn is_for_another_machine(file: &Path) -> bool {
    let of = |file: &Path| {
        let head = start_of::<20>(file)?;
        head.starts_with(b"\x7fELF")
            .then(|| (head[4], head[5], head[18], head[19]))
    };
    let ours = of(Path::new("/proc/self/exe"));
    of(file).is_some_and(|its| ours.is_some_and(|ours| ours != its))
}

fn first_line_ends_in_return(file: &Path) -> bool {
    // The kernel reads no more of it, either.
    let head = start_of::<256>(file).unwrap_or([0; 256]);
    let line = head.split(|&byte| byte == b'\n').next().unwrap_or_default();
    line.starts_with(b"#!") && line.ends_with(b"\r")
}

/// The first bytes of `file`, with zeros behind its end.
fn start_of<const LENGTH: usize>(file: &Path) -> Option<[u8; LENGTH]> {
    let mut start = Vec::with_capacity(LENGTH);
    let file = std::fs::File::open(file).ok()?;
    file.take(LENGTH as u64).read_to_end(&mut start).ok()?;
    start.resize(LENGTH, 0);
    start.try_into().ok()
}
