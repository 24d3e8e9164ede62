//! Ending processes that would rather go on: everything on the machine, at halt.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};

/// Why processes live on.
#[derive(Debug, thiserror::Error)]
pub enum ProcessesError {
    #[error("only PID 1 may end every process of the machine")]
    NotPid1,
    #[error("{count} processes are left after SIGKILL and {} s", .patience.as_secs_f32())]
    Left { count: usize, patience: Duration },
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::isolation::{Namespace, isolated};
    use crate::machine::reaper;
    use std::os::unix::process::ExitStatusExt;
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
}
