//! The command line: one file a command.

mod build;
mod check;
mod compile;
mod guest;
#[cfg(feature = "image")]
mod image;
mod inspect;
mod invoke;
mod live;
mod new;
mod routes;
mod sandbox;
mod serve;
mod start;
mod turn;
#[cfg(feature = "host")]
mod vm;
mod watch;
mod workspace;

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{Parser, Subcommand};

use crate::engine::{process, processors};
use crate::intake::http::{Served, access_log};
use crate::machine::reaper;
use crate::open_files;
use crate::program::manifest::{self, AccessLog};
use crate::report::log::visible;
pub use serve::hangup;

/// Gives each event (an HTTP request, a network message) to what runs it: Python, Node, any executable that serves
/// HTTP, or WebAssembly. PID 1 of microVMs and containers, and a command for developers.
#[derive(Parser)]
#[command(name = "polyinit", version, max_term_width = 100, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  polyinit serve main.py                  run a Python program on http://127.0.0.1:8080
  polyinit serve hello.wasm               run a WebAssembly component or module
  polyinit serve ./my-app --listen [::]:80
  polyinit new fastapi my-app             make a program to begin with
  polyinit invoke ./my-app --path /hello  give it one request and show the reply
  polyinit check ./my-app                 tell what is wrong with its polyinit.toml

polyinit COMMAND --help says more.";

#[derive(Subcommand)]
enum Command {
    Serve(serve::Serve),
    New(new::New),
    Build(build::BuildCommand),
    Invoke(invoke::Invoke),
    Check(check::Check),
    Inspect(inspect::Inspect),
    Routes(routes::Routes),
    Compile(compile::Compile),
    Guest(guest::Guest),
    #[cfg(feature = "host")]
    Vm(vm::Machine),
    #[cfg(feature = "image")]
    Image(image::Image),
}

/// Does what the command line says. The exit code is 0 if all went well, 1 if it did not, 2 if the command line was not
/// understood; `invoke` has more.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    open_files::take_all(None);
    if std::process::id() != 1 {
        return execute(arguments);
    }
    // A container's PID 1 is given its orphans, and nobody else reaps them.
    match reaper::live(|| execute(arguments)) {
        Ok(Ok(code)) => code,
        Ok(Err(_panic)) => fail("polyinit panicked, as said above"),
        Err(error) => fail(&error.to_string()),
    }
}

fn execute(arguments: Arguments) -> ExitCode {
    let all = processors();
    match arguments.command {
        Command::Serve(serve) => match serve.ready() {
            Ok(ready) => run_on(ready.threads(), ready.run()),
            Err(error) => exit_code(Err(error)),
        },
        Command::New(new) => run_on(all, new.run()),
        Command::Build(build) => run_on(all, build.run()),
        Command::Invoke(invoke) => run_on(all, invoke.run()),
        Command::Inspect(inspect) => run_on(all, inspect.run()),
        Command::Check(check) => run_on(all, check.run()),
        Command::Routes(routes) => run_on(all, routes.run()),
        Command::Compile(compile) => run_on(all, compile.run()),
        Command::Guest(guest) => run_on(all, guest.run()),
        #[cfg(feature = "host")]
        Command::Vm(machine) => run_on(all, machine.run()),
        #[cfg(feature = "image")]
        Command::Image(image) => run_on(all, image.run()),
    }
}

/// Does what `command` does, on so many threads.
fn run_on(threads: usize, command: impl Future<Output = Result<(), CommandError>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("the runtime can't be started: {error}")),
    };
    let outcome = runtime.block_on(command);
    // A compiler that is still at work is not waited for.
    runtime.shutdown_background();
    process::end_all();
    exit_code(outcome)
}

fn exit_code(outcome: Result<(), CommandError>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast::<Ended>() {
            Ok(ended) => ExitCode::from(ended.0),
            Err(error) => fail(&error.to_string()),
        },
    }
}

/// Why a command failed: the sentence that its user sees.
type CommandError = Box<dyn std::error::Error + Send + Sync>;

/// The exit code of a command that did not succeed, and has said so itself.
#[derive(Debug, thiserror::Error)]
#[error("it did not succeed, as said above")]
struct Ended(u8);

/// Prints one line for people, at once. That nobody reads it is no reason to end.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// As [`say`], on standard error, where the log goes.
fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", visible(text));
}

/// Prints the line of a request that was served.
fn tell(served: &Served<'_>, form: AccessLog) {
    static COLOURED: LazyLock<bool> =
        LazyLock::new(|| io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    access_log::explain(served);
    if let Some(line) = access_log::line(served, form, *COLOURED) {
        say(&line);
    }
}

fn fail(message: &str) -> ExitCode {
    note(&format!("error: {message}"));
    ExitCode::FAILURE
}

/// Where compiled Wasm and other things that can be made again are kept: `$XDG_CACHE_HOME/polyinit`, or
/// `~/.cache/polyinit` (XDG Base Directory Specification).
pub fn cache_directory() -> Option<PathBuf> {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let base = variable("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    Some(
        base.or_else(|| Some(variable("HOME")?.join(".cache")))?
            .join("polyinit"),
    )
}

/// `ADDRESS:PORT`, where something listens.
fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "must be an IP address and a port, such as 127.0.0.1:8080 or [::]:8080".to_owned())
}

/// A program's path, where its polyinit.toml stands for the folder that it is in.
fn program_path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().map(|path| match path.parent() {
        Some(folder) if path.ends_with(manifest::NAME) && folder.as_os_str().is_empty() => ".".into(),
        Some(folder) if path.ends_with(manifest::NAME) => folder.to_owned(),
        _ => path,
    })
}

/// `NAME=VALUE`, as environments have it.
fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("must be NAME=VALUE".to_owned()),
    }
}
