//! Whether a program was killed for want of memory, and which programs the kernel kills first when the machine has none left.

use std::fmt;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::program::limits::Size;

/// Whether memory was the reason for a program's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    Enough,
    /// It used more than it may.
    Limit(Size),
    /// The kernel has killed something on this machine for want of memory, and this was killed.
    Machine,
}

/// What follows how the program ended, in the same sentence.
impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enough => Ok(()),
            Self::Limit(limit) => write!(f, " because it used more than its `memory`, {limit},"),
            Self::Machine => write!(f, " when the machine was out of memory"),
        }
    }
}

/// How many processes the kernel has killed for want of memory since it was started (proc_vmstat(5)).
pub(super) fn kills() -> u64 {
    let counters = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = counters.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.parse().ok()).unwrap_or_default()
}

/// Has the kernel kill this process before others of the machine, should memory run out (proc_pid_oom_score_adj(5)). For
/// between fork and exec: nothing but system calls.
pub(super) fn be_killed_first() {
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    if let Ok(file) = open(c"/proc/self/oom_score_adj", flags, Mode::empty()) {
        let _ = nix::unistd::write(file, b"500");
    }
}
