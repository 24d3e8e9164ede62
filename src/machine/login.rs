//! A shell for root on a terminal of the machine, such as its serial console: for who asks for it in the options, and
//! sits at the machine's console, which is all the permission that there is to be had.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use tokio::process::{Child, Command};

use super::console;
use crate::open_files;

/// What is started, the first one that the image has.
const SHELLS: [&str; 3] = ["/bin/bash", "/bin/sh", "/bin/busybox"];

/// From one shell's end to the next one's start.
const PAUSE: Duration = Duration::from_secs(1);

/// Why there is no shell.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    #[error("no shell on {}: the image has none of {SHELLS:?}", terminal.display())]
    NoShell { terminal: PathBuf },
    #[error("no shell on {}: {source}", terminal.display())]
    Start { terminal: PathBuf, source: io::Error },
}

nix::ioctl_write_int_bad!(take_terminal, libc::TIOCSCTTY);

/// Keeps a login shell on `terminal` until dropped: one that ends is followed by another.
///
/// # Errors
/// When there is no such terminal, or no shell.
pub async fn keep_shell(terminal: &Path) -> Result<(), LoginError> {
    let shell = SHELLS.into_iter().find(|shell| Path::new(shell).exists());
    let shell = shell.ok_or_else(|| LoginError::NoShell {
        terminal: terminal.to_owned(),
    })?;
    loop {
        let ended = async { start(shell, terminal)?.wait().await };
        let status = ended.await.map_err(|source| LoginError::Start {
            terminal: terminal.to_owned(),
            source,
        })?;
        tracing::debug!("the shell on {} ended: {status}", terminal.display());
        tokio::time::sleep(PAUSE).await;
    }
}

fn start(shell: &str, terminal: &Path) -> io::Result<Child> {
    let terminal = console::open(terminal)?;
    let mut command = open_files::command(shell);
    if shell.ends_with("busybox") {
        command.arg("sh");
    } else {
        // A login shell is one whose name begins with a hyphen (bash(1), INVOCATION).
        command.arg0("-sh");
    }
    command
        .current_dir("/root")
        .env_clear()
        .env("HOME", "/root")
        .env("USER", "root")
        .env("TERM", "vt220")
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(terminal.try_clone()?)
        .stdout(terminal.try_clone()?)
        .stderr(terminal.try_clone()?);
    let descriptor = terminal.as_raw_fd();
    let prepare = move || {
        nix::unistd::setsid()?;
        // SAFETY: `terminal` lives until spawn has returned, and the child has its own copy of the descriptor.
        #[allow(unsafe_code)]
        unsafe { take_terminal(descriptor, 0) }?;
        Ok(())
    };
    // SAFETY: two system calls between fork and exec, nothing else (signal-safety(7)).
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(prepare)
    };
    Command::from(command).kill_on_drop(true).spawn()
}
