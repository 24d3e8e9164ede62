//! `polyinit serve`: runs a program on this machine and offers it over HTTP.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::start::{ProgramArguments, described, start};
use super::{CommandError, say};
use crate::intake::Handler;
use crate::intake::http::{self, Served};
use crate::report;
use crate::router::Router;

/// How long requests under way, and then the program, may take to end.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// Run a program on this machine and offer it over HTTP/1.1 and HTTP/2 (h2c).
///
/// PATH is a file, a folder, a zip or a squashfs. What runs it is told from the program itself: a `.py` file or a
/// module is Python (ASGI), `.js` or a package.json is Node, ELF and #! are executables that serve HTTP on $PORT or
/// 8080, and `.wasm` is WebAssembly. A polyinit.toml beside the code says so where guessing would not do.
#[derive(Args)]
#[command(after_help = "\
Examples:
  polyinit serve main.py
  polyinit serve ./app --entrypoint shop.web:application --listen 127.0.0.1:3000
  polyinit serve hello.wasm --env GREETING=hello

Details of failures are shown to clients where --listen is a loopback address, and to the log everywhere.")]
pub struct Serve {
    #[command(flatten)]
    program: ProgramArguments,

    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    /// No line for each request
    #[arg(short, long)]
    quiet: bool,
}

impl Serve {
    pub async fn run(self) -> Result<(), CommandError> {
        report::log::begin(io::stderr(), "info");
        let mut stop = Stop::listen()?;
        // The port first: finding it taken after a program's long start would be a pity.
        let listener = http::bind(self.listen).await?;
        let address = listener.local_addr()?;
        let opened = self.program.open()?;
        let running = tokio::select! {
            running = start(opened.program.components.clone(), &opened.settings, |running| say(&described(running))) => running?,
            () = stop.asked() => return Ok(()),
        };
        let router = Arc::new(Router::new(running));
        say(&format!("serving on http://{address}"));
        self.serve(listener, &router, &mut stop).await?;
        router.stop(GRACE).await;
        Ok(())
    }

    async fn serve(&self, listener: tokio::net::TcpListener, router: &Arc<Router>, stop: &mut Stop) -> io::Result<()> {
        let shutdown = CancellationToken::new();
        let handler: Handler = {
            let router = router.clone();
            Arc::new(move |event| router.handle(event))
        };
        let quiet = self.quiet;
        let options = http::Options {
            observer: Box::new(move |served| tell(&served, quiet)),
            reveal: self.listen.ip().is_loopback(),
            grace: GRACE,
        };
        let serving = http::serve(listener, handler, options, shutdown.clone());
        tokio::pin!(serving);
        tokio::select! {
            served = &mut serving => return served,
            () = stop.asked() => {}
        }
        shutdown.cancel();
        // Whoever asks twice does not want to wait for the requests under way.
        tokio::select! {
            served = serving => served,
            () = stop.asked() => Ok(()),
        }
    }
}

pub(super) fn tell(served: &Served<'_>, quiet: bool) {
    if let Some(failure) = served.failure {
        tracing::warn!("{} {}: {failure}", served.method, served.path);
        if let Some(traceback) = &failure.traceback {
            tracing::warn!("{}", traceback.trim_end());
        }
    }
    if quiet {
        return;
    }
    let status = served.status.as_u16();
    let (on, off) = match status {
        _ if !io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some() => ("", ""),
        500.. => ("\x1b[31m", "\x1b[0m"),
        400.. => ("\x1b[33m", "\x1b[0m"),
        _ => ("\x1b[32m", "\x1b[0m"),
    };
    let milliseconds = served.time.as_secs_f64() * 1e3;
    say(&format!(
        "{on}{status}{off} {} {} {milliseconds:.1} ms",
        served.method, served.path
    ));
}

/// Ctrl-C and SIGTERM.
pub(super) struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    pub(super) async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
