//! `polyinit check`: tells every mistake of a program's manifest, and starts nothing.

use std::path::{Path, PathBuf};

use clap::Args;

use super::serve::Stop;
use super::workspace::{Workspace, unless_stopped};
use super::{CommandError, say};
use crate::program::{self, Hint, ProgramError, manifest};

/// Check a program's polyinit.toml, and start nothing.
///
/// All mistakes are shown at once, each with its line and what was probably meant. The exit code is 0 if there are none.
///
/// The programs themselves are not checked: `polyinit inspect` tells whether a Wasm file can be run.
#[derive(Args)]
#[command(after_help = "\
Examples:
  polyinit check ./my-app
  polyinit check ./my-app --json         for editors and scripts
  polyinit check --schema                the JSON Schema of polyinit.toml

An editor that knows TOML checks as you type with this first line in polyinit.toml:
  #:schema ./polyinit.schema.json")]
pub struct Check {
    /// The program: a folder with a polyinit.toml, or what `polyinit serve` takes
    #[arg(required_unless_present = "schema", value_parser = super::program_path())]
    path: Option<PathBuf>,

    /// Print what is wrong as JSON: {"mistakes": [{path, line, column, message, text, hint}], "components": [...]}
    #[arg(long)]
    json: bool,

    /// Print the JSON Schema of polyinit.toml
    #[arg(long, conflicts_with_all = ["path", "json"])]
    schema: bool,
}

impl Check {
    pub async fn run(self) -> Result<(), CommandError> {
        let Some(path) = self.path else {
            say(&format!("{:#}", manifest::schema()));
            return Ok(());
        };
        let json = self.json;
        unless_stopped(
            &mut Stop::listen()?,
            || (),
            move |workspace| tell(&path, json, workspace),
        )
        .await
    }
}

fn tell(path: &Path, json: bool, workspace: &Workspace) -> Result<(), CommandError> {
    let opened = program::open(path, &Hint::default(), || workspace.place());
    if json {
        return self::json(opened);
    }
    let program = opened?;
    let components = program.components.iter();
    let names: Vec<String> = components
        .map(|component| format!("{} ({})", component.name, component.engine))
        .collect();
    say(&format!("{}: no mistake: {}", path.display(), names.join(", ")));
    Ok(())
}

fn json(opened: Result<program::Program, ProgramError>) -> Result<(), CommandError> {
    let (mistakes, components) = match &opened {
        Ok(program) => {
            let of = |component: &program::Component| {
                serde_json::json!({
                    "name": component.name, "engine": component.engine, "why": component.why,
                })
            };
            (serde_json::json!([]), program.components.iter().map(of).collect())
        }
        Err(ProgramError::Manifest(mistakes)) => {
            let list: Vec<_> = mistakes.iter().collect();
            (serde_json::to_value(list)?, Vec::new())
        }
        // Nothing that a line of the manifest is to blame for.
        Err(error) => (serde_json::json!([{ "message": error.to_string() }]), Vec::new()),
    };
    say(&format!(
        "{:#}",
        serde_json::json!({ "mistakes": mistakes, "components": components })
    ));
    match opened {
        Ok(_) => Ok(()),
        // It has been said.
        Err(_) => Err(super::Ended(1).into()),
    }
}
