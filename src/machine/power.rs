//! The machine's end: everything on its disks, then reboot(2). Firecracker and QEMU run with `reboot=k` and end there;
//! power-off would leave a Firecracker machine halted and running.
//!
//! Only PID 1 ends a machine. Any other process, such as a test or a program on a developer's machine, just exits.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::{Pid, getpid, sync};

use super::{console, processes, volumes};

/// How long a machine that has failed may take to end.
const FAILED_DEADLINE: Duration = Duration::from_millis(800);

/// How long a process that outlived its program has, from SIGTERM to SIGKILL.
const LEFTOVER_GRACE: Duration = Duration::from_millis(100);

/// The inode of the first PID namespace (`PROC_PID_INIT_INO` in the kernel's `proc_ns.h`).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Whether this process is the init of the machine itself, so that kernel and disks are its own to command. A
/// container's PID 1 is not: with enough rights it would set the kernel, or turn the disks, of its host.
#[must_use]
pub fn is_machines_init() -> bool {
    let is_init = getpid() == Pid::from_raw(1);
    is_init && fs::read_link("/proc/self/ns/pid").is_ok_and(|namespace| namespace.as_os_str() == FIRST_PID_NAMESPACE)
}

/// Where a kernel that panics would stand still for ever, makes it restart after a second: should init itself be
/// killed, nobody would be left to do it. A host that asked for another time (`panic=` on the command line) keeps it.
pub fn reboot_on_kernel_panic() {
    const TIMEOUT: &str = "/proc/sys/kernel/panic";
    let stands_still = || fs::read_to_string(TIMEOUT).is_ok_and(|seconds| seconds.trim() == "0");
    if is_machines_init() && stands_still() {
        // Without it the machine works as well.
        let _ = fs::write(TIMEOUT, "1\n");
    }
}

/// Has the kernel send SIGINT to init for Ctrl-Alt-Del, in place of a restart without a word to the programs
/// (reboot(2), LINUX_REBOOT_CMD_CAD_OFF).
pub fn take_ctrl_alt_del() {
    if is_machines_init() {
        // Without it the machine works as well.
        let _ = nix::sys::reboot::set_cad_enabled(false);
    }
}

/// Ends what still runs, brings the disks up to date, lets go of them and restarts the machine, with whatever is done
/// by `deadline`.
///
/// Where there is no machine to restart (in a container, or as a process that is not PID 1), exits with `exit_code`.
pub fn restart(deadline: Duration, exit_code: i32) -> ! {
    if is_machines_init() {
        within(deadline, || {
            if let Err(error) = processes::end_all(LEFTOVER_GRACE) {
                tracing::warn!("{error}");
            }
            for (point, errno) in volumes::release_all() {
                tracing::warn!("{} stays mounted: {errno}", point.display());
            }
            sync();
        });
        // Comes back only when refused.
        let _ = reboot(RebootMode::RB_AUTOBOOT);
    }
    std::process::exit(exit_code)
}

/// Ends a machine that has lost its init, within a second: `message` to the console, disks, restart.
pub fn fail(message: &str) -> ! {
    let line = format!("polyinit: {message}; restarting the machine\n");
    within(FAILED_DEADLINE / 4, move || tell(line.as_bytes()));
    restart(FAILED_DEADLINE * 3 / 4, 70)
}

/// To standard error, and to the console if that is another place. Either may be stuck.
fn tell(line: &[u8]) {
    let _ = io::stderr().write_all(line);
    let console = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open("/dev/console");
    if let Ok(mut console) = console
        && is_machines_init()
        && !console::leads_to_console(&io::stderr())
    {
        let _ = console.write_all(line);
    }
}

/// Does `work`, which may get stuck in the kernel, for no longer than `deadline`.
fn within(deadline: Duration, work: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel::<()>();
    let started = thread::Builder::new().spawn(move || {
        work();
        drop(done);
    });
    if started.is_ok() {
        // Disconnected when the work is done.
        let _ = wait.recv_timeout(deadline);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::isolation::{Namespace, Outcome, outcome};
    use std::time::Instant;

    // That the machine's own init restarts it is for tests with a machine to show.
    #[test]
    fn a_containers_init_exits_and_leaves_disks_and_kernel_alone() {
        let ended = outcome(
            "machine::power::tests::a_containers_init_exits_and_leaves_disks_and_kernel_alone",
            &[Namespace::Pid, Namespace::Mount],
            || {
                assert_eq!(getpid(), Pid::from_raw(1));
                assert!(!is_machines_init());
                restart(Duration::from_secs(5), 3)
            },
        );
        assert!(matches!(ended, Outcome::Ended(3) | Outcome::Skipped), "{ended:?}");
    }

    #[test]
    fn anybody_else_exits() {
        let ended = outcome("machine::power::tests::anybody_else_exits", &[], || {
            restart(Duration::from_secs(5), 3)
        });
        assert_eq!(ended, Outcome::Ended(3));
    }

    #[test]
    fn a_machine_that_fails_ends_within_a_second() {
        let start = Instant::now();
        let ended = outcome(
            "machine::power::tests::a_machine_that_fails_ends_within_a_second",
            &[],
            || fail("a test"),
        );
        assert_eq!(ended, Outcome::Ended(70));
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn work_that_is_stuck_is_not_waited_for() {
        let start = Instant::now();
        within(Duration::from_millis(30), thread::park);
        assert!(start.elapsed() < Duration::from_secs(5));
        let (tell, told) = mpsc::channel();
        within(Duration::from_secs(20), move || tell.send(1).expect("heard"));
        assert_eq!(told.try_recv(), Ok(1));
    }
}
