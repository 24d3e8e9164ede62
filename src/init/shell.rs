//! The protocol's `!` command: a command line, run as root, its output sent back.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::open_files;

/// How long a command may run.
const LIMIT: Duration = Duration::from_secs(60);

/// The most that is sent back, in bytes.
const OUTPUT: u64 = 1 << 20;

/// Runs `command` with `/bin/sh -c`, and returns what it printed, errors included, and its status if that is not 0.
pub async fn run(command: &str) -> Vec<u8> {
    let child = Command::from(open_files::command("/bin/sh"))
        .args(["-c", &format!("exec 2>&1\n{command}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return format!("/bin/sh can't be started: {error}\n").into_bytes(),
    };
    let mut output = Vec::new();
    let finished = async {
        if let Some(stdout) = child.stdout.take() {
            stdout.take(OUTPUT).read_to_end(&mut output).await?;
        }
        child.wait().await
    };
    let note = match tokio::time::timeout(LIMIT, finished).await {
        Ok(Ok(status)) if status.success() => return output,
        Ok(Ok(status)) => status.to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("killed after {} s", LIMIT.as_secs()),
    };
    output.extend_from_slice(format!("{note}\n").as_bytes());
    output
}
