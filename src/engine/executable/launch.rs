//! From a file to a program that listens.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Pid;
use tokio::time::Instant;

use super::listen::{self, Listener};
use crate::engine::process::{self, Launch, Process};
use crate::engine::{Settings, StartError};
use crate::program::{Component, Entrypoint};

/// How often the kernel is asked whether the program listens: as often as a fiftieth of the time it has taken so far,
/// which is how much later than possible it is told at most, within these bounds.
const LOOK_SOONEST: Duration = Duration::from_millis(1);
const LOOK_LATEST: Duration = Duration::from_millis(50);

/// All it takes to start a program that serves HTTP, once or again.
#[derive(Debug, Clone)]
pub struct Recipe {
    pub component: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    directory: PathBuf,
    environment: Vec<(String, String)>,
    conventional_port: u16,
    start_timeout: Duration,
}

/// A program that was seen to listen.
#[derive(Debug)]
pub struct Listening {
    pub process: Process,
    /// Where it can be reached, the likeliest first; never empty.
    pub addresses: Vec<SocketAddr>,
}

impl Recipe {
    pub fn new(component: &Component, settings: &Settings, program: PathBuf, arguments: Vec<OsString>) -> Self {
        Self {
            component: component.name.clone(),
            program,
            arguments,
            directory: component.root.clone(),
            environment: process::environment(component, settings),
            conventional_port: settings.conventional_port,
            start_timeout: settings.start_timeout,
        }
    }

    /// Starts the program and waits until it listens on `$PORT` or on the conventional port.
    ///
    /// # Errors
    /// The kernel does not start it, it ends before it listens, or it does not listen in time.
    pub async fn start(&self) -> Result<Listening, StartError> {
        let name = &self.component;
        let deadline = Instant::now() + self.start_timeout;
        let unknown = |error| StartError::new(format!("{name}: can't tell what listens on this machine: {error}"));
        // Whatever listens already is somebody else's, on whichever port.
        let others = listen::listeners()
            .map_err(unknown)?
            .into_iter()
            .map(|listener| listener.inode)
            .collect();
        let (ports, environment) = self.ports()?;
        let mut process = Launch {
            component: name.clone(),
            program: self.program.clone(),
            arguments: self.arguments.clone(),
            directory: self.directory.clone(),
            environment,
            channel: None,
        }
        .start()
        .await
        .map_err(|error| self.not_started(&error))?;
        let looking = look(process.leader(), ports, &others);
        let found = tokio::select! {
            found = tokio::time::timeout_at(deadline, looking) => found,
            exit = exit_of(&mut process) => return Err(self.ended_at_start(&process, ports, exit).await),
        };
        match found {
            Ok(Ok(listener)) => Ok(Listening {
                process,
                addresses: listener.reach(),
            }),
            Ok(Err(error)) => Err(unknown(error)),
            Err(_) => Err(self.never_listened(&process, ports, &others)),
        }
    }

    /// The ports to look at, `$PORT` first, and the environment that tells it to the program.
    fn ports(&self) -> Result<([u16; 2], Vec<(String, String)>), StartError> {
        let mut environment = self.environment.clone();
        let port = match environment.iter().rev().find(|(name, _)| name == "PORT") {
            Some((_, port)) => port.parse().map_err(|_| {
                StartError::new(format!(
                    "{}: PORT={port} in its environment is no port number",
                    self.component
                ))
            })?,
            None => {
                let port = listen::free_port().map_err(|error| {
                    StartError::new(format!("{}: there is no free port to give it: {error}", self.component))
                })?;
                environment.push(("PORT".to_owned(), port.to_string()));
                port
            }
        };
        if !environment.iter().any(|(name, _)| name == "HOST") {
            // Nobody but us has to reach it.
            environment.push(("HOST".to_owned(), "127.0.0.1".to_owned()));
        }
        Ok(([port, self.conventional_port], environment))
    }

    fn not_started(&self, error: &io::Error) -> StartError {
        let why = match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT) if self.program.exists() => {
                "what it needs to run is not there: the interpreter that its first line names, or the dynamic loader \
                 (link it statically)"
            }
            Some(Errno::ENOENT) => "there is no such file",
            Some(Errno::ENOEXEC) => "it is made for another kind of machine, or is no executable at all",
            Some(Errno::EACCES) => "it may not be executed there (chmod +x; not on a file system mounted noexec)",
            _ => {
                return StartError::new(format!(
                    "{}: {} can't be started: {error}",
                    self.component,
                    self.program.display()
                ));
            }
        };
        StartError::new(format!(
            "{}: {} can't be started: {why} ({error})",
            self.component,
            self.program.display()
        ))
    }

    async fn ended_at_start(&self, process: &Process, [port, conventional]: [u16; 2], exit: String) -> StartError {
        StartError::new(format!(
            "{}: {} {exit} before it listened on port {port} ($PORT) or {conventional}; it has to stay in the foreground \
             and serve HTTP there",
            self.component,
            self.program.display(),
        ))
        .with_traceback(process.last_words().await)
    }

    fn never_listened(&self, process: &Process, [port, conventional]: [u16; 2], others: &HashSet<u32>) -> StartError {
        let held = listen::sockets_of(process.leader());
        let instead: Vec<String> = listen::listeners()
            .unwrap_or_default()
            .into_iter()
            .filter(|listener| !others.contains(&listener.inode) && held.contains(&listener.inode))
            .map(|listener| listener.address.to_string())
            .collect();
        let instead = match &instead[..] {
            [] => "it listens nowhere".to_owned(),
            addresses => format!("it listens on {}", addresses.join(", ")),
        };
        StartError::new(format!(
            "{}: {} did not listen on port {port} ($PORT) or {conventional} within {:?}: {instead}",
            self.component,
            self.program.display(),
            self.start_timeout,
        ))
        .with_traceback(process.tail().text())
    }
}

/// The file to execute: below the component's root, and executable, made so where it lacks that.
///
/// # Errors
/// There is no such file, or it can't be made executable.
pub fn executable_file(component: &Component) -> Result<PathBuf, StartError> {
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

/// How the program ended, as a part of a sentence.
async fn exit_of(process: &mut Process) -> String {
    match process.ended().await {
        Ok(exit) => exit.to_string(),
        Err(error) => format!("ended, nobody can tell how ({error}),"),
    }
}

/// Waits until a process of the session that `leader` leads listens on one of `ports`, the first one before the others.
async fn look(leader: Pid, ports: [u16; 2], others: &HashSet<u32>) -> io::Result<Listener> {
    let begin = Instant::now();
    loop {
        let listeners = listen::listeners()?;
        let mut candidates: Vec<_> = listeners
            .iter()
            .filter(|it| ports.contains(&it.address.port()) && !others.contains(&it.inode))
            .collect();
        if !candidates.is_empty() {
            let held = listen::sockets_of(leader);
            candidates.retain(|candidate| held.contains(&candidate.inode));
            candidates.sort_by_key(|candidate| candidate.address.port() != ports[0]);
            if let Some(found) = candidates.first() {
                return Ok(**found);
            }
        }
        tokio::time::sleep((begin.elapsed() / 50).clamp(LOOK_SOONEST, LOOK_LATEST)).await;
    }
}
