//! Ending processes that would rather go on: everything of one program, or everything on the machine at halt.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::{Pid, getpid};

/// Why processes live on.
#[derive(Debug, thiserror::Error)]
pub enum ProcessesError {
    #[error("only PID 1 may end every process of the machine")]
    NotPid1,
    #[error("{count} processes are left after SIGKILL and {} s", .patience.as_secs_f32())]
    Left { count: usize, patience: Duration },
    #[error("killing process group {group} failed: {errno}")]
    Group { group: Pid, errno: Errno },
    #[error("killing the control group {path} failed: {source}", path = .path.display())]
    ControlGroup { path: PathBuf, source: io::Error },
}

/// How often the process table is looked at while processes end. Only at halt.
const POLL: Duration = Duration::from_millis(2);

/// After SIGKILL, the time in which the kernel takes processes down, memory and all.
const KILL_PATIENCE: Duration = Duration::from_millis(500);

/// Asks every process of the machine to end (SIGTERM), and after `grace` ends it (SIGKILL). Returns as soon as none is
/// left. Blocks. Ended processes must be reaped meanwhile.
///
/// # Errors
/// When this is not PID 1, for then `kill(-1)` would reach other people's processes; or when processes stay, stuck in
/// the kernel.
pub fn end_all(grace: Duration) -> Result<(), ProcessesError> {
    if getpid() != Pid::from_raw(1) {
        return Err(ProcessesError::NotPid1);
    }
    for (signal, patience) in [(Signal::SIGTERM, grace), (Signal::SIGKILL, KILL_PATIENCE)] {
        // Fails only when there is nobody.
        let _ = kill(Pid::from_raw(-1), signal);
        let deadline = Instant::now() + patience;
        while living() > 0 && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        if living() == 0 {
            return Ok(());
        }
    }
    Err(ProcessesError::Left {
        count: living(),
        patience: KILL_PATIENCE,
    })
}

/// How many processes run, PID 1, the kernel's own threads and those that have ended left out.
fn living() -> usize {
    let Ok(table) = fs::read_dir("/proc") else {
        return 0;
    };
    table
        .flatten()
        .filter(|entry| {
            let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            pid.is_some_and(|pid| pid > 1)
        })
        .filter(|entry| fs::read_to_string(entry.path().join("stat")).is_ok_and(|stat| is_living(&stat)))
        .count()
}

/// From a line of `/proc/PID/stat` (proc_pid_stat(5)). The name in its parentheses may hold anything.
fn is_living(stat: &str) -> bool {
    const PF_KTHREAD: u32 = 0x0020_0000;
    let Some((_, behind_name)) = stat.rsplit_once(") ") else {
        return false;
    };
    let mut fields = behind_name.split(' ');
    let ended = matches!(fields.next(), Some("Z" | "X"));
    // Fields 4 to 8 are between the state and the flags.
    let flags = fields.nth(5).and_then(|flags| flags.parse::<u32>().ok()).unwrap_or(0);
    !ended && flags & PF_KTHREAD == 0
}

/// The processes of one program, however they detach themselves: a control group where the kernel has cgroup2
/// (cgroups(7)), else no more than the process group.
#[derive(Debug)]
pub struct Group {
    directory: Option<PathBuf>,
}

/// Where cgroup2 is, on its own or beside version 1.
const CGROUP2: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

impl Group {
    /// An empty group called `name`. Falls back to process groups when a control group can't be had.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let directory = CGROUP2
            .into_iter()
            .map(Path::new)
            .find(|path| statfs(*path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC))
            .map(|root| root.join(name))
            .filter(|directory| {
                let made = fs::create_dir(directory);
                made.is_ok() || made.is_err_and(|e| e.kind() == io::ErrorKind::AlreadyExists)
            })
            // Linux before 5.14 has control groups that can't be killed at once.
            .filter(|directory| directory.join("cgroup.kill").exists());
        Self { directory }
    }

    /// The file through which a process joins: it writes `0` there, best between fork and exec, so that no child of
    /// its escapes. `None` where only the process group counts.
    #[must_use]
    pub fn entrance(&self) -> Option<File> {
        let file = self.directory.as_ref()?.join("cgroup.procs");
        OpenOptions::new().write(true).open(file).ok()
    }

    /// Whether processes are held by a control group.
    #[must_use]
    pub fn is_control_group(&self) -> bool {
        self.directory.is_some()
    }

    /// Kills every process of the control group, and the process group of `leader` beside it. Does not wait until they
    /// are gone.
    ///
    /// # Errors
    /// When the kernel refuses. That nobody is left is none.
    pub fn kill(&self, leader: Option<Pid>) -> Result<(), ProcessesError> {
        if let Some(group) = leader {
            match killpg(group, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(ProcessesError::Group { group, errno }),
            }
        }
        if let Some(directory) = &self.directory {
            let file = directory.join("cgroup.kill");
            fs::write(&file, "1").map_err(|source| ProcessesError::ControlGroup {
                path: directory.clone(),
                source,
            })?;
        }
        Ok(())
    }
}

/// An empty control group goes; one with processes that are still ending stays until the machine ends.
impl Drop for Group {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory {
            let _ = fs::remove_dir(directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::isolation::{Namespace, isolated};
    use crate::machine::reaper;
    use std::io::Write;
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Child, Command, Stdio};

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null());
        command
    }

    fn ends(mut child: Child) -> Option<i32> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = child.try_wait().expect("its status") {
                return status.signal();
            }
            assert!(Instant::now() < deadline, "it lives on");
            std::thread::sleep(POLL);
        }
    }

    #[test]
    fn the_kernels_threads_and_the_dead_don_t_count() {
        assert!(is_living("7 (a) b) S 1 7 7 0 -1 4194304 0"));
        assert!(!is_living("7 (a) Z 1 7 7 0 -1 4194304 0"));
        assert!(!is_living("2 (kthreadd) S 0 0 0 0 -1 2129984 0"));
        assert!(!is_living("nonsense"));
    }

    #[test]
    fn nobody_but_pid_1_ends_everything() {
        assert!(matches!(end_all(Duration::ZERO), Err(ProcessesError::NotPid1)));
    }

    #[test]
    fn at_halt_the_willing_end_by_themselves_and_the_rest_is_killed() {
        isolated(
            "machine::processes::tests::at_halt_the_willing_end_by_themselves_and_the_rest_is_killed",
            &[Namespace::Pid, Namespace::Mount],
            || {
                let outcome = reaper::live(|| {
                    let folder = tempfile::tempdir().expect("a folder");
                    let ready = |name: &str| folder.path().join(name);
                    let willing = format!(
                        "trap 'exit 0' TERM; touch {}; while :; do sleep 0.01; done",
                        ready("a").display()
                    );
                    // Detached, as a daemon would be, and deaf.
                    let deaf = format!(
                        "setsid sh -c \"trap '' TERM; touch {}; while :; do sleep 0.01; done\" & exit 0",
                        ready("b").display()
                    );
                    let child = shell(&willing).spawn().expect("a shell");
                    shell(&deaf).status().expect("a shell");
                    let deadline = Instant::now() + Duration::from_secs(20);
                    while !(ready("a").exists() && ready("b").exists()) {
                        assert!(Instant::now() < deadline, "the shells never began");
                        std::thread::sleep(POLL);
                    }
                    end_all(Duration::from_millis(300)).expect("all ended");
                    assert_eq!(ends(child), None);
                    assert_eq!(living(), 0);
                });
                outcome.expect("a life").expect("no panic");
            },
        );
    }

    #[test]
    #[allow(unsafe_code)]
    fn a_program_that_detaches_itself_is_killed_with_its_control_group() {
        let group = Group::new(&format!("polyinit-test-{}", std::process::id()));
        let Some(entrance) = group.entrance().filter(|mut file| {
            // Some machines have the files and let nobody in.
            shell("exec sleep 0").status().is_ok() && file.write_all(b"").is_ok()
        }) else {
            eprintln!("SKIPPED: no control groups of version 2 that can be killed");
            return;
        };
        let mut command = shell("setsid sleep 1000 & echo $!; exec sleep 1000");
        command.stdout(Stdio::piped()).process_group(0);
        // SAFETY: write(2) is all that is done between fork and exec.
        unsafe {
            command.pre_exec(move || (&entrance).write_all(b"0"));
        }
        let mut child = command.spawn().expect("a shell in the group");
        let mut line = String::new();
        let mut output = io::BufReader::new(child.stdout.take().expect("piped"));
        io::BufRead::read_line(&mut output, &mut line).expect("a number");
        let detached = Pid::from_raw(line.trim().parse().expect("a number"));

        group.kill(None).expect("killed");
        assert_eq!(ends(child), Some(9));
        let deadline = Instant::now() + Duration::from_secs(20);
        let living = |pid: Pid| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| is_living(&stat));
        while living(detached) {
            assert!(Instant::now() < deadline, "it got away");
            std::thread::sleep(POLL);
        }
    }

    #[test]
    fn without_control_groups_the_process_group_is_killed() {
        let group = Group { directory: None };
        let child = shell("sleep 1000; exit 0").process_group(0).spawn().expect("a shell");
        let leader = Pid::from_raw(child.id() as i32);
        group.kill(Some(leader)).expect("killed");
        assert_eq!(ends(child), Some(9));
        group.kill(Some(leader)).expect("nobody is left, which is no error");
    }
}
