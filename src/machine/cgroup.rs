//! Control groups of version 2 (cgroups(7)): programs share what the machine has, but not the memory and the process
//! numbers that init needs to go on. Between the mounted hierarchy and whoever starts programs.
//!
//! ```text
//! /sys/fs/cgroup            init and the kernel's threads
//! /sys/fs/cgroup/programs   memory.max: what memory is free at boot less the reserve; pids.max: most of its process numbers
//! .../programs/NAME.N       one program; its own limits, if it has any
//! ```
//!
//! A program that eats all memory is ended by the kernel within `programs`; init and the other programs live.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::Pid;

/// Where `mounts` puts the hierarchy.
const HIERARCHY: &str = "/sys/fs/cgroup";

/// What programs may be limited in. A kernel that lacks one goes without it.
const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];

/// The least and the most memory, in bytes, that is kept from programs, and the part of the whole that is in between.
const LEAST_RESERVE: u64 = 12 << 20;
const MOST_RESERVE: u64 = 128 << 20;
const RESERVE_PART: u64 = 16;

/// The part of the machine's threads that programs may have, in hundredths.
const THREADS_PERCENT: u64 = 90;

/// Why there are no groups, or a program has none.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("this machine has no control groups of version 2 at {HIERARCHY}")]
    NoHierarchy,
    #[error("{act} {path} failed: {source}", path = .path.display())]
    File {
        act: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the memory limit of {bytes} bytes for {name} is less than a page")]
    TooLittle { name: String, bytes: u64 },
}

/// The group that holds every program.
#[derive(Debug, Clone)]
pub struct Programs {
    directory: PathBuf,
    /// For the names of groups: a program that is started again has a new one while the old one ends.
    next: Arc<AtomicU64>,
}

/// What one program may use at most; `None` for as much as all programs together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Limits {
    /// In bytes, page cache and files in a tmpfs included (`memory.max`).
    pub memory: Option<u64>,
    /// Processes and threads (`pids.max`).
    pub processes: Option<u64>,
    /// Processors: 0.5 is half of one (`cpu.max`).
    pub processors: Option<f64>,
}

/// One program's group. Dropping it removes it, once its processes have ended.
#[derive(Debug)]
pub struct Group {
    directory: PathBuf,
}

impl Programs {
    /// Gives the hierarchy's controllers to groups and makes the group of all programs, which leaves `reserve` bytes
    /// of memory to init ([`default_reserve`] without).
    ///
    /// # Errors
    /// Where the machine has no cgroup2, or lets nobody make groups: programs then run without limits.
    pub fn prepare(reserve: Option<u64>) -> Result<Self, CgroupError> {
        Self::prepare_in(Path::new(HIERARCHY), memory_available(), reserve)
    }

    fn prepare_in(root: &Path, memory: Option<u64>, reserve: Option<u64>) -> Result<Self, CgroupError> {
        if !statfs(root).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC) {
            return Err(CgroupError::NoHierarchy);
        }
        let directory = root.join("programs");
        make(&directory)?;
        for group in [root, directory.as_path()] {
            delegate(group);
        }
        let programs = Self {
            directory,
            next: Arc::default(),
        };
        if let Some(memory) = memory {
            let reserve = reserve.unwrap_or_else(|| default_reserve(memory)).min(memory / 2);
            programs.set("memory.max", &(memory - reserve).to_string());
        }
        if let Some(threads) = read_number(Path::new("/proc/sys/kernel/threads-max")) {
            programs.set("pids.max", &(threads * THREADS_PERCENT / 100).max(1).to_string());
        }
        Ok(programs)
    }

    /// A limit that the kernel doesn't have is one that it doesn't hold programs to; there is nobody to complain to.
    fn set(&self, file: &str, value: &str) {
        if let Err(error) = fs::write(self.directory.join(file), value) {
            tracing::debug!("{file} of all programs stays as it was: {error}");
        }
    }

    /// An empty group for the program `name`, within `limits`.
    ///
    /// # Errors
    /// Where the kernel refuses the group, or a limit that was asked for.
    pub fn group(&self, name: &str, limits: &Limits) -> Result<Group, CgroupError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let directory = self.directory.join(format!("{}.{number}", file_name(name)));
        make(&directory)?;
        let group = Group { directory };
        group.limit(name, limits)?;
        Ok(group)
    }
}

impl Group {
    /// Holds the program to `limits` from now on; one that is absent stays as it was.
    ///
    /// # Errors
    /// Where the kernel refuses a limit.
    pub fn limit(&self, name: &str, limits: &Limits) -> Result<(), CgroupError> {
        const PAGE: u64 = 4096;
        /// Microseconds: the kernel's own choice.
        const PERIOD: f64 = 100_000.0;
        if let Some(bytes) = limits.memory {
            if bytes < PAGE {
                let name = name.to_owned();
                return Err(CgroupError::TooLittle { name, bytes });
            }
            self.write("memory.max", &bytes.to_string())?;
        }
        if let Some(processes) = limits.processes {
            self.write("pids.max", &processes.to_string())?;
        }
        if let Some(processors) = limits.processors {
            // 1 ms is the least that the kernel takes.
            let quota = (processors * PERIOD).max(1000.0);
            self.write("cpu.max", &format!("{quota:.0} {PERIOD:.0}"))?;
        }
        Ok(())
    }

    /// The file through which a process joins: it writes `0` there, best between fork and exec, so that no child of
    /// its escapes.
    ///
    /// # Errors
    /// When the group is gone.
    pub fn entrance(&self) -> Result<File, CgroupError> {
        let path = self.directory.join("cgroup.procs");
        let opened = OpenOptions::new().write(true).open(&path);
        opened.map_err(|source| CgroupError::File {
            act: "opening",
            path,
            source,
        })
    }

    /// Kills every process of the group, however it has detached itself (Linux 5.14). Doesn't wait until they are gone.
    ///
    /// # Errors
    /// On older kernels.
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.write("cgroup.kill", "1")
    }

    /// How often the kernel has ended a process of the group for want of memory (`oom_kill` of `memory.events`).
    #[must_use]
    pub fn out_of_memory(&self) -> u64 {
        let events = fs::read_to_string(self.directory.join("memory.events")).unwrap_or_default();
        let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }

    fn write(&self, file: &'static str, value: &str) -> Result<(), CgroupError> {
        let path = self.directory.join(file);
        fs::write(&path, value).map_err(|source| CgroupError::File {
            act: "writing",
            path,
            source,
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // One with processes that are still ending stays until the machine ends: an empty directory costs a page.
        let _ = fs::remove_dir(&self.directory);
    }
}

/// Sends `signal` to every process in the group of all programs, where there is one.
pub fn signal_programs(signal: Signal) {
    let groups = fs::read_dir(Path::new(HIERARCHY).join("programs"))
        .into_iter()
        .flatten()
        .flatten();
    for group in groups.map(|group| group.path()).filter(|path| path.is_dir()) {
        let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        for process in processes.lines().filter_map(|line| line.parse().ok()) {
            // ESRCH: it has ended meanwhile.
            let _ = kill(Pid::from_raw(process), signal);
        }
    }
}

/// The memory that is kept for init where nobody says another amount, in bytes, of a machine with `memory`.
#[must_use]
pub fn default_reserve(memory: u64) -> u64 {
    (memory / RESERVE_PART).clamp(LEAST_RESERVE, MOST_RESERVE)
}

/// What a program called `name` is called in the hierarchy: nothing in it leads elsewhere.
fn file_name(name: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    name.chars().take(60).map(safe).collect()
}

fn make(directory: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(directory) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(CgroupError::File {
            act: "making",
            path: directory.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Hands the controllers of `group` to the groups in it, one by one: one that the kernel lacks keeps none back.
fn delegate(group: &Path) {
    for controller in CONTROLLERS {
        if let Err(error) = fs::write(group.join("cgroup.subtree_control"), format!("+{controller}")) {
            tracing::debug!("{controller} can't be limited in {}: {error}", group.display());
        }
    }
}

/// The memory that is there to be had now, in bytes (`MemAvailable` of proc_meminfo(5)): not all of it, since what the
/// kernel holds already can't be given to programs, and a limit above what there is would never be met before the whole
/// machine is out of memory and some other program has to go.
fn memory_available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_grows_with_the_machine_within_bounds() {
        assert_eq!(default_reserve(100 << 20), 12 << 20);
        assert_eq!(default_reserve(512 << 20), 32 << 20);
        assert_eq!(default_reserve(64 << 30), 128 << 20);
    }

    #[test]
    fn names_are_names_of_directories() {
        assert_eq!(file_name("api"), "api");
        assert_eq!(file_name("../a b/é"), "___a_b__");
        assert_eq!(file_name(&"x".repeat(300)).len(), 60);
    }

    #[test]
    fn where_there_is_no_hierarchy_it_says_so() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = Programs::prepare_in(folder.path(), None, None).expect_err("no cgroup2");
        assert!(matches!(error, CgroupError::NoHierarchy));
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
    }

    #[test]
    fn this_machines_memory_is_told() {
        assert!(memory_available().expect("/proc/meminfo") > 1 << 20);
    }
}
