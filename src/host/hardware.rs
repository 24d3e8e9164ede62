//! What a machine is made of, whichever VMM makes it, and the VMM that runs.

use std::path::PathBuf;
use std::time::Duration;

use crate::engine::process::{Confinement, Exit, Launch, Process};

/// The guest's own address on its vsock. Any from 3 on will do: each machine has a bus of its own.
pub const GUEST_CID: u32 = 3;

/// A machine to be.
#[derive(Debug, Clone)]
pub struct Hardware {
    pub kernel: PathBuf,
    pub initramfs: Option<PathBuf>,
    /// In MiB.
    pub memory: u32,
    pub processors: u32,
    /// The first one, /dev/vda, is the root file system.
    pub drives: Vec<Drive>,
    pub network: Network,
    /// TCP ports of this host that lead to ports of the guest's eth0.
    pub forwards: Vec<Forward>,
    /// More words for the kernel's command line, after all others.
    pub append: String,
    /// An empty folder, the machine's own, for the VMM's sockets and files.
    pub folder: PathBuf,
}

/// A block device with the content of a file of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    pub path: PathBuf,
    pub read_only: bool,
}

/// A port on this host's loopback, and the guest's that it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    pub host: u16,
    pub guest: u16,
}

/// What the machine's eth0 leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Network {
    /// There is no eth0.
    None,
    /// To a gateway that passes nothing on.
    Isolated,
    /// To wherever this host's programs can connect.
    Open,
}

/// A VMM that runs, and what runs for it. Dropping it kills both.
#[derive(Debug)]
pub struct Vmm {
    process: Process,
    /// The device that runs in a process of its own, where there is one.
    _device: Option<Process>,
}

/// Why a VMM can't be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{program} is not installed: {hint}")]
    NotInstalled { program: &'static str, hint: &'static str },
    #[error("{vmm} needs KVM, and /dev/kvm can't be used: {errno}; --vmm qemu does without")]
    NoKvm {
        vmm: &'static str,
        errno: nix::errno::Errno,
    },
    #[error(
        "{vmm} takes a vmlinux, and {} is a bzImage: scripts/extract-vmlinux of the kernel's source unpacks it",
        kernel.display()
    )]
    Compressed { vmm: &'static str, kernel: PathBuf },
    #[error("can't start {}: {source}", program.display())]
    Start { program: PathBuf, source: std::io::Error },
    #[error("the name {} can't be given to a VMM, since it is not UTF-8", path.display())]
    Name { path: PathBuf },
    #[error("can't write {}: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{program} did not open its socket {} within {} s{}", socket.display(), after.as_secs(), said(words))]
    NoSocket {
        program: &'static str,
        socket: PathBuf,
        after: Duration,
        words: String,
    },
    #[error("{vmm} can't give the machine a network here: {why}")]
    NoNetwork { vmm: &'static str, why: &'static str },
}

/// The last words of a process as the end of a sentence about it.
pub(super) fn said(words: &str) -> String {
    match words {
        "" => String::new(),
        words => format!("; it said:\n{words}"),
    }
}

impl Hardware {
    /// The Unix socket that leads to the guest's vsock ports.
    pub fn vsock(&self) -> PathBuf {
        self.folder.join("v")
    }

    /// The Unix socket to which the VMM connects when the guest connects to `port` of the host.
    pub fn vsock_of_host(&self, port: u32) -> PathBuf {
        self.folder.join(format!("v_{port}"))
    }

    /// The Unix socket on which QEMU takes orders, where QEMU is the VMM.
    pub fn monitor(&self) -> PathBuf {
        self.folder.join("qmp")
    }

    /// The kernel's command line, without what only one VMM needs: how to end is for the caller to say.
    pub(super) fn command_line(&self, more: &str) -> String {
        let root = match self.initramfs {
            // It says itself what the root is.
            Some(_) => "",
            None => " root=/dev/vda ro init=/sbin/init",
        };
        // As the network's hosts have it, and what shortens the way to init: the kernel need not test its ciphers
        // (0.3 s in an emulated machine) nor tell the slow serial console about each driver.
        format!(
            "console=ttyS0 panic=1 quiet random.trust_cpu=on cryptomgr.notests swiotlb=noforce i8042.noaux \
             i8042.nomux i8042.dumbkbd{root} {more} {append}",
            append = self.append
        )
    }
}

impl Vmm {
    pub(super) fn new(process: Process, device: Option<Process>) -> Self {
        Self {
            process,
            _device: device,
        }
    }

    /// Waits until it ends: the guest has rebooted, or something went wrong. May be dropped and called again.
    ///
    /// # Errors
    /// Those of waitpid(2).
    pub async fn ended(&mut self) -> std::io::Result<Exit> {
        self.process.ended().await
    }

    /// The last lines that the VMM said, or else that the machine wrote to its console.
    pub async fn last_words(&self) -> String {
        self.process.last_words().await
    }
}

/// Starts `program` with nothing of our environment but the basics; its output goes to the log as that of `name`.
pub(super) async fn start(
    name: &str,
    program: PathBuf,
    arguments: Vec<String>,
    channel: Option<std::os::fd::OwnedFd>,
) -> Result<Process, StartError> {
    let launch = Launch {
        component: name.to_owned(),
        program: program.clone(),
        arguments: arguments.into_iter().map(Into::into).collect(),
        directory: "/".into(),
        environment: Vec::new(),
        channel,
        confinement: Confinement::default(),
    };
    launch
        .start()
        .await
        .map_err(|source| StartError::Start { program, source })
}

/// The name of `path` as text.
pub(super) fn text(path: &std::path::Path) -> Result<String, StartError> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| StartError::Name { path: path.to_owned() })
}
