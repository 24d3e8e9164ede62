//! `polyinit vm`: boots an image in a microVM, plays the host for it, and offers its program over HTTP.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use data_encoding::HEXLOWER;
use serde_bytes::ByteBuf;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::say;
use super::serve::{GRACE, Stop};
use super::{CommandError, address, assignment, tell};
use crate::host::gateway::{self, Limits, Output};
use crate::host::hardware::{Drive, Forward, Network};
use crate::host::kernel::Kernel;
use crate::host::link::Link;
use crate::host::pack::{self, Packed};
use crate::host::vm::{Attempt, Choice, End, Settings, Vm};
use crate::intake::http::{self, Around};
use crate::program::manifest::AccessLog;
use crate::program::{self, EngineKind, Hint, ProgramError};
use crate::report;
use crate::wire::{Configuration, ConfigurationAnswer, Encoding, Volume};

/// Where QEMU's network has the guest, its gateway and its resolver (qemu(1), `-netdev user`).
const ADDRESS: &str = "10.0.2.15/24";
const GATEWAY: &str = "10.0.2.2";
const RESOLVER: &str = "10.0.2.3";

/// How long a VMM may take to be seen to have ended, after what it left behind was.
const END_GRACE: Duration = Duration::from_millis(100);

/// In MiB: with less, a distribution's kernel leaves too little for an interpreter.
const SMALL_MEMORY: u32 = 128;

/// Where hosts mount a program that is a drive.
const CODE_MOUNT: &str = "/opt/code";

/// Boot an image in a microVM, play the host's part of the aleph.im protocol for it, and offer its program over HTTP.
///
/// The machine is Firecracker's or Cloud Hypervisor's if one is installed and KVM boots a kernel, else QEMU's, emulated if
/// need be. The kernel is that of --kernel, of $POLYINIT_KERNEL, or one that was fetched to ~/.cache/polyinit/vm
/// (`tests/host/get-vm ~/.cache/polyinit/vm`). A program of up to 10 MB is sent as a zip, a larger one becomes a drive on
/// /opt/code, as on the network's hosts.
#[derive(Args)]
#[command(after_help = "\
Examples:
  polyinit vm debian-12.squashfs --program ./app --entrypoint main:app
  polyinit vm wasm.squashfs --program hello.wasm --memory 256
  polyinit vm debian-12.squashfs --program ./app --volume ./site:/srv/site --env DEBUG=1 -v
  polyinit vm debian-12.squashfs --net --forward 2222:22 --authorized-keys ~/.ssh/id_ed25519.pub

Requests reach the program as the network's hosts hand them over: the path decoded, the body whole. Replies lose their \
content-encoding, transfer-encoding and vary. What is sent with POST to /_polyinit/message becomes a network message:
  curl --data '{\"item_hash\": \"...\"}' http://127.0.0.1:8080/_polyinit/message

Ctrl-C halts the machine; a second one kills it.")]
pub struct Machine {
    /// The root file system, as `polyinit image build` makes it: a squashfs, an erofs, an ext4, or an initramfs (cpio)
    image: PathBuf,

    /// The program: a file, a folder, a zip or a squashfs [default: the image's own]
    #[arg(long, visible_alias = "code", value_name = "PATH")]
    program: Option<PathBuf>,

    /// Data for the program, which it finds in /data: a file, a folder, or a zip of them
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,

    /// A folder for what the program leaves in /data, brought up to date after each event that changes it. What the program
    /// removes there stays here; links, and what is on volumes, are left out
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,

    /// Where the program begins: module:attribute, or a file in it
    #[arg(long, value_name = "ENTRYPOINT", requires = "program")]
    entrypoint: Option<String>,

    /// What the host says that the program is
    #[arg(long, value_enum, default_value_t = Interface::Auto)]
    interface: Interface,

    /// A variable for the program's environment; may be repeated
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = assignment)]
    environment: Vec<(String, String)>,

    /// A file system (a file) or a folder for the machine, read-only unless `:rw` follows; may be repeated
    #[arg(long = "volume", value_name = "PATH:MOUNT[:rw]", value_parser = volume)]
    volumes: Vec<VolumeArgument>,

    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080", value_parser = address)]
    listen: SocketAddr,

    /// The longest that the program may take for one request, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,

    /// The machine's memory
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(64..=1_048_576))]
    memory: u32,

    /// The machine's processors
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=32))]
    cpus: u32,

    /// The kernel: a vmlinux or, for QEMU, a bzImage; its modules are looked for in `modules` beside it
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,

    /// What runs the machine
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    vmm: Choice,

    /// What eth0 leads to; `--net` alone means isolated
    #[arg(long, value_enum, default_value_t = Network::None, num_args = 0..=1, default_missing_value = "isolated", require_equals = true)]
    net: Network,

    /// A TCP port of this host, on 127.0.0.1, that leads to one of the machine's eth0; may be repeated
    #[arg(long = "forward", value_name = "PORT:PORT", value_parser = forward, requires = "net")]
    forwards: Vec<Forward>,

    /// The SSH keys that may log in as root: a file such as ~/.ssh/id_ed25519.pub
    #[arg(long, value_name = "FILE")]
    authorized_keys: Option<PathBuf>,

    /// More words for the kernel's command line, such as polyinit.log=debug
    #[arg(long, value_name = "WORDS", default_value = "", hide_default_value = true)]
    append: String,

    /// The Unix socket of a guest API on this host, for the guest's connections to it
    #[arg(long, value_name = "SOCKET")]
    guest_api: Option<PathBuf>,

    /// Show the machine's console
    #[arg(short, long)]
    verbose: bool,

    /// Print no line for each request
    #[arg(short, long)]
    quiet: bool,
}

/// What hosts can call a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Interface {
    /// asgi for Python, else executable
    Auto,
    Asgi,
    Executable,
}

#[derive(Debug, Clone)]
struct VolumeArgument {
    path: PathBuf,
    mount: String,
    read_only: bool,
}

impl Machine {
    pub async fn run(self) -> Result<(), CommandError> {
        report::log::begin(io::stderr(), if self.verbose { "info" } else { "info,program=off" });
        let mut stop = Stop::listen()?;
        // What can be told at once, before a machine is started for nothing.
        let listener = TcpListener::from_std(http::bind(self.listen)?)?;
        let kernel = Kernel::find(self.kernel.as_deref())?;
        let workspace = tempfile::Builder::new().prefix("polyinit-").tempdir()?;
        let (drives, configuration) = self.bring(workspace.path())?;
        let settings = Settings {
            image: self.image.clone(),
            kernel,
            memory: self.memory,
            processors: self.cpus,
            drives,
            network: self.net,
            forwards: self.forwards.clone(),
            append: self.append.clone(),
            choice: self.vmm,
            guest_api: self.guest_api.clone(),
        };
        let mut vm = tokio::select! {
            vm = Vm::boot(&settings, tell_attempt) => vm?,
            () = stop.asked() => return Ok(()),
        };
        say(&format!("ready after {}", milliseconds(vm.ready_after)));
        let link = vm.link().clone();
        let served = tokio::select! {
            served = self.serve(link, &configuration, listener, &mut stop) => served,
            words = vm.ended() => return Err(format!("the machine ended by itself: {words}").into()),
        };
        // A link that breaks may be the first sign of a machine that has ended.
        if let Err(error) = &served
            && let Ok(words) = tokio::time::timeout(END_GRACE, vm.ended()).await
        {
            return Err(format!("{error}; the machine ended by itself: {words}").into());
        }
        tokio::select! {
            end = vm.halt() => if end == End::Halted { say("halted") },
            () = stop.asked() => {}
        }
        served
    }

    async fn serve(
        &self,
        link: Link,
        configuration: &Configuration,
        listener: TcpListener,
        stop: &mut Stop,
    ) -> Result<(), CommandError> {
        let began = Instant::now();
        let answer = tokio::select! {
            answer = link.configure(configuration) => answer?,
            () = stop.asked() => return Ok(()),
        };
        if let ConfigurationAnswer::Failure { error, traceback } = answer {
            let traceback = traceback.trim_end();
            let account = if traceback.is_empty() || traceback == error {
                String::new()
            } else {
                format!("\n{traceback}")
            };
            let advice = self.advice();
            return Err(format!("the program was not started: {error}{account}{advice}").into());
        }
        say(&format!("configured after {}", milliseconds(began.elapsed())));
        say(&format!("serving on http://{}", listener.local_addr()?));
        let limits = Limits {
            event: Duration::from_secs(self.timeout),
            ..Limits::default()
        };
        let form = if self.quiet { AccessLog::Off } else { AccessLog::Text };
        let options = http::Options {
            observer: Box::new(move |served| tell(&served, form)),
            reveal: self.listen.ip().is_loopback(),
            // What a manifest asks for is done where its program is served: by `polyinit serve`.
            around: Around::default(),
            grace: GRACE,
        };
        let shutdown = CancellationToken::new();
        let handler = gateway::handler(link, limits, self.output.clone().map(Output::to));
        let serving = http::serve(listener, handler, options, shutdown.clone());
        tokio::pin!(serving);
        tokio::select! {
            served = &mut serving => return Ok(served?),
            () = stop.asked() => {}
        }
        shutdown.cancel();
        tokio::select! {
            served = serving => Ok(served?),
            () = stop.asked() => Ok(()),
        }
    }

    /// What may have been forgotten, where a program was not started.
    fn advice(&self) -> String {
        match (&self.program, self.memory) {
            (None, _) => "\nThe image's own program was looked for: --program PATH brings another".to_owned(),
            (_, memory @ ..SMALL_MEMORY) => {
                format!("\nThe machine has only {memory} MiB of memory: see --memory")
            }
            _ => String::new(),
        }
    }

    /// What the machine gets: its drives after the image's, and its configuration.
    fn bring(&self, workspace: &Path) -> Result<(Vec<Drive>, Configuration), CommandError> {
        let mut drives = Drives::default();
        let mut configuration = Configuration {
            // Without a program of the user's it is the image's, in the place where a drive's would be.
            interface: "executable".to_owned(),
            encoding: Encoding::Squashfs,
            variables: Some(self.environment.iter().cloned().collect::<BTreeMap<_, _>>()),
            ..Configuration::default()
        };
        let mut identity = Sha256::new();
        identity.update(self.image.as_os_str().as_encoded_bytes());
        if let Some(path) = &self.program {
            let packed = pack::program(path, workspace).map_err(|error| format!("--program: {error}"))?;
            identity.update(path.as_os_str().as_encoded_bytes());
            self.describe(path, &packed, workspace, &mut configuration)?;
            if let Some(drive) = packed.drive {
                drives.add(drive, CODE_MOUNT.to_owned(), true)?;
            }
            configuration.encoding = packed.encoding;
            configuration.code = Some(ByteBuf::from(packed.code));
        }
        for (number, volume) in self.volumes.iter().enumerate() {
            if volume.path.is_dir() && !volume.read_only {
                let path = volume.path.display();
                return Err(format!("--volume {path}: a folder can't be written to from a machine; pass the file of a formatted file system").into());
            }
            let packed = pack::volume(&volume.path, &workspace.join(format!("volume{number}.squashfs")));
            let drive = packed.map_err(|error| format!("--volume: {error}"))?;
            drives.add(drive, volume.mount.clone(), volume.read_only)?;
        }
        if let Some(path) = &self.data {
            configuration.input_data = Some(ByteBuf::from(
                pack::data(path).map_err(|error| format!("--data: {error}"))?,
            ));
        }
        if let Some(path) = &self.authorized_keys {
            configuration.authorized_keys = Some(keys_of(path)?);
        }
        if self.net != Network::None {
            configuration.ip = Some(ADDRESS.to_owned());
            configuration.route = Some(GATEWAY.to_owned());
            configuration.dns_servers = vec![RESOLVER.to_owned()];
        }
        configuration.vm_hash = HEXLOWER.encode(&identity.finalize());
        configuration.volumes = drives.volumes;
        Ok((drives.drives, configuration))
    }

    /// Entrypoint and interface: as the user says, else by a look at the program.
    fn describe(
        &self,
        path: &Path,
        packed: &Packed,
        workspace: &Path,
        configuration: &mut Configuration,
    ) -> Result<(), CommandError> {
        let entrypoint = match (&self.entrypoint, &packed.file_name) {
            // `--program main.py --entrypoint app` names the object in the file, as with `polyinit serve`.
            (Some(object), Some(file)) if file.ends_with(".py") && !object.contains(':') => {
                format!("{}:{object}", file.trim_end_matches(".py"))
            }
            (Some(entrypoint), _) => entrypoint.clone(),
            (None, Some(file)) => file.clone(),
            (None, None) => String::new(),
        };
        let asgi = match self.interface {
            Interface::Asgi => true,
            Interface::Executable => false,
            // The machine's Python may have modules that this host has not: what isn't found here may be there.
            Interface::Auto => {
                has_python(path, self.entrypoint.clone(), workspace).unwrap_or_else(|_| entrypoint.contains(':'))
            }
        };
        configuration.interface = if asgi { "asgi" } else { "executable" }.to_owned();
        configuration.entrypoint = entrypoint;
        Ok(())
    }
}

/// Drives as they get their names, /dev/vdb first.
#[derive(Default)]
struct Drives {
    drives: Vec<Drive>,
    volumes: Vec<Volume>,
}

impl Drives {
    fn add(&mut self, path: PathBuf, mount: String, read_only: bool) -> Result<(), CommandError> {
        let letter = ('b'..='z')
            .nth(self.drives.len())
            .ok_or("there are more volumes than a machine may have: 25")?;
        self.volumes.push(Volume {
            mount,
            device: format!("vd{letter}"),
            read_only,
        });
        self.drives.push(Drive { path, read_only });
        Ok(())
    }
}

fn tell_attempt(attempt: Attempt<'_>) {
    match attempt {
        Attempt::Booting(kind) => say(&format!("booting ({kind})")),
        // Its last words, which follow the first line, are for those who wanted this one; here the next one follows.
        Attempt::Failed(_, error) => say(error
            .to_string()
            .lines()
            .next()
            .unwrap_or_default()
            .trim_end_matches("; it said:")),
    }
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.0} ms", duration.as_secs_f64() * 1e3)
}

/// The keys of a file as ssh-keygen(1) and sshd(8) have them: one a line, between comments.
fn keys_of(path: &Path) -> Result<Vec<String>, CommandError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("--authorized-keys: can't read {}: {error}", path.display()))?;
    let lines = text.lines().map(str::trim);
    let keys: Vec<String> = lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    match keys.first() {
        None => Err(format!("{} holds no key", path.display()).into()),
        Some(key) if key.contains("PRIVATE KEY") => Err(format!(
            "{} is a private key, which stays where it is: pass the file beside it that ends in .pub",
            path.display()
        )
        .into()),
        Some(_) => Ok(keys),
    }
}

fn forward(text: &str) -> Result<Forward, String> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    match text.split_once(':').map(|(host, guest)| (port(host), port(guest))) {
        Some((Some(host), Some(guest))) => Ok(Forward { host, guest }),
        _ => Err("must be two ports, this host's and the machine's, such as 2222:22".to_owned()),
    }
}

fn volume(text: &str) -> Result<VolumeArgument, String> {
    let (text, read_only) = match text.strip_suffix(":rw") {
        Some(text) => (text, false),
        None => (text.strip_suffix(":ro").unwrap_or(text), true),
    };
    match text.rsplit_once(':') {
        Some((path, mount)) if !path.is_empty() && mount.starts_with('/') => Ok(VolumeArgument {
            path: path.into(),
            mount: mount.to_owned(),
            read_only,
        }),
        _ => Err("must be PATH:MOUNT or PATH:MOUNT:rw, where MOUNT is absolute in the machine".to_owned()),
    }
}

/// Whether anything of the program at `path` is Python's.
fn has_python(path: &Path, entrypoint: Option<String>, workspace: &Path) -> Result<bool, ProgramError> {
    let hint = Hint {
        entrypoint,
        ..Hint::default()
    };
    let program = program::open(path, &hint, || {
        let unpacked = workspace.join("unpacked");
        std::fs::create_dir(&unpacked)?;
        Ok(unpacked)
    })?;
    let mut components = program.components.iter();
    Ok(components.any(|component| component.engine == EngineKind::Python))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_a_program_is_shows_in_an_archive_too() {
        for (name, expected) in [("main.py", true), ("run.sh", false)] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("app.zip");
            let mut zip = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
            zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(b"#!/bin/sh\n").unwrap();
            zip.finish().unwrap();
            assert_eq!(has_python(&path, None, folder.path()).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn ports_are_two_numbers() {
        let read = |text| forward(text).map(|forward| (forward.host, forward.guest));
        assert_eq!(read("2222:22").unwrap(), (2222, 22));
        for wrong in ["2222", "0:22", "a:b", "1:2:3", "70000:1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_private_key_is_not_sent() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# mine\nssh-ed25519 AAAA me\n\n").unwrap();
        assert_eq!(keys_of(file.path()).unwrap(), ["ssh-ed25519 AAAA me"]);
        std::fs::write(file.path(), "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n").unwrap();
        assert!(keys_of(file.path()).unwrap_err().to_string().contains("private key"));
        std::fs::write(file.path(), "\n").unwrap();
        assert!(keys_of(file.path()).unwrap_err().to_string().contains("holds no key"));
    }

    #[test]
    fn volumes_are_read_only_unless_they_say_otherwise() {
        let read =
            |text| volume(text).map(|volume| (volume.path.display().to_string(), volume.mount, volume.read_only));
        assert_eq!(read("./a:/b").unwrap(), ("./a".into(), "/b".into(), true));
        assert_eq!(read("a:b:/c:rw").unwrap(), ("a:b".into(), "/c".into(), false));
        assert!(read("a:b").is_err());
        assert!(read("/a").is_err());
    }
}
