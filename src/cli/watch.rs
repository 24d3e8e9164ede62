//! `serve --watch`: builds and starts anew what has changed, and puts it in the place of what runs.
//!
//! ```text
//! inotify -> changed paths -> build commands -> start -> Live
//! ```

mod files;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::JoinSet;

use self::files::Files;
use super::live::Live;
use super::start::{Opened, ProgramArguments, described, start};
use super::{CommandError, say};
use crate::console::Console;
use crate::intake::Handler;
use crate::intake::http::Around;
use crate::program::build::Build;
use crate::program::{Component, manifest};
use crate::router::{Router, Running};
use crate::schedule;

/// Keeps a program as its files are.
pub(super) struct Watch {
    arguments: ProgramArguments,
    /// Where its files are.
    root: PathBuf,
    live: Arc<Live>,
    console: Option<Arc<Console>>,
    files: Files,
    /// What the components are told in their environment.
    variables: Vec<(String, String)>,
    /// What is done around requests, and whether that shows clients what failed inside.
    around: (Around, bool),
    /// What runs, and what it was unpacked to.
    running: Vec<Running>,
    opened: Option<Opened>,
    schedules: JoinSet<()>,
    /// What has changed since all was well.
    changed: BTreeSet<PathBuf>,
}

impl Watch {
    /// Looks for changes of the program from now on.
    ///
    /// # Errors
    /// It is an archive, or the system lets no more files be watched.
    pub fn new(
        arguments: ProgramArguments,
        live: Arc<Live>,
        console: Option<Arc<Console>>,
        variables: Vec<(String, String)>,
        around: (Around, bool),
    ) -> Result<Self, CommandError> {
        let path = std::path::absolute(&arguments.path)?;
        let root = match std::fs::metadata(&path) {
            Ok(found) if found.is_dir() => path,
            _ => path.parent().map(Path::to_owned).unwrap_or(path),
        };
        let files = Files::watch(&root).map_err(|error| {
            format!(
                "{} can't be watched: {error} (fs.inotify.max_user_watches says how much can be)",
                root.display()
            )
        })?;
        Ok(Self {
            arguments,
            root,
            live,
            console,
            files,
            variables,
            around,
            running: Vec::new(),
            opened: None,
            schedules: JoinSet::new(),
            changed: BTreeSet::new(),
        })
    }

    /// Builds and starts the program; what is wrong with it is told, and shown to whoever asks it something.
    pub async fn begin(&mut self) {
        self.renew(true).await;
    }

    /// Builds and starts what changes, for ever.
    pub async fn run(&mut self) {
        loop {
            let changed = match self.files.changed().await {
                Ok(changed) => changed,
                Err(error) => {
                    tracing::error!("changes can't be seen any more: {error}");
                    return;
                }
            };
            self.changed.extend(changed);
            self.renew(false).await;
        }
    }

    /// The components that run, to be ended.
    pub fn components(&self) -> Vec<Running> {
        self.running.clone()
    }

    async fn renew(&mut self, all: bool) {
        match self.try_renew(all).await {
            Ok(()) => self.changed.clear(),
            Err(error) => {
                let error = error.to_string();
                eprintln!("error: {error}");
                self.live.fail(&error);
            }
        }
    }

    async fn try_renew(&mut self, all: bool) -> Result<(), CommandError> {
        let all = all || self.opened.is_none() || self.changed.iter().any(|path| path.ends_with(manifest::NAME));
        for build in manifest::builds(&self.root)?.unwrap_or_default() {
            if all || self.is_touched(&build) {
                say(&format!("{}: {}", build.component, build.command));
                let took = build.run().await?;
                say(&format!("{}: built in {:.1} s", build.component, took.as_secs_f64()));
                // What it has made is not a change that somebody has made.
                self.files.forget(&build.product).await;
                self.changed.insert(build.product);
            }
        }
        let mut opened = self.arguments.open()?;
        opened.settings.environment.extend(self.variables.iter().cloned());
        opened
            .settings
            .loopback
            .lead_to(&self.live, |live, event| live.give(event, Router::call));
        // Python takes cached bytecode for current if the source has the same size and was changed in the same second.
        let uncached = ("PYTHONDONTWRITEBYTECODE".to_owned(), "1".to_owned());
        opened.settings.environment.push(uncached);
        let (kept, former): (Vec<Running>, Vec<Running>) = self.running.iter().cloned().partition(|running| {
            let same = |component: &&Component| component.name == running.component.name;
            let now = opened.program.components.iter().find(same);
            !all && now.is_some_and(|component| !self.concerns(component))
        });
        let is_kept = |component: &Component| kept.iter().any(|running| running.component.name == component.name);
        let wanted: Vec<Component> = opened
            .program
            .components
            .iter()
            .filter(|component| !is_kept(component))
            .cloned()
            .collect();
        if wanted.is_empty() && former.is_empty() {
            return Ok(());
        }
        let mut running = start(wanted, &opened.settings, self.console.as_deref(), |running| {
            say(&described(running))
        })
        .await?;
        running.extend(kept);
        self.live.run(running.clone(), former);
        self.around.0.ask(&opened.program.http, self.around.1);
        if all {
            let live = self.live.clone();
            let handler: Handler = Arc::new(move |event| live.give(event, Router::call));
            self.schedules = schedule::keep(opened.program.components.iter(), &handler);
        }
        self.running = running;
        self.opened = Some(opened);
        Ok(())
    }

    fn is_touched(&self, build: &Build) -> bool {
        self.changed.iter().any(|path| build.is_made_of(path))
    }

    /// Whether something that `component` is made of has changed.
    fn concerns(&self, component: &Component) -> bool {
        let keys = &component.keys;
        let of: Vec<PathBuf> = match &keys.watch {
            // What is built is looked at, not what it is built of.
            _ if keys.build.is_some() => vec![self.root.join(&keys.source)],
            Some(paths) => paths.iter().map(|path| self.root.join(path)).collect(),
            None if keys.source.as_os_str() == "." => vec![component.root.clone()],
            None => vec![self.root.join(&keys.source)],
        };
        self.changed.iter().any(|path| of.iter().any(|of| path.starts_with(of)))
    }
}
