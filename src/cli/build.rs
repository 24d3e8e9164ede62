//! `polyinit build`: runs the build commands of a program's components.

use std::path::PathBuf;

use clap::Args;

use super::serve::Stop;
use super::workspace::Interrupted;
use super::{CommandError, say};
use crate::program::build::Build;
use crate::program::manifest;

/// Run the `build` commands of a program's polyinit.toml.
///
/// Each runs in /bin/sh where the manifest stands, one after another, and must make the component's `source`.
/// `polyinit serve --watch` does this by itself whenever something changes.
#[derive(Args)]
#[command(after_help = "\
Examples:
  polyinit build ./shop
  polyinit build ./shop search thumbnails")]
pub struct BuildCommand {
    /// The folder that the program's polyinit.toml is in
    #[arg(value_parser = super::program_path())]
    path: PathBuf,

    /// Only these components
    #[arg(value_name = "COMPONENT")]
    components: Vec<String>,
}

impl BuildCommand {
    pub async fn run(self) -> Result<(), CommandError> {
        let mut stop = Stop::listen()?;
        let builds = manifest::builds(&self.path)?.ok_or_else(|| {
            format!(
                "there is no {} in {}, in which `build` commands would stand",
                manifest::NAME,
                self.path.display()
            )
        })?;
        let known = || builds.iter().map(|build| build.component.as_str());
        if let Some(unknown) = self.components.iter().find(|name| !known().any(|known| known == *name)) {
            let names: Vec<&str> = known().collect();
            return Err(format!(
                "no component {unknown:?} has a build command; these have: {}",
                names.join(", ")
            )
            .into());
        }
        if builds.is_empty() {
            say("no component has a build command, so there is nothing to build");
        }
        let wanted = |build: &&Build| self.components.is_empty() || self.components.contains(&build.component);
        for build in builds.iter().filter(wanted) {
            tokio::select! {
                done = run(build) => done?,
                // Dropped, it ends what it has started, which Ctrl-C does not reach by itself.
                () = stop.asked() => return Err(Interrupted.into()),
            }
        }
        Ok(())
    }
}

/// Runs one build command, and says so.
pub(super) async fn run(build: &Build) -> Result<(), CommandError> {
    say(&format!("{}: {}", build.component, build.command));
    let took = build.run().await?;
    say(&format!("{}: built in {:.1} s", build.component, took.as_secs_f64()));
    Ok(())
}
