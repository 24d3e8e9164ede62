//! `serve --watch`: rebuilds and restarts what has changed, and puts it in the place of what runs.
//!
//! ```text
//! inotify -> changed paths -> build commands -> start -> Live
//! ```

mod files;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::task::JoinSet;

use self::files::Files;
use super::live::Live;
use super::serve::GRACE;
use super::start::{Opened, ProgramArguments, start};
use super::turn::Turn;
use super::{CommandError, note, say};
use crate::console::Console;
use crate::intake::Handler;
use crate::intake::http::Around;
use crate::program::build::Build;
use crate::program::{Component, EngineKind, manifest};
use crate::router::{Router, Running};
use crate::schedule;

/// Keeps what runs in step with the program's files.
pub(super) struct Watch {
    arguments: ProgramArguments,
    /// The program itself, a folder or a file, and where its files are.
    program: PathBuf,
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
    /// The places of those that take a port of their own, by component name.
    turns: BTreeMap<String, Arc<Turn>>,
    opened: Option<Opened>,
    schedules: JoinSet<()>,
    /// What has changed since the program was last started without a mistake.
    changed: BTreeSet<PathBuf>,
}

impl Watch {
    /// Watches the program's files from now on.
    ///
    /// # Errors
    /// The folder can't be watched, or the system lets no more files be watched.
    pub fn new(
        arguments: ProgramArguments,
        live: Arc<Live>,
        console: Option<Arc<Console>>,
        variables: Vec<(String, String)>,
        around: (Around, bool),
    ) -> Result<Self, CommandError> {
        let program = std::path::absolute(&arguments.path)?;
        let root = match std::fs::metadata(&program) {
            Ok(found) if found.is_dir() => program.as_path(),
            _ => program.parent().unwrap_or(&program),
        };
        let root = root.to_owned();
        let files = Files::watch(&root).map_err(|error| {
            format!(
                "{} can't be watched: {error} (fs.inotify.max_user_watches says how much can be)",
                root.display()
            )
        })?;
        Ok(Self {
            arguments,
            program,
            root,
            live,
            console,
            files,
            variables,
            around,
            running: Vec::new(),
            turns: BTreeMap::new(),
            opened: None,
            schedules: JoinSet::new(),
            changed: BTreeSet::new(),
        })
    }

    /// Builds and starts the program. If that fails, the reason is printed, and shown to clients.
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
                note(&format!("error: {error}"));
                self.live.fail(&error);
                // Whoever waits for what could not be started is told so.
                self.forget_turns();
            }
        }
    }

    async fn try_renew(&mut self, all: bool) -> Result<(), CommandError> {
        let is_of_all = |path: &PathBuf| path.ends_with(manifest::NAME) || [&self.root, &self.program].contains(&path);
        let all = all || self.opened.is_none() || self.changed.iter().any(is_of_all);
        for build in manifest::builds(&self.root)?.unwrap_or_default() {
            if all || self.is_touched(&build) {
                super::build::run(&build).await?;
                // What it has made is not a change that somebody has made.
                self.files.forget(&build.product).await;
                self.changed.insert(build.product);
            }
        }
        let mut opened = self.arguments.open(Arc::default())?;
        opened.settings.environment.extend(self.variables.iter().cloned());
        opened
            .settings
            .loopback
            .lead_to(&self.live, |live, event| live.give(event, Router::call));
        // Python takes cached bytecode for current if the source has the same size and was last changed in the same second.
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
        let former = self.end_turns(former).await;
        let mut running = start(wanted, &opened.settings, self.console.as_deref(), |running| {
            say(&running.to_string())
        })
        .await?;
        self.begin_turns(&mut running);
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

    /// Ends those of the `former` components that can't run beside their successors; requests for them wait. Returns the
    /// others, which run on until the new ones are there.
    async fn end_turns(&mut self, former: Vec<Running>) -> Vec<Running> {
        let mut turns = Vec::new();
        let mut others = Vec::new();
        for running in former {
            match self.turns.get(&running.component.name) {
                Some(turn) => turns.push(turn.clone()),
                None => others.push(running),
            }
        }
        let is_other = |running: &Running| !turns.iter().any(|turn| turn.is_of(&running.component.name));
        self.running.retain(is_other);
        join_all(turns.iter().map(|turn| turn.end(GRACE))).await;
        others
    }

    /// Begins the turns of components that have a port of their own: requests that have waited are served.
    fn begin_turns(&mut self, running: &mut [Running]) {
        for Running { component, engine } in running {
            let before = self.turns.remove(&component.name);
            if let Some(turn) = &before {
                turn.begin(engine.clone());
            }
            if engine.has_own_port() {
                let turn = before.unwrap_or_else(|| Turn::new(&component.name, engine.clone()));
                *engine = turn.clone();
                self.turns.insert(component.name.clone(), turn);
            }
        }
        self.forget_turns();
    }

    /// Ends the wait for components that don't run any more.
    fn forget_turns(&mut self) {
        self.turns.retain(|_, turn| {
            let goes_on = turn.is_serving();
            if !goes_on {
                turn.give_up();
            }
            goes_on
        });
    }

    fn is_touched(&self, build: &Build) -> bool {
        self.changed.iter().any(|path| build.is_made_of(path))
    }

    /// Whether something that `component` is made of has changed.
    fn concerns(&self, component: &Component) -> bool {
        let keys = &component.keys;
        let imports = matches!(component.engine, EngineKind::Python | EngineKind::Node);
        let of: Vec<PathBuf> = match &keys.watch {
            // What is built counts, not what it is built from.
            _ if keys.build.is_some() => vec![self.root.join(&keys.source)],
            Some(paths) => paths.iter().map(|path| self.root.join(path)).collect(),
            // What a file of a program imports stands beside it.
            None if imports || keys.source.as_os_str() == "." => vec![component.root.clone()],
            None => vec![self.root.join(&keys.source)],
        };
        self.changed.iter().any(|path| of.iter().any(|of| path.starts_with(of)))
    }
}
