//! `polyinit routes`: which component a request goes to, in the order in which routes are tried.

use std::path::PathBuf;

use clap::Args;

use super::serve::Stop;
use super::workspace::{Workspace, unless_stopped};
use super::{CommandError, say};
use crate::program::subscription::Messages;
use crate::program::{self, Hint};
use crate::router;

/// Show which requests go to which component of a program, and start nothing.
///
/// Routes are shown in the order in which they are tried, and a request takes the first one that matches: an exact host
/// comes before any host, a longer path before a shorter one, named methods before any method. The last lines show where
/// network messages go.
#[derive(Args)]
#[command(after_help = "\
Examples:
  polyinit routes ./my-app
  polyinit routes ./my-app --json")]
pub struct Routes {
    /// The program, as `polyinit serve` takes it
    #[arg(value_parser = super::program_path())]
    path: PathBuf,

    /// Print a list of {route, component, engine}
    #[arg(long)]
    json: bool,
}

impl Routes {
    pub async fn run(self) -> Result<(), CommandError> {
        unless_stopped(&mut Stop::listen()?, || (), |workspace| self.show(workspace)).await
    }

    fn show(self, workspace: &Workspace) -> Result<(), CommandError> {
        let program = program::open(&self.path, &Hint::default(), || workspace.place())?;
        let components = &program.components;
        let routes = router::routes_of(components.iter());
        if self.json {
            let of = |(route, place): &(program::route::Route, usize)| {
                let component = &components[*place];
                serde_json::json!({
                    "route": route.to_string(), "component": component.name, "engine": component.engine,
                })
            };
            let list: Vec<_> = routes.iter().map(of).collect();
            say(&format!("{:#}", serde_json::Value::from(list)));
            return Ok(());
        }
        let alone = components.len() == 1;
        let routes = routes
            .iter()
            .map(|(route, place)| (route.to_string(), &components[*place]));
        let takers = components.iter().filter(|component| component.takes_messages(alone));
        let messages = takers.clone().map(|component| match &component.keys.messages {
            // Whoever is alone is asked for no subject.
            Messages::Some(subscriptions) if !alone => {
                let subjects: Vec<String> = subscriptions.iter().map(ToString::to_string).collect();
                (
                    format!("messages {}", subjects.join(", ")).trim_end().to_owned(),
                    component,
                )
            }
            _ => ("messages".to_owned(), component),
        });
        let lines: Vec<_> = routes.chain(messages).collect();
        let width = lines
            .iter()
            .map(|(text, _)| text.chars().count())
            .max()
            .unwrap_or_default();
        for (text, component) in lines {
            say(&format!("{text:width$}  {} ({})", component.name, component.engine));
        }
        if takers.count() == 0 {
            say("messages go to no component: give one `messages = true`");
        }
        Ok(())
    }
}
