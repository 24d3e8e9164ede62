//! Interpreters that are started before it is known which program they will run.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::Language;
use super::channel::{Channel, FirstWord};
use crate::engine::Settings;
use crate::engine::process::{self, Confinement, Launch, Process};
use crate::program::Component;
use crate::report::start::clock;

/// One warm interpreter for each language at most. Clones share them.
#[derive(Clone, Default)]
pub struct Warm(Arc<Mutex<HashMap<&'static str, Interpreter>>>);

/// A worker process that waits for its program, and the channel to it.
pub struct Interpreter {
    pub process: Process,
    pub channel: Arc<Channel>,
    pub started: FirstWord,
    /// When it was to be started, and when the kernel had done so, by [`clock`].
    pub spawned: (Duration, Duration),
    /// Whether it was started ahead.
    pub ahead: bool,
}

impl Warm {
    /// Starts an interpreter of `language` in the background; [`Warm::take`] gives it away. Where there is none on
    /// this machine nothing happens.
    pub fn put(&self, language: Arc<dyn Language>, settings: &Settings) {
        let environment = process::base_environment(settings);
        let warm = self.clone();
        tokio::spawn(async move {
            match Interpreter::start(&language, language.name(), environment, Confinement::default()).await {
                Ok(interpreter) => drop(warm.0.lock().insert(language.name(), interpreter)),
                Err(error) => tracing::debug!("no warm {} worker: {error}", language.name()),
            }
        });
    }

    /// The warm interpreter of that language, if there is one that still lives.
    pub fn take(&self, language: &dyn Language) -> Option<Interpreter> {
        let mut warm = self.0.lock().remove(language.name())?;
        (!warm.process.has_ended()).then_some(warm)
    }

    /// Ends the interpreters that nobody took.
    pub fn clear(&self) {
        self.0.lock().clear();
    }
}

impl std::fmt::Debug for Warm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.lock().keys()).finish()
    }
}

impl Interpreter {
    /// Starts an interpreter for `component`, confined so.
    ///
    /// # Errors
    /// Where the interpreter is not on this machine, or can't be started.
    pub async fn start(
        language: &Arc<dyn Language>,
        component: &str,
        environment: Vec<(String, String)>,
        confinement: Confinement,
    ) -> io::Result<Self> {
        let (mut ours, theirs) = UnixStream::pair()?;
        let mut command = language.command().into_iter();
        let program = command.next().unwrap_or_default();
        let mut arguments: Vec<_> = command.collect();
        arguments.push(theirs.as_raw_fd().to_string().into());
        let launch = Launch {
            component: component.to_owned(),
            program: Path::new(&program).to_owned(),
            arguments,
            directory: "/".into(),
            environment,
            channel: Some(theirs.into()),
            confinement,
        };
        let began = clock();
        let process = launch.start().await?;
        let spawned = (began, clock());
        // A few kilobytes, which the socket's buffer takes whether the interpreter reads already or not.
        ours.write_all(&language.preamble())?;
        let (channel, started) = Channel::new(language.clone(), ours)?;
        Ok(Self {
            process,
            channel,
            started,
            spawned,
            ahead: false,
        })
    }

    /// The interpreter that `component` gets, confined so: a warm one, or else a new one.
    ///
    /// # Errors
    /// As [`Interpreter::start`], and where a warm one can't be confined.
    pub async fn for_component(
        language: &Arc<dyn Language>,
        component: &Component,
        settings: &Settings,
        confinement: Confinement,
    ) -> io::Result<Self> {
        if confinement.is_usual()
            && language.takes_warm(component)
            && let Some(mut warm) = settings.warm.take(&**language)
        {
            warm.process.confine(&confinement)?;
            warm.ahead = true;
            return Ok(warm);
        }
        let mut environment = process::environment(component, settings);
        let mut more = language.variables();
        more.retain(|(name, _)| environment.iter().all(|(there, _)| there != name));
        environment.extend(more);
        Self::start(language, &component.name, environment, confinement).await
    }
}
