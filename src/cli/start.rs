//! What `serve` and `invoke` have in common: a program named on the command line, opened, started and ready for events.

use std::ffi::OsString;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use futures_util::future::try_join_all;

use super::sandbox::SandboxArgs;
use super::serve::Stop;
use super::workspace::{Workspace, unless_stopped};
use super::{CommandError, assignment, cache_directory};
use crate::console::Console;
use crate::engine::{self, Settings, StartError};
use crate::guest_api;
use crate::intake::internal::Gateway;
use crate::program::{self, Component, Hint, Program};
use crate::report;
use crate::router::Running;

/// A program, and how it is run.
#[derive(Args, Clone)]
pub(super) struct ProgramArguments {
    /// The program: a file, a folder, a zip or a squashfs
    #[arg(value_parser = super::program_path())]
    pub path: PathBuf,

    /// Where the program begins: module:attribute, or a file in it
    #[arg(long, value_name = "ENTRYPOINT")]
    entrypoint: Option<String>,

    /// A variable for the program's environment; may be repeated
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = assignment)]
    environment: Vec<(String, String)>,

    /// The longest time until the reply to a request begins, or for WebAssembly ends, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300.0)]
    timeout: f64,

    /// The longest that the program may take to start, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 50.0)]
    start_timeout: f64,

    /// The most processes for a Python or Node program [default: one for each processor, at least two, started as events
    /// need them]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    workers: Option<u16>,

    #[command(flatten)]
    sandbox: SandboxArgs,
}

/// A program that has been read, with the folder that it was unpacked to.
pub(super) struct Opened {
    pub program: Program,
    pub settings: Settings,
    workspace: Arc<Workspace>,
}

impl ProgramArguments {
    /// As [`ProgramArguments::open`], until it is told to `stop`.
    pub async fn open_unless(&self, stop: &mut Stop) -> Result<Opened, CommandError> {
        let arguments = self.clone();
        unless_stopped(stop, || (), move |workspace| arguments.open(workspace.clone())).await
    }

    /// Reads the program; starts nothing.
    pub fn open(&self, workspace: Arc<Workspace>) -> Result<Opened, CommandError> {
        let settings = self.settings()?;
        let hint = Hint {
            entrypoint: self.entrypoint.clone(),
            ..Hint::default()
        };
        let mut program = program::open(&self.path, &hint, || workspace.place())?;
        if program.components.len() > 1 {
            // For their socket.
            workspace.folder()?;
        }
        let has_user = |component: &Component| component.keys.user.is_some();
        if let Some(folder) = workspace.made()
            && program.components.iter().any(has_user)
        {
            // Whoever it is has to find what is there.
            std::fs::set_permissions(folder, Permissions::from_mode(0o711))?;
        }
        for component in &mut program.components {
            component.environment.extend(self.environment.iter().cloned());
        }
        self.sandbox.apply(&mut program.components)?;
        engine::make_ready(&program.components);
        report::reached("program read");
        Ok(Opened {
            program,
            settings,
            workspace,
        })
    }

    fn settings(&self) -> Result<Settings, CommandError> {
        let seconds = |name: &str, value: f64| {
            Duration::try_from_secs_f64(value)
                .ok()
                .filter(|duration| !duration.is_zero())
                .ok_or_else(|| format!("--{name} {value}: must be more than 0 seconds"))
        };
        Ok(Settings {
            cache: cache_directory(),
            event_timeout: seconds("timeout", self.timeout)?,
            start_timeout: seconds("start-timeout", self.start_timeout)?,
            workers: self.workers.map(usize::from),
            // Where a host has put its API on this machine, under the name that the network's SDK knows.
            guest_api: std::env::var_os(guest_api::VARIABLE).map(PathBuf::from),
            environment: containers_environment(),
            ..Settings::default()
        })
    }
}

/// What a container's environment is for: the program in it. Elsewhere it is somebody's own, and programs have of it what
/// is named for them.
fn containers_environment() -> Vec<(String, String)> {
    if std::process::id() != 1 {
        return Vec::new();
    }
    // One that is no text can't be passed on by every engine.
    let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    std::env::vars_os().filter_map(text).collect()
}

impl Opened {
    /// The way from component to component, of which they are told in their environment; none where there is but one.
    pub async fn gateway(&mut self) -> Option<Gateway> {
        let socket = self.workspace.made()?.join("components.sock");
        Gateway::between(&self.program.components, &socket, &mut self.settings.environment).await
    }
}

/// Starts all `components` at once, to be seen on the `console` where there is one. `told` is called with each that is ready, as soon as it is.
///
/// # Errors
/// The first that can't be started ends the others.
pub(super) async fn start(
    components: Vec<Component>,
    settings: &Settings,
    console: Option<&Console>,
    told: impl Fn(&Running),
) -> Result<Vec<Running>, CommandError> {
    let started = components.into_iter().map(async |component| {
        let engine = engine::start(&component, settings)
            .await
            .map_err(|error| account(&component.name, &error))?;
        let running = Running { component, engine };
        report::reached(&format!("{} ready", running.component.name));
        told(&running);
        Ok::<_, String>(match console {
            Some(console) => console.observe(running),
            None => running,
        })
    });
    let running = try_join_all(started).await?;
    settings.warm.clear();
    Ok(running)
}

fn account(name: &str, error: &StartError) -> String {
    let StartError { message, traceback } = error;
    // Most sentences begin with the component's name themselves.
    let message = if message.contains(name) {
        message.clone()
    } else {
        format!("{name}: {message}")
    };
    match traceback.as_deref().map(str::trim_end) {
        Some(traceback) if !traceback.trim().is_empty() => format!("{message}\n{traceback}"),
        _ => message,
    }
}
