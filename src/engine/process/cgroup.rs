//! Control groups of version 2 (cgroups(7), the kernel's admin-guide/cgroup-v2) where no [keeper](crate::engine::keeper)
//! has places for programs, as outside of a machine of ours: one for each process whose memory or processor time is
//! limited, with all that it starts.
//!
//! Groups are made below the one that this process is in, where that may be divided, or else below the root. A group
//! can be divided only if no process is in it, so this process may have to move out of the way first.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::engine::keeper::{Kept, Limits};

/// The period that a share of the processors is measured over, in microseconds: the kernel's own default.
const PERIOD: f64 = 100_000.0;

/// Why there is no group.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("there is no cgroup2 file system (mount -t cgroup2 none /sys/fs/cgroup)")]
    NotMounted,
    #[error("the kernel's cgroup2 has no {controller} controller (version 1 of cgroups may have it)")]
    NoController { controller: &'static str },
    #[error("{path}: {error}", path = .path.display())]
    Refused { path: PathBuf, error: io::Error },
}

/// A group of one process and what it starts. Dropping it removes it, once they are gone.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
}

impl Group {
    /// Makes a group that may use so much.
    ///
    /// # Errors
    /// There is no cgroup2, it lacks a controller, or this process may not make groups.
    pub fn new(limits: &Limits) -> Result<Self, CgroupError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let base = base(limits)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("process-{number}"));
        fs::create_dir(&path).map_err(|error| refused(&path, error))?;
        let group = Self { path };
        group.hold_to(limits)?;
        Ok(group)
    }

    /// Lets a process that runs already join.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn admit(&self, process: nix::unistd::Pid) -> Result<(), CgroupError> {
        self.set("cgroup.procs", &process.to_string())
    }

    fn hold_to(&self, limits: &Limits) -> Result<(), CgroupError> {
        if let Some(bytes) = limits.memory {
            self.set("memory.max", &bytes.to_string())?;
            // Out of memory means out of all of it, and all that runs there ends: half a program is of no use. Kernels
            // without swap have no limit for it.
            let _ = self.set("memory.swap.max", "0");
            let _ = self.set("memory.oom.group", "1");
        }
        if let Some(processes) = limits.processes {
            self.set("pids.max", &processes.to_string())?;
        }
        if let Some(processors) = limits.processors {
            // 1 ms is the least that the kernel takes.
            self.set(
                "cpu.max",
                &format!("{:.0} {PERIOD:.0}", (processors * PERIOD).max(1000.0)),
            )?;
        }
        Ok(())
    }

    fn set(&self, name: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.path.join(name);
        write(&path, value).map_err(|error| refused(&path, error))
    }
}

impl Kept for Group {
    fn entrance(&self) -> io::Result<File> {
        OpenOptions::new().write(true).open(self.path.join("cgroup.procs"))
    }

    fn limit(&self, limits: &Limits) -> io::Result<()> {
        self.hold_to(limits).map_err(io::Error::other)
    }

    fn kill(&self) {
        // Linux before 5.14 has no such file; what is in the session has been killed anyway.
        let _ = self.set("cgroup.kill", "1");
    }

    fn ran_out_of_memory(&self) -> bool {
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        let killed = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        killed.is_some_and(|count| count.trim() != "0")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
        if fs::remove_dir(&self.path).is_ok() {
            return;
        }
        let path = std::mem::take(&mut self.path);
        // Those that were killed just now take their moment to end.
        let _ = std::thread::Builder::new().spawn(move || {
            for _ in 0..200 {
                std::thread::sleep(Duration::from_millis(10));
                if fs::remove_dir(&path).is_ok() {
                    break;
                }
            }
        });
    }
}

fn refused(path: &Path, error: io::Error) -> CgroupError {
    CgroupError::Refused {
        path: path.to_owned(),
        error,
    }
}

/// One write(2): the kernel takes each for a command of its own.
fn write(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// The group that ours are made in, with the controllers that `limits` need.
fn base(limits: &Limits) -> Result<PathBuf, CgroupError> {
    let mut needed = Vec::new();
    if limits.memory.is_some() {
        needed.push("memory");
    }
    if limits.processors.is_some() {
        needed.push("cpu");
    }
    if limits.processes.is_some() {
        needed.push("pids");
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let (root, mount) = mounts.lines().find_map(cgroup_mount).ok_or(CgroupError::NotMounted)?;
    let available = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
    for controller in &needed {
        if !available.split_whitespace().any(|one| one == *controller) {
            return Err(CgroupError::NoController { controller });
        }
    }
    // Found once: after that this process may have moved.
    static OWN: OnceLock<PathBuf> = OnceLock::new();
    let own = OWN.get_or_init(|| {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        own_group(&groups, &root, &mount).unwrap_or_else(|| mount.clone())
    });
    match divide(own, &needed) {
        Ok(()) => Ok(own.clone()),
        Err(_) if *own != mount => {
            let ours = mount.join(format!("polyinit-{}", std::process::id()));
            divide(&mount, &needed)?;
            match fs::create_dir(&ours) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(refused(&ours, error)),
                _ => {}
            }
            divide(&ours, &needed)?;
            Ok(ours)
        }
        Err(error) => Err(error),
    }
}

/// Has the groups below `group` obey these controllers.
fn divide(group: &Path, needed: &[&str]) -> Result<(), CgroupError> {
    let control = group.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&control).unwrap_or_default();
    for controller in needed {
        if enabled.split_whitespace().any(|one| one == *controller) {
            continue;
        }
        let enable = || write(&control, &format!("+{controller}"));
        let mut done = enable();
        if done
            .as_ref()
            .is_err_and(|error| error.raw_os_error() == Some(nix::libc::EBUSY))
            && is_ours_alone(group)
        {
            step_aside(group).map_err(|error| refused(group, error))?;
            done = enable();
        }
        done.map_err(|error| refused(&control, error))?;
    }
    Ok(())
}

fn is_ours_alone(group: &Path) -> bool {
    let members = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    members.lines().all(|member| member == std::process::id().to_string())
}

/// Moves this process into a group of its own below `group`.
fn step_aside(group: &Path) -> io::Result<()> {
    let aside = group.join("polyinit");
    match fs::create_dir(&aside) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    write(&aside.join("cgroup.procs"), "0")
}

/// Root within the file system and mount point, of a line of proc_pid_mountinfo(5) that is of a cgroup2:
/// `30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw`.
fn cgroup_mount(line: &str) -> Option<(PathBuf, PathBuf)> {
    let (before, after) = line.split_once(" - ")?;
    if after.split(' ').next()? != "cgroup2" {
        return None;
    }
    let mut fields = before.split(' ').skip(3);
    Some((fields.next()?.into(), fields.next()?.into()))
}

/// The folder of the group that `/proc/self/cgroup` names: `0::/system.slice/x`.
fn own_group(groups: &str, root: &Path, mount: &Path) -> Option<PathBuf> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let below = Path::new(path).strip_prefix(root).ok()?;
    let folder = mount.join(below);
    folder.is_dir().then_some(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_mount() {
        let line = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(cgroup_mount(line), Some(("/".into(), "/sys/fs/cgroup".into())));
        assert_eq!(
            cgroup_mount("30 23 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"),
            None
        );
        assert_eq!(cgroup_mount(""), None);
    }

    #[test]
    fn finds_its_own_group() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        let own = |groups: &str, root: &str| own_group(groups, Path::new(root), folder.path());
        assert_eq!(own("3:cpu:/x\n0::/a/b\n", "/"), Some(folder.path().join("a/b")));
        assert_eq!(own("0::/pod/a/b\n", "/pod"), Some(folder.path().join("a/b")));
        assert_eq!(own("0::/elsewhere\n", "/"), None);
        assert_eq!(own("", "/"), None);
    }
}
