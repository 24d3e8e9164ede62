//! The programs that this process has started and is not done with: to be shown, and to be ended when it ends.

use std::time::{Duration, Instant};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use parking_lot::Mutex;

use super::session::kill_session;

/// How long processes that were killed may take to be gone, at the end of this one.
const LAST_LOOK: Duration = Duration::from_millis(500);

static LIVING: Mutex<Vec<(String, Pid)>> = Mutex::new(Vec::new());

/// The programs that were started and are not done with: their components' names, and who leads their sessions.
pub fn living() -> Vec<(String, Pid)> {
    LIVING.lock().clone()
}

/// Ends all programs when this process is about to end, those too that something in the background still has, and waits
/// for them to be gone. To be called when nobody else waits for children any more.
pub fn end_all() {
    for (_, leader) in living() {
        // One that is no child any more was reaped, and its number may be another's.
        if matches!(waitpid(leader, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive)) {
            kill_session(leader);
        }
    }
    let deadline = Instant::now() + LAST_LOOK;
    // Others were killed a moment ago, and no kill is done when kill(2) returns.
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            if Instant::now() >= deadline {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A program's place among the [`living`] ones.
#[derive(Debug)]
pub(super) struct Listed(Pid);

impl Listed {
    pub(super) fn new(component: &str, leader: Pid) -> Self {
        let mut living = LIVING.lock();
        living.push((component.to_owned(), leader));
        Self(leader)
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut living = LIVING.lock();
        living.retain(|(_, leader)| *leader != self.0);
    }
}
