//! The life of one machine, as its host sees it: boot, ready, configure, halt, gone.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::cloud_hypervisor;
use super::firecracker;
use super::guest_api;
use super::hardware::{Drive, Forward, Hardware, Network, StartError, Vmm, said};
use super::initramfs::Next;
use super::kernel::Kernel;
use super::link::{self, Link, Ready};
use super::qemu::{self, Accelerator};
use super::{initramfs, kvm};
use crate::machine::{modules, superblock};
use crate::wire::{GUEST_API_PORT, PORT};

/// How long a machine may take to be ready where KVM is known to boot it, or is the only way: what the network's hosts
/// give it.
const READY_DEADLINE: Duration = Duration::from_secs(20);

/// The same where KVM is only tried. Where it works at all, a machine is ready in a third of this.
const TRIAL_DEADLINE: Duration = Duration::from_secs(3);

/// The same for an emulated machine, on a host that has other things to do.
const EMULATED_DEADLINE: Duration = Duration::from_secs(60);

/// How long the VMM may take to end after the guest's last word.
const END_DEADLINE: Duration = Duration::from_secs(1);

/// The same for an emulated machine.
const EMULATED_END_DEADLINE: Duration = Duration::from_secs(5);

/// What a machine's kernel needs beside its file systems, where it has its drivers as modules; what these depend on
/// comes with them.
const MODULES: [&str; 4] = ["virtio_mmio", "virtio_blk", "overlay", "vmw_vsock_virtio_transport"];

/// A machine to boot.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The root file system: a squashfs, an erofs, an ext4, or an initramfs.
    pub image: PathBuf,
    pub kernel: Kernel,
    /// In MiB.
    pub memory: u32,
    pub processors: u32,
    /// /dev/vdb and what follows.
    pub drives: Vec<Drive>,
    pub network: Network,
    /// TCP ports of this host that lead to the guest's.
    pub forwards: Vec<Forward>,
    /// More words for the kernel's command line.
    pub append: String,
    pub choice: Choice,
    /// The Unix socket of a guest API on this host.
    pub guest_api: Option<PathBuf>,
}

/// Which VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// Firecracker or Cloud Hypervisor where one is installed and KVM boots a kernel, else QEMU.
    Auto,
    Firecracker,
    CloudHypervisor,
    Qemu,
}

/// A VMM with what runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Firecracker,
    CloudHypervisor,
    Qemu(Accelerator),
}

/// A machine that is ready. Dropping it kills it.
#[derive(Debug)]
pub struct Vm {
    pub kind: Kind,
    /// From the VMM's start to the ready signal.
    pub ready_after: Duration,
    vmm: Vmm,
    link: Link,
    guest_api: AbortHandle,
    /// Sockets and initramfs; goes last.
    _folder: TempDir,
}

/// How a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As the protocol has it.
    Halted,
    /// It had to be killed.
    Killed,
}

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't read the image {}: {source}", path.display())]
    ReadImage { path: PathBuf, source: io::Error },
    #[error(
        "{} is no image of a root file system: it holds none of {}, and is no initramfs; `polyinit image build` makes one",
        path.display(), superblock::known()
    )]
    NoImage { path: PathBuf },
    #[error(
        "{} is unpacked to the machine's memory, and {memory} MiB are too few for it: --memory {needed} or more",
        path.display()
    )]
    NoRoom { path: PathBuf, memory: u32, needed: u64 },
    #[error("can't make a temporary folder: {0}")]
    Folder(#[source] io::Error),
    #[error(transparent)]
    Modules(#[from] modules::Error),
    #[error(transparent)]
    Initramfs(#[from] initramfs::Error),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Link(#[from] link::Error),
    #[error("can't listen for the guest API on {}: {source}", socket.display())]
    GuestApi { socket: PathBuf, source: io::Error },
    #[error("can't tell what became of the machine: {0}")]
    Wait(#[source] io::Error),
    #[error("{kind}: it {exit} before the machine was ready{}{}", of_memory(words), said(words))]
    Ended { kind: Kind, exit: String, words: String },
    #[error(
        "the machine was not ready within {} s: is /sbin/init of the image a polyinit{}?{}",
        after.as_secs(), of_kvm(*kind), said(words)
    )]
    NotReady { kind: Kind, after: Duration, words: String },
}

/// What a kernel that has too little memory calls it.
fn of_memory(words: &str) -> &'static str {
    match words.contains("deadlocked on memory") || words.contains("Out of memory") {
        true => ", for want of memory (--memory)",
        false => "",
    }
}

/// What may be wrong besides, with a machine that emulation would do without.
fn of_kvm(kind: Kind) -> &'static str {
    match kind {
        Kind::Qemu(_) => "",
        Kind::Firecracker | Kind::CloudHypervisor => {
            ", and does this host's KVM boot a kernel (--vmm qemu does without)"
        }
    }
}

impl Vm {
    /// Boots a machine and waits until it is ready for its configuration. `tell` is told of each attempt, and why one
    /// before it has failed.
    ///
    /// # Errors
    /// [`Error`], with the machine's last words where it had any.
    pub async fn boot(settings: &Settings, tell: impl Fn(Attempt<'_>)) -> Result<Self, Error> {
        let root = root_of(&settings.image)?;
        let mut kinds = kinds(settings).into_iter().peekable();
        loop {
            // There is always a last one, which returns.
            let kind = kinds.next().unwrap_or(Kind::Qemu(Accelerator::Tcg));
            tell(Attempt::Booting(kind));
            let patience = match kind {
                Kind::Qemu(Accelerator::Tcg) => EMULATED_DEADLINE,
                _ if kinds.peek().is_some() => TRIAL_DEADLINE,
                _ => READY_DEADLINE,
            };
            match (Self::attempt(settings, root, kind, patience).await, kinds.peek()) {
                (Err(error), Some(_)) => {
                    if matches!(error, Error::Ended { .. } | Error::NotReady { .. }) {
                        kvm::note_failure();
                    }
                    tell(Attempt::Failed(kind, &error));
                }
                (outcome, _) => return outcome,
            }
        }
    }

    async fn attempt(settings: &Settings, root: Root, kind: Kind, patience: Duration) -> Result<Self, Error> {
        let folder = tempfile::Builder::new()
            .prefix("polyinit-vm-")
            .tempdir()
            .map_err(Error::Folder)?;
        let hardware = assemble(settings, root, kind, folder.path())?;
        let ready = Ready::bind(&hardware.vsock_of_host(PORT))?;
        let guest_api = offer_guest_api(&hardware, settings.guest_api.clone())?;
        let mut vm = {
            let began = Instant::now();
            let vmm = match kind {
                Kind::Firecracker => firecracker::run(&hardware).await?,
                Kind::CloudHypervisor => cloud_hypervisor::run(&hardware).await?,
                Kind::Qemu(accelerator) => qemu::run(&hardware, accelerator).await?,
            };
            Self {
                kind,
                ready_after: began.elapsed(),
                vmm,
                link: Link::new(hardware.vsock()),
                guest_api,
                _folder: folder,
            }
        };
        let began = Instant::now();
        let signal = tokio::select! {
            signal = timeout(patience, ready.signal()) => signal,
            exit = vm.vmm.ended() => {
                let exit = exit.map_err(Error::Wait)?.to_string();
                return Err(Error::Ended { kind, exit, words: vm.vmm.last_words().await });
            }
        };
        match signal {
            Ok(version) => tracing::debug!("ready, with version {} of the protocol", version?),
            Err(_) => {
                let words = vm.vmm.last_words().await;
                return Err(Error::NotReady {
                    kind,
                    after: patience,
                    words,
                });
            }
        }
        vm.ready_after += began.elapsed();
        Ok(vm)
    }

    /// The way to the guest.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Waits until the machine ends by itself, and tells with which last words. May be dropped and called again.
    pub async fn ended(&mut self) -> String {
        match self.vmm.ended().await {
            Ok(exit) => format!("{} {exit}{}", self.kind, said(&self.vmm.last_words().await)),
            Err(error) => Error::Wait(error).to_string(),
        }
    }

    /// Ends the machine: tells the guest, waits for its last word and for the VMM's end, and kills it if either takes
    /// longer than the network's hosts wait; they emulate none.
    pub async fn halt(mut self) -> End {
        if let Err(error) = self.link.halt().await {
            tracing::warn!("{error}; the machine is killed");
            return End::Killed;
        }
        let deadline = match self.kind {
            Kind::Qemu(Accelerator::Tcg) => EMULATED_END_DEADLINE,
            _ => END_DEADLINE,
        };
        match timeout(deadline, self.vmm.ended()).await {
            Ok(_) => End::Halted,
            Err(_) => {
                tracing::warn!("the guest halted, but did not restart the machine, which is killed");
                End::Killed
            }
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.guest_api.abort();
    }
}

/// What [`Vm::boot`] tells of.
#[derive(Debug)]
pub enum Attempt<'a> {
    Booting(Kind),
    /// The next one follows.
    Failed(Kind, &'a Error),
}

/// Which to try, in this order.
fn kinds(settings: &Settings) -> Vec<Kind> {
    let emulated = Kind::Qemu(Accelerator::Tcg);
    let kvm = kvm::is_worth_trying();
    match settings.choice {
        Choice::Firecracker => vec![Kind::Firecracker],
        Choice::CloudHypervisor => vec![Kind::CloudHypervisor],
        Choice::Qemu | Choice::Auto if !kvm => vec![emulated],
        Choice::Auto if firecracker::is_installed() && settings.network == Network::None => {
            vec![Kind::Firecracker, emulated]
        }
        Choice::Auto if cloud_hypervisor::is_installed() && settings.network == Network::None => {
            vec![Kind::CloudHypervisor, emulated]
        }
        Choice::Qemu | Choice::Auto => vec![Kind::Qemu(Accelerator::Kvm), emulated],
    }
}

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Root {
    /// A file system, as mount(2) names it.
    Drive(&'static str),
    Initramfs,
}

fn assemble(settings: &Settings, root: Root, kind: Kind, folder: &Path) -> Result<Hardware, Error> {
    let mut wanted = MODULES.to_vec();
    if let Root::Drive(filesystem) = root {
        wanted.push(filesystem);
    }
    if kind == Kind::CloudHypervisor {
        wanted.push("virtio_pci");
    }
    // A drive that is none of these is for the guest to complain about, which knows where it should be mounted.
    let of_drive = |drive: &Drive| superblock::recognise(&File::open(&drive.path).ok()?).ok()?;
    wanted.extend(
        settings
            .drives
            .iter()
            .filter_map(of_drive)
            .map(|file_system| file_system.name),
    );
    if settings.network != Network::None {
        wanted.push("virtio_net");
    }
    let modules = match &settings.kernel.modules {
        Some(folder) => modules::in_load_order(folder, &wanted)?,
        None => Vec::new(),
    };
    let image = absolute(&settings.image)?;
    if root == Root::Initramfs {
        let length = std::fs::metadata(&image).map_or(0, |metadata| metadata.len());
        let (path, memory, needed) = (image.clone(), settings.memory, memory_for(length));
        if u64::from(memory) < needed {
            return Err(Error::NoRoom { path, memory, needed });
        }
    }
    let next = match root {
        Root::Drive(filesystem) => Next::Device("/dev/vda", filesystem),
        Root::Initramfs => Next::Image(&image),
    };
    let initramfs = match (modules.is_empty(), root) {
        (true, Root::Drive(_)) => None,
        (true, Root::Initramfs) => Some(image.clone()),
        (false, _) => {
            let path = folder.join("initramfs");
            initramfs::write(&path, &modules, next)?;
            Some(path)
        }
    };
    // An initramfs is a drive as well, which nobody reads, so that those after it have the same names with every image.
    let mut drives = vec![Drive {
        path: image,
        read_only: true,
    }];
    for drive in &settings.drives {
        drives.push(Drive {
            path: absolute(&drive.path)?,
            ..*drive
        });
    }
    Ok(Hardware {
        kernel: absolute(&settings.kernel.image)?,
        initramfs,
        memory: settings.memory,
        processors: settings.processors,
        drives,
        network: settings.network,
        forwards: settings.forwards.clone(),
        append: settings.append.clone(),
        folder: folder.to_owned(),
    })
}

/// The memory in MiB without which a kernel can't unpack an initramfs of `length` bytes: as long as it does, it has that
/// twice, and the file system that it unpacks to is not larger than half of what is left beside the packed one.
fn memory_for(length: u64) -> u64 {
    /// What a distribution's kernel takes for itself.
    const KERNEL: u64 = 48;
    length.div_ceil(1 << 20) * 3 + KERNEL
}

/// VMMs run in another directory.
fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(|source| Error::ReadImage {
        path: path.to_owned(),
        source,
    })
}

fn offer_guest_api(hardware: &Hardware, api: Option<PathBuf>) -> Result<AbortHandle, Error> {
    let socket = hardware.vsock_of_host(GUEST_API_PORT);
    let listener = UnixListener::bind(&socket).map_err(|source| Error::GuestApi { socket, source })?;
    Ok(tokio::spawn(guest_api::serve(listener, api)).abort_handle())
}

fn root_of(image: &Path) -> Result<Root, Error> {
    let read = |source| Error::ReadImage {
        path: image.to_owned(),
        source,
    };
    let no_image = || Error::NoImage { path: image.to_owned() };
    let file = File::open(image).map_err(read)?;
    if !file.metadata().map_err(read)?.is_file() {
        return Err(no_image());
    }
    match superblock::recognise(&file).map_err(read)? {
        Some(file_system) => Ok(Root::Drive(file_system.name)),
        None if initramfs::is_one(&file).map_err(read)? => Ok(Root::Initramfs),
        None => Err(no_image()),
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Firecracker => "Firecracker",
            Self::CloudHypervisor => "Cloud Hypervisor",
            Self::Qemu(Accelerator::Kvm) => "QEMU with KVM",
            Self::Qemu(Accelerator::Tcg) => "QEMU, emulated",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_images_by_their_magic() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        let root = |content: &[u8]| {
            std::fs::write(&image, content).unwrap();
            root_of(&image).map_err(|error| error.to_string())
        };
        assert_eq!(root(b"hsqs and more").unwrap(), Root::Drive("squashfs"));
        assert_eq!(root(b"070701 and more").unwrap(), Root::Initramfs);
        let mut ext4 = vec![0; 4096];
        ext4[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(root(&ext4).unwrap(), Root::Drive("ext4"));
        for none in [&b"hello"[..], b""] {
            assert!(root(none).unwrap_err().contains("no image of a root file system"));
        }
        assert!(matches!(root_of(folder.path()), Err(Error::NoImage { .. })));
    }
}
