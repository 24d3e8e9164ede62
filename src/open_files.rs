//! How many files this process may have open at once: each client takes one, those of programs behind us two.
//!
//! The kernel's default, 1,024, is for the sake of programs that use select(2), which can't tell of a descriptor beyond
//! that. So we take all that we may have, and the programs that we start get back what we were started with: what Go's
//! runtime and systemd do.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What PID 1 of a machine has room for, as under systemd. It is started with 4,096 at most, the kernel's default.
pub const OF_A_MACHINE: u64 = 512 << 10;

/// The limits that programs get: the soft one is what this process was started with.
static OF_PROGRAMS: OnceLock<(u64, u64)> = OnceLock::new();

/// Takes as many as this process may have; and may have `more` at least, where it is allowed to say so itself.
pub fn take_all(more: Option<u64>) {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    let wanted = hard.max(more.unwrap_or_default());
    let taken = [wanted, hard]
        .into_iter()
        .find(|all| setrlimit(Resource::RLIMIT_NOFILE, *all, *all).is_ok());
    if let Some(all) = taken {
        let _ = OF_PROGRAMS.set((soft, all));
    }
}

/// Gives a program the limit that it would have without us. For between fork(2) and execve(2): a system call, if any.
///
/// # Errors
/// Those of setrlimit(2).
pub fn give_back() -> io::Result<()> {
    if let Some((soft, hard)) = OF_PROGRAMS.get() {
        setrlimit(Resource::RLIMIT_NOFILE, *soft, *hard)?;
    }
    Ok(())
}

/// A command whose program gets it.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    // SAFETY: `give_back` makes a system call, and neither allocates nor takes a lock (signal-safety(7)).
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(give_back)
    };
    command
}
