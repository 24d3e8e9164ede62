//! What a build has other programs do, mmdebstrap and pip above all: each leads a process group, so that all that it started
//! can be ended with it. mmdebstrap itself passes over SIGTERM, for its children to end first.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use parking_lot::Mutex;

/// What they have between SIGTERM and SIGKILL, to remove what is half done.
const GRACE: Duration = Duration::from_secs(5);

/// The one that is at work.
static GROUP: Mutex<Option<Pid>> = Mutex::new(None);

/// Starts `command` and has `work` see to it until it has ended.
///
/// # Errors
/// It can't be started.
pub fn with<T>(command: &mut Command, work: impl FnOnce(Child) -> io::Result<T>) -> io::Result<T> {
    let child = command.process_group(0).spawn()?;
    *GROUP.lock() = i32::try_from(child.id()).ok().map(Pid::from_raw);
    let done = work(child);
    *GROUP.lock() = None;
    done
}

/// Ends the one that is at work, for a process that is to end now.
pub fn abandon() {
    let Some(group) = *GROUP.lock() else { return };
    let deadline = Instant::now() + GRACE;
    let _ = killpg(group, Signal::SIGTERM);
    // An error means that none of the group is left.
    while killpg(group, None).is_ok() {
        if Instant::now() >= deadline {
            let _ = killpg(group, Signal::SIGKILL);
            return;
        }
        sleep(Duration::from_millis(50));
    }
}
