//! The life of a guest, top to bottom: set up, ready, configure, serve, halt.
//!
//! As PID 1 of a machine ([`run`]) it sets the machine up, listens on vsock port 52 and ends with a restart. As a
//! command (`polyinit guest`) it does the same for the host's protocol, but in a folder of its own, behind a Unix
//! socket that speaks as the VMM does: for tests, and for those who write hosts.

mod data;
mod guest;
pub mod image_environment;
mod keeper;
mod place;
mod shell;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

use crate::engine::Settings;
use crate::guest_api::{self, Bridge};
use crate::intake::aleph::{Intake, Limits, Listener};
use crate::machine::{self, console, power, reaper, root};
use crate::report;
use crate::wire;
use guest::Guest;
use place::Place;

/// How long the host may take to accept the ready signal.
const READY_PATIENCE: Duration = Duration::from_secs(5);

/// How long disks may take to be brought up to date at the end: what is left of the host's 5 s.
const RESTART_DEADLINE: Duration = Duration::from_millis(900);

/// How long the last lines of the log may take to reach the console.
const LAST_LINES: Duration = Duration::from_millis(200);

/// The life of PID 1. Comes to its end by restarting the machine.
pub fn run() -> ! {
    let machine = machine::prepare();
    let log = console::Bounded::new(io::stderr(), console::BACKLOG);
    match &log {
        Ok(log) => report::log::begin(log.clone(), "info"),
        Err(_) => report::log::begin(io::stderr(), "info"),
    }
    tell_of(&machine);
    let life = reaper::live(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let lived = runtime.block_on(live_in_machine());
        // A compiler that is still at work is not waited for.
        runtime.shutdown_background();
        lived
    });
    let message = match life {
        Ok(Ok(Ok(()))) => None,
        Ok(Ok(Err(error))) => Some(error.to_string()),
        Ok(Err(_panic)) => Some("init panicked".to_owned()),
        Err(error) => Some(error.to_string()),
    };
    if let Ok(log) = &log {
        log.drain(LAST_LINES);
    }
    match message {
        None => power::restart(RESTART_DEADLINE, 0),
        Some(message) => power::fail(&message),
    }
}

fn tell_of(machine: &machine::Prepared) {
    match &machine.root {
        Ok(root::Root::Writable | root::Root::Overlay) => {}
        Ok(root::Root::Patched { writable, why }) => {
            tracing::warn!("the kernel has no overlay ({why}); of the root only {writable:?} can be written to");
        }
        Err(error) => tracing::warn!("{error}"),
    }
    for skipped in &machine.skipped {
        tracing::debug!("{skipped}");
    }
}

async fn live_in_machine() -> io::Result<()> {
    if let Err(error) = machine::network::loopback_up() {
        tracing::warn!("{error}");
    }
    if machine::power::is_machines_init() {
        keeper::keep_programs(None);
    }
    let settings = Settings {
        cache: Some(PathBuf::from("/var/cache/polyinit")),
        packages: vec![PathBuf::from("/opt/packages")],
        ..Settings::default()
    };
    let bridge = Arc::new(Bridge::new(guest_api::connect_to_host));
    for path in ["/run/polyinit/api.sock", "/tmp/socat-socket"] {
        match guest_api::bind(path.as_ref()) {
            Ok(listener) => drop(tokio::spawn({
                let bridge = bridge.clone();
                async move { bridge.serve(listener).await }
            })),
            Err(error) => tracing::warn!("{error}"),
        }
    }
    let address = VsockAddr::new(VMADDR_CID_ANY, wire::PORT);
    let listener = VsockListener::bind(address)
        .map_err(|error| io::Error::other(format!("can't listen on vsock port {}: {error}", wire::PORT)))?;
    let ready = async {
        let mut stream = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, wire::PORT)).await?;
        say_ready(&mut stream).await
    };
    let mut limits = Limits::default();
    let command_line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    match event_limit(&command_line) {
        Ok(Some(limit)) => limits.event = limit,
        Ok(None) => {}
        Err(word) => tracing::warn!("{word} on the kernel's command line is no number of bytes: not used"),
    }
    live(Listener::Vsock(listener), ready, Place::Machine, settings, limits).await
}

/// The largest event and reply, in bytes, by the word `polyinit.event_limit=BYTES` on the kernel's command line.
fn event_limit(command_line: &str) -> Result<Option<usize>, &str> {
    let mut words = command_line.split_ascii_whitespace();
    let Some(word) = words.rfind(|word| word.starts_with("polyinit.event_limit=")) else {
        return Ok(None);
    };
    match word.rsplit('=').next().and_then(|bytes| bytes.parse().ok()) {
        Some(bytes @ 1..) => Ok(Some(bytes)),
        _ => Err(word),
    }
}

/// The options of a guest without a machine.
pub struct Options {
    /// The Unix socket to listen on. The host's own sockets are named after it: `<socket>_52`, `<socket>_53`.
    pub socket: PathBuf,
    /// Files that stand for block devices: `vdb` and what is on it.
    pub devices: Vec<(String, PathBuf)>,
    pub limits: Limits,
}

/// The life of a guest without a machine, in a folder that goes with it.
///
/// # Errors
/// Where the socket can't be listened on, or there is no place for the folder.
pub async fn live_in_folder(options: Options) -> io::Result<()> {
    let folder = tempfile::Builder::new().prefix("polyinit-").tempdir()?;
    let place = Place::Folder {
        root: folder.path().to_owned(),
        devices: options.devices,
    };
    let settings = Settings {
        cache: crate::cli::cache_directory(),
        packages: vec![folder.path().join("opt/packages")],
        ..Settings::default()
    };
    let beside = |port: u32| {
        let mut path = options.socket.clone().into_os_string();
        path.push(format!("_{port}"));
        PathBuf::from(path)
    };
    let (ready_socket, api_socket) = (beside(wire::PORT), beside(wire::GUEST_API_PORT));
    let bridge = Bridge::new(move || UnixStream::connect(api_socket.clone()));
    let api = guest_api::bind(&place.api_socket()).map_err(io::Error::other)?;
    tokio::spawn(async move { bridge.serve(api).await });
    if UnixStream::connect(&options.socket).await.is_ok() {
        return Err(io::Error::other(format!("{} is in use", options.socket.display())));
    }
    let _ = std::fs::remove_file(&options.socket);
    let listener = UnixListener::bind(&options.socket)
        .map_err(|error| io::Error::other(format!("can't listen on {}: {error}", options.socket.display())))?;
    let listener = Listener::Unix {
        listener,
        port: wire::PORT,
    };
    let ready = async {
        match UnixStream::connect(&ready_socket).await {
            Ok(mut stream) => say_ready(&mut stream).await,
            // Nobody has to wait for us.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    };
    let lived = live(listener, ready, place, settings, options.limits).await;
    let _ = std::fs::remove_file(&options.socket);
    lived
}

/// Ready, configure, serve, halt: what a guest does wherever it is.
async fn live(
    listener: Listener,
    ready: impl Future<Output = io::Result<()>>,
    place: Place,
    settings: Settings,
    limits: Limits,
) -> io::Result<()> {
    let intake = Intake::new(Guest::new(place, settings.clone()), limits);
    let serving = tokio::spawn(intake.clone().serve(listener));
    match tokio::time::timeout(READY_PATIENCE, ready).await {
        Ok(Ok(())) => report::stage("ready"),
        Ok(Err(error)) => tracing::warn!("the host was not told that we are ready: {error}"),
        Err(_) => tracing::warn!(
            "the host did not take the ready signal within {} s",
            READY_PATIENCE.as_secs()
        ),
    }
    crate::engine::warm_up(&settings);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = serving => {}
        _ = terminate.recv() => intake.halt().await,
        _ = interrupt.recv() => intake.halt().await,
    }
    report::stage("halted");
    Ok(())
}

async fn say_ready(stream: &mut (impl tokio::io::AsyncWrite + Unpin)) -> io::Result<()> {
    use tokio::io::AsyncWriteExt;
    stream.write_all(&wire::ready_signal()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::event_limit;

    #[test]
    fn the_event_limit_is_on_the_kernels_command_line() {
        assert_eq!(event_limit("console=ttyS0 ro"), Ok(None));
        assert_eq!(event_limit("ro polyinit.event_limit=1000\n"), Ok(Some(1000)));
        assert_eq!(
            event_limit("polyinit.event_limit=1 polyinit.event_limit=2"),
            Ok(Some(2))
        );
        for word in [
            "polyinit.event_limit=",
            "polyinit.event_limit=0",
            "polyinit.event_limit=16M",
        ] {
            assert_eq!(event_limit(word), Err(word));
        }
    }
}
