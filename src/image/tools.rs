//! What a build has other programs do, mmdebstrap and pip above all: each leads a process group, so that all that it started
//! can be ended with it. mmdebstrap itself passes over SIGTERM, for its children to end first.

use std::io;
use std::mem::replace;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use parking_lot::Mutex;

/// What they have between SIGTERM and SIGKILL, to remove what is half done.
const GRACE: Duration = Duration::from_secs(5);

static AT: Mutex<At> = Mutex::new(At::Nothing);

/// What is at work.
enum At {
    Nothing,
    /// The group of this leader.
    Work(Pid),
    /// Nothing, and nothing more is to be.
    Over,
}

/// Starts `command` and has `work` see to it until it has ended.
///
/// # Errors
/// It can't be started, or nothing is any more, after [`abandon`].
pub fn with<T>(command: &mut Command, work: impl FnOnce(Child) -> io::Result<T>) -> io::Result<T> {
    let child = {
        // Held while it is started: it must not be missed by who is to end it.
        let mut at = AT.lock();
        if matches!(*at, At::Over) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let child = command.process_group(0).spawn()?;
        *at = At::Work(Pid::from_raw(child.id().cast_signed()));
        child
    };
    let done = work(child);
    let mut at = AT.lock();
    if matches!(*at, At::Work(_)) {
        *at = At::Nothing;
    }
    done
}

/// Ends the one that is at work, for a process that is to end now, and has none begin.
pub fn abandon() {
    let At::Work(group) = replace(&mut *AT.lock(), At::Over) else {
        return;
    };
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
