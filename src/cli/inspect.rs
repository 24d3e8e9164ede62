//! `polyinit inspect`: what a program is made of and what each part of it may do; starts nothing.

use std::io;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::serve::Stop;
use super::workspace::{Workspace, unless_stopped};
use super::{CommandError, cache_directory, say};
use crate::engine::wasm;
use crate::program::{self, Component, EngineKind, Entrypoint, Hint};
use crate::report::{self, log::visible};

/// Show what a program is made of, what runs each part and why, and what each may do; start nothing.
///
/// WebAssembly is compiled (or taken from the cache) to tell its imports and exports, and whether it can be run.
#[derive(Args)]
#[command(after_help = "\
Examples:
  polyinit inspect ./shop
  polyinit inspect hello.wasm --json")]
pub struct Inspect {
    /// The program, as `polyinit serve` takes it
    #[arg(value_parser = super::program_path())]
    path: PathBuf,

    /// Where the program begins: module:attribute, or a file in it
    #[arg(long, value_name = "ENTRYPOINT")]
    entrypoint: Option<String>,

    /// Print {"components": [...]}
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub async fn run(self) -> Result<(), CommandError> {
        report::log::begin(io::stderr(), "info");
        unless_stopped(&mut Stop::listen()?, || (), |workspace| self.show(workspace)).await
    }

    fn show(self, workspace: &Workspace) -> Result<(), CommandError> {
        let hint = Hint {
            entrypoint: self.entrypoint,
            ..Hint::default()
        };
        let program = program::open(&self.path, &hint, || workspace.place())?;
        let alone = program.components.len() == 1;
        let mut described = Vec::with_capacity(program.components.len());
        for component in program.components {
            described.push(describe(&component, alone)?);
        }
        if self.json {
            say(&format!("{:#}", json!({ "components": described })));
        } else {
            described.iter().for_each(show);
        }
        Ok(())
    }
}

fn describe(component: &Component, alone: bool) -> Result<Value, CommandError> {
    let entrypoint = match &component.entrypoint {
        Entrypoint::Module { module, attribute } => match attribute {
            Some(attribute) => format!("{module}:{attribute}"),
            None => module.clone(),
        },
        Entrypoint::File(file) => file.display().to_string(),
    };
    let routes: Vec<String> = component.routes_taken(alone).iter().map(ToString::to_string).collect();
    let mut description = json!({
        "name": component.name,
        "engine": component.engine,
        "why": component.why,
        "root": component.root.to_string_lossy(),
        "entrypoint": entrypoint,
        "routes": routes,
        "messages": component.takes_messages(alone),
        "environment": component.environment.keys().collect::<Vec<_>>(),
        "may": may(component),
        "manifest": component.keys,
    });
    if component.engine == EngineKind::Wasm {
        let path = component.root.join(&entrypoint);
        let interface = wasm::inspect::inspect(&path, cache_directory().as_deref())?;
        description["wasm"] = serde_json::to_value(interface)?;
    }
    Ok(description)
}

/// What a component can reach beside its events.
fn may(component: &Component) -> Vec<&'static str> {
    match component.engine {
        EngineKind::Wasm => vec![
            "its event, standard output and error, clocks, randomness, the variables named for it; nothing else unless granted",
        ],
        EngineKind::Static => vec!["its folder's files, for reading"],
        EngineKind::Python | EngineKind::Node | EngineKind::Executable => {
            vec!["all that a process of this user may: files, network, processes"]
        }
    }
}

fn show(description: &Value) {
    // A Wasm file chooses its names itself.
    let text = |value: &Value| visible(value.as_str().unwrap_or_default()).replace('\n', "\\n");
    let list = |value: &Value, none: &str| {
        let words: Vec<String> = value.as_array().into_iter().flatten().map(text).collect();
        if words.is_empty() {
            none.to_owned()
        } else {
            words.join(", ")
        }
    };
    say(&format!(
        "{}: {} → {}",
        text(&description["name"]),
        text(&description["why"]),
        text(&description["engine"])
    ));
    let root = text(&description["root"]);
    say(&format!(
        "  begins at    {} in {root}",
        text(&description["entrypoint"])
    ));
    say(&format!(
        "  takes        {}",
        list(&description["routes"], "no requests")
    ));
    if description["messages"] == true {
        say("  messages     yes");
    }
    let environment = &description["environment"];
    if environment.as_array().is_some_and(|names| !names.is_empty()) {
        say(&format!("  environment  {}", list(environment, "")));
    }
    say(&format!("  may use      {}", list(&description["may"], "nothing")));
    let wasm = &description["wasm"];
    if wasm.is_object() {
        say(&format!("  is a         WebAssembly {}", text(&wasm["form"])));
        match wasm["refused"].as_str() {
            Some(refused) => say(&format!("  can't run    {}", visible(refused))),
            None => say(&format!("  runs as      {}", text(&wasm["runs_as"]))),
        }
        say(&format!("  imports      {}", list(&wasm["imports"], "nothing")));
        say(&format!("  exports      {}", list(&wasm["exports"], "nothing")));
    }
}
