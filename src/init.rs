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
mod services;
mod shell;
mod ssh;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

use crate::engine::Settings;
use crate::guest_api::{self, Bridge};
use crate::intake::Handler;
use crate::intake::aleph::{Intake, Limits, Listener};
use crate::intake::http::{self, Around, Served, access_log};
use crate::machine::clock::Resumed;
use crate::machine::options::Options as MachineOptions;
use crate::machine::{self, console, power, reaper, root};
use crate::open_files;
use crate::program::manifest::AccessLog;
use crate::report;
use crate::wire;
use guest::Guest;
use place::Place;
use services::Services;

/// How long the host may take to accept the ready signal.
const READY_PATIENCE: Duration = Duration::from_secs(5);

/// How long syncing disks may take at the end: what is left of the host's 5 s.
const RESTART_DEADLINE: Duration = Duration::from_millis(900);

/// What services have between SIGTERM and SIGKILL, at halt.
const SERVICE_GRACE: Duration = Duration::from_millis(500);

/// How long the last lines of the log may take to reach the console.
const LAST_LINES: Duration = Duration::from_millis(200);

/// The life of PID 1. Comes to its end by restarting the machine.
pub fn run() -> ! {
    // A panic of this thread, which becomes the reaper, would make the kernel panic, too.
    let Err(_panic) = std::panic::catch_unwind(run_to_end);
    power::fail("init panicked")
}

fn run_to_end() -> Infallible {
    let machine = machine::prepare();
    open_files::take_all(Some(open_files::OF_A_MACHINE));
    let log = console::Bounded::new(io::stderr(), console::BACKLOG);
    let level = machine.options.log.as_deref().unwrap_or("info");
    match &log {
        Ok(log) => report::log::begin(log.clone(), level),
        Err(_) => report::log::begin(io::stderr(), level),
    }
    tell_of(&machine);
    let options = machine.options;
    follow(&options);
    let life = reaper::live(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let lived = runtime.block_on(live_in_machine(options));
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

/// Logs what was found at boot, when there was no log yet.
fn tell_of(machine: &machine::Prepared) {
    for mistake in &machine.mistakes {
        tracing::warn!("{mistake}");
    }
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

/// Does what the options ask of the kernel, before anything runs.
fn follow(options: &MachineOptions) {
    let modules: Vec<&str> = options.modules.iter().map(String::as_str).collect();
    for error in machine::modules::load(&modules) {
        tracing::warn!("{error}");
    }
    for error in machine::sysctl::set_all(&options.sysctl) {
        tracing::warn!("{error}");
    }
    if machine::power::is_machines_init() {
        keeper::keep_programs(options.reserve);
    }
}

async fn live_in_machine(options: MachineOptions) -> io::Result<()> {
    if let Err(error) = machine::network::loopback_up() {
        tracing::warn!("{error}");
    }
    let settings = Settings {
        cache: Some(PathBuf::from("/var/cache/polyinit")),
        packages: vec![PathBuf::from("/opt/packages")],
        ..Settings::default()
    };
    start_beside(&options);
    let services = Services::default();
    for (name, command) in &options.services {
        services.start(name, command.clone(), &settings, SERVICE_GRACE);
    }
    let port = options.vsock_port.unwrap_or(wire::PORT);
    let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))
        .map_err(|error| io::Error::other(format!("can't listen on vsock port {port}: {error}")))?;
    let ready = async {
        let mut stream = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, wire::PORT)).await?;
        say_ready(&mut stream).await
    };
    let place = Place::Machine {
        services,
        mtu: options.mtu,
    };
    let mut limits = Limits::default();
    limits.event = options.event_limit.unwrap_or(limits.event);
    let guest = Guest::new(place, settings.clone()).with_shell(options.shell);
    live(
        Listener::Vsock(listener),
        ready,
        guest,
        limits,
        options.http,
        &settings,
        Asked::listen(None)?,
    )
    .await
}

/// Starts what is there beside the program and the host's intake: the guest API, and a shell where the options ask for one;
/// and looks after the clock.
fn start_beside(options: &MachineOptions) {
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
    if let Some(terminal) = options.login.clone() {
        tokio::spawn(async move {
            if let Err(error) = machine::login::keep_shell(&terminal).await {
                tracing::warn!("{error}");
            }
        });
    }
    tokio::spawn(async {
        if let Err(error) = machine::clock::look_after(resumed).await {
            tracing::debug!("{error}");
        }
    });
}

/// Serves the program over HTTP as well, for as long as the machine lives. The middleware that its manifest asks for begins
/// once there is a program.
async fn serve_http(address: SocketAddr, handler: Handler, around: Around) {
    let served = async {
        let listener = tokio::net::TcpListener::bind(address).await?;
        tracing::info!("requests are taken on http://{}, too", listener.local_addr()?);
        let options = http::Options {
            observer: Box::new(|served| tell(&served)),
            reveal: false,
            around,
            grace: Duration::ZERO,
        };
        http::serve(listener, handler, options, CancellationToken::new()).await
    };
    if let Err(error) = served.await {
        tracing::warn!("no HTTP on {address}: {error}");
    }
}

/// Logs a request that came over HTTP. Consoles are slow, so there is a line only where one is asked for.
fn tell(served: &Served<'_>) {
    // Anybody can ask for what isn't there, and as often as they like.
    if served.status.is_server_error() {
        access_log::explain(served);
    }
    let form = served.access_log.unwrap_or(AccessLog::Off);
    if let Some(line) = access_log::line(served, form, false) {
        tracing::info!("{line}");
    }
}

/// After a pause: logs it, and sends every program SIGCONT, as if it had been stopped itself (signal(7)). That does no
/// harm, and a program that must know, for its timers or its random numbers, can listen for it.
fn resumed(resumed: Resumed) {
    let what = match resumed.is_copy {
        true => "the machine was resumed from a snapshot",
        false => "the machine had been stopped",
    };
    match resumed.behind {
        0.0 => tracing::info!("{what}"),
        seconds => tracing::info!("{what}: its clock was {seconds:.0} s behind, and is right again"),
    }
    machine::cgroup::signal_programs(Signal::SIGCONT);
}

/// The options of a guest without a machine.
pub struct Options {
    /// The Unix socket to listen on. The host's own sockets are named after it: `<socket>_52`, `<socket>_53`.
    pub socket: PathBuf,
    /// Files that stand for block devices: `vdb` and what is on it.
    pub devices: Vec<(String, PathBuf)>,
    /// Where the program is served by HTTP as well.
    pub http: Vec<SocketAddr>,
    pub limits: Limits,
    /// Whether the host may run commands (`!`).
    pub shell: bool,
}

/// The life of a guest without a machine, in a folder that goes with it.
///
/// # Errors
/// Where the socket can't be listened on, or there is no place for the folder.
pub async fn live_in_folder(options: Options) -> io::Result<()> {
    // Before there is something to remove.
    let asked = Asked::listen(crate::cli::hangup()?)?;
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
    let guest = Guest::new(place, settings.clone()).with_shell(options.shell);
    let lived = live(listener, ready, guest, options.limits, options.http, &settings, asked).await;
    let _ = std::fs::remove_file(&options.socket);
    lived
}

/// The signals that ask a guest to end.
struct Asked {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    /// The power is failing, or a container's manager wants it off.
    power: tokio::signal::unix::Signal,
    /// Its terminal is gone, where it has one.
    hangup: Option<tokio::signal::unix::Signal>,
}

impl Asked {
    fn listen(hangup: Option<tokio::signal::unix::Signal>) -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            power: signal(SignalKind::from_raw(Signal::SIGPWR as i32))?,
            hangup,
        })
    }
}

/// Ready, configure, serve, halt: what a guest does wherever it is. Its program is served at the addresses in `http`, too.
/// It ends when it is `asked` to as well.
async fn live(
    listener: Listener,
    ready: impl Future<Output = io::Result<()>>,
    guest: Guest,
    limits: Limits,
    http: Vec<SocketAddr>,
    settings: &Settings,
    mut asked: Asked,
) -> io::Result<()> {
    let around = guest.around();
    let intake = Intake::new(guest, limits, around.clone());
    for address in http {
        tokio::spawn(serve_http(address, intake.handler(), around.clone()));
    }
    let serving = tokio::spawn(intake.clone().serve(listener));
    match tokio::time::timeout(READY_PATIENCE, ready).await {
        Ok(Ok(())) => report::stage("ready"),
        Ok(Err(error)) => tracing::warn!("the host was not told that we are ready: {error}"),
        Err(_) => tracing::warn!(
            "the host did not take the ready signal within {} s",
            READY_PATIENCE.as_secs()
        ),
    }
    crate::engine::warm_up(settings);
    tokio::select! {
        _ = serving => {}
        _ = asked.terminate.recv() => intake.halt().await,
        _ = asked.interrupt.recv() => intake.halt().await,
        _ = asked.power.recv() => intake.halt().await,
        Some(()) = async { asked.hangup.as_mut()?.recv().await } => intake.halt().await,
    }
    report::stage("halted");
    Ok(())
}

async fn say_ready(stream: &mut (impl tokio::io::AsyncWrite + Unpin)) -> io::Result<()> {
    use tokio::io::AsyncWriteExt;
    stream.write_all(&wire::ready_signal()).await?;
    stream.shutdown().await
}
