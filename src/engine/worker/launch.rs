//! From a component to a worker whose program can take events.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Pid;

use super::Language;
use super::frame::Kind;
use super::warm::Interpreter;
use crate::engine::listen;
use crate::engine::process::{Confinement, Process};
use crate::engine::{Settings, StartError};
use crate::program::{Component, Entrypoint};
use crate::report::start::Start;

/// How long a worker that closed its channel may take to end.
const LAST_BREATH: Duration = Duration::from_secs(1);

/// A program that is not ready by then may serve HTTP itself, which is said.
const HINT_AFTER: Duration = Duration::from_secs(3);

/// A worker that has loaded its program.
pub struct Launched {
    pub interpreter: Interpreter,
    pub found: Found,
    /// What it took.
    pub start: Start,
}

/// What a worker found in its program.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
pub struct Found {
    /// For people: "`app` is an ASGI application".
    pub found: String,
    /// The program takes no frames: it serves HTTP itself.
    #[serde(default)]
    pub listens: bool,
    /// Where it does, if the worker knows.
    #[serde(default)]
    pub port: Option<u16>,
    /// It has taken a port of its own choice besides.
    #[serde(default)]
    pub own_port: bool,
    /// The program takes WebSockets, as messages.
    #[serde(default)]
    pub websockets: bool,
    /// Microseconds on the clock of [`crate::report::start::clock`] at which the interpreter had come so far: its first line,
    /// then waiting for the program, told of it, it is imported, it is ready.
    #[serde(default)]
    marks: Vec<u64>,
}

/// Starts a worker, or takes the one that was started ahead, and waits until its program is loaded.
///
/// # Errors
/// There is no interpreter, the program can't be loaded, or not in time; with what it said.
pub async fn launch(
    language: &Arc<dyn Language>,
    component: &Component,
    settings: &Settings,
) -> Result<Launched, StartError> {
    let name = &component.name;
    let file = match &component.entrypoint {
        Entrypoint::File(file) => file.as_path(),
        Entrypoint::Module { .. } => Path::new(""),
    };
    // Workers are told of it as text.
    let path = component.root.join(file);
    if path.to_str().is_none() {
        return Err(StartError::new(format!(
            "{name}: {} is no path for a {} program: it is not UTF-8",
            path.display(),
            language.name()
        )));
    }
    let load = language.load(component, settings)?;
    let confinement = Confinement::of(component)?;
    let mut interpreter = Interpreter::for_component(language, component, settings, confinement)
        .await
        .map_err(|error| {
            let command = language.command();
            let program = command
                .first()
                .map(|program| program.to_string_lossy())
                .unwrap_or_default();
            let advice = match error.kind() {
                std::io::ErrorKind::NotFound => format!(". Is {} installed, and on PATH?", language.name()),
                _ => String::new(),
            };
            StartError::new(format!("{name}: {program:?} can't be started: {error}{advice}"))
        })?;
    let channel = interpreter.channel.clone();
    channel.tell(Kind::Load, &load);
    let leader = interpreter.process.leader();
    let started = &mut interpreter.started;
    let first_word = async {
        tokio::select! {
            word = &mut *started => word.ok(),
            // Its word and its end may come together.
            _ = channel.run_with(&mut interpreter.process) => started.try_recv().ok(),
        }
    };
    let limit = settings.start_timeout;
    let hint = async {
        tokio::time::sleep(HINT_AFTER).await;
        if let Some(own_server) = own_server(leader) {
            tracing::warn!("{name}: the program is not ready so far{own_server}");
        }
        std::future::pending::<Infallible>().await
    };
    let first_word = tokio::select! {
        word = tokio::time::timeout(limit, first_word) => word,
        never = hint => match never {},
    };
    match first_word {
        Ok(Some(Ok(found))) => {
            let found: Found = serde_json::from_slice(&found).unwrap_or_default();
            if found.websockets {
                channel.take_websockets(settings.body_limit);
            }
            let start = start_of(&interpreter, &found.marks, &**language);
            Ok(Launched {
                interpreter,
                found,
                start,
            })
        }
        Ok(Some(Err(fault))) => {
            // It has said why, and ends by itself; its last output is worth a moment.
            let _ = tokio::time::timeout(LAST_BREATH, interpreter.process.ended()).await;
            let mut error = StartError::new(format!("{name}: {}", fault.message));
            error.traceback = match fault.traceback {
                None => Some(interpreter.process.last_words().await).filter(|words| !words.is_empty()),
                account => account,
            };
            Err(error)
        }
        Ok(None) => {
            let how = last_breath(&mut interpreter.process).await;
            let words = interpreter.process.last_words().await;
            let language = language.name();
            Err(StartError::new(format!(
                "{name}: the {language} worker {how} before its program was ready"
            ))
            .with_traceback(words))
        }
        Err(_) => {
            let words = interpreter.process.tail().text();
            let own_server = own_server(leader).unwrap_or_default();
            let _ = interpreter.process.stop(Duration::ZERO).await;
            let seconds = limit.as_secs_f64();
            let message = format!("{name}: the program was not ready within {seconds} s{own_server}");
            Err(StartError::new(message).with_traceback(words))
        }
    }
}

/// What to say of a program that listens instead of getting ready: one that serves HTTP itself never does.
fn own_server(leader: Pid) -> Option<String> {
    let held = listen::held_by(leader).ok()?;
    let address = held.first()?.address;
    Some(format!(
        ": it listens on {address}. If it serves HTTP there itself, it is an executable: begin it with #! and its \
         interpreter, and say `engine = \"executable\"` in a polyinit.toml beside it"
    ))
}

fn start_of(interpreter: &Interpreter, marks: &[u64], language: &dyn Language) -> Start {
    let (began, spawned) = interpreter.spawned;
    let mut parts = vec![("spawn", spawned.saturating_sub(began))];
    if let Ok([first_line, waiting, told, imported, ready]) = <[u64; 5]>::try_from(marks) {
        let [first_line, waiting, told, imported, ready] =
            [first_line, waiting, told, imported, ready].map(Duration::from_micros);
        parts.extend([
            ("interpreter", first_line.saturating_sub(spawned)),
            ("imports", waiting.saturating_sub(first_line)),
            ("app import", imported.saturating_sub(told)),
            (language.last_part(), ready.saturating_sub(imported)),
        ]);
    }
    Start {
        ahead: interpreter.ahead,
        parts,
    }
}

/// How a worker ended whose channel is closed; one that lingers is killed.
pub async fn last_breath(process: &mut Process) -> String {
    match tokio::time::timeout(LAST_BREATH, process.ended()).await {
        Ok(Ok(exit)) => exit.to_string(),
        Ok(Err(error)) => format!("is gone ({error})"),
        Err(_) => {
            let _ = process.stop(Duration::ZERO).await;
            "closed its channel and was killed".to_owned()
        }
    }
}
