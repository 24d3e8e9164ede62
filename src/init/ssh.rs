//! The image's SSH server, for a machine that was given keys: OpenSSH's sshd, or dropbear. Keys only; host keys are made
//! on the first boot, which is every boot where the image can't be written to.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::services::Services;
use crate::engine::Settings;
use crate::open_files;

const OPENSSH: [&str; 2] = ["/usr/sbin/sshd", "/usr/local/sbin/sshd"];
const DROPBEAR: [&str; 2] = ["/usr/sbin/dropbear", "/usr/bin/dropbear"];
const KEYGEN: &str = "/usr/bin/ssh-keygen";
const HOST_KEY: &str = "/etc/ssh/ssh_host_ed25519_key";

/// Sessions have no more time than this to end with the machine.
const GRACE: Duration = Duration::from_millis(200);

/// Starts the image's server, if it has one; it is kept running with the other services. Making host keys takes a
/// moment, so that this is for a task of its own.
pub async fn start(services: &Services, settings: &Settings) {
    let is_there = |path: &&str| Path::new(path).exists();
    if let Some(sshd) = OPENSSH.into_iter().find(is_there) {
        if let Err(error) = prepare_openssh().await {
            return tracing::warn!("no SSH server: {error}");
        }
        let options = ["PasswordAuthentication=no", "PermitRootLogin=prohibit-password"];
        let mut command = vec![sshd.to_owned(), "-D".to_owned(), "-e".to_owned()];
        command.extend(
            options
                .into_iter()
                .flat_map(|option| ["-o".to_owned(), option.to_owned()]),
        );
        services.start("sshd", command, settings, GRACE);
    } else if let Some(dropbear) = DROPBEAR.into_iter().find(is_there) {
        if let Err(error) = make_directory("/etc/dropbear", 0o700) {
            return tracing::warn!("no SSH server: {error}");
        }
        // In the foreground, log on standard error, host keys when they are needed, no passwords.
        let command = [dropbear, "-F", "-E", "-R", "-s"].map(str::to_owned).to_vec();
        services.start("dropbear", command, settings, GRACE);
    } else {
        tracing::info!("the image has no SSH server: the keys are of use to nobody");
    }
}

async fn prepare_openssh() -> io::Result<()> {
    // Where sshd locks itself in before it knows a client (sshd(8)).
    make_directory("/run/sshd", 0o755)?;
    let keys = std::fs::read_dir("/etc/ssh")?.flatten();
    let is_key = |name: &str| name.starts_with("ssh_host_") && name.ends_with("_key");
    if keys
        .map(|entry| entry.file_name())
        .any(|name| name.to_str().is_some_and(is_key))
    {
        return Ok(());
    }
    let made = Command::from(open_files::command(KEYGEN))
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", HOST_KEY])
        .stdin(Stdio::null())
        .output()
        .await?;
    match made.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "{KEYGEN} ended with {}: {}",
            made.status,
            String::from_utf8_lossy(&made.stderr).trim_end()
        ))),
    }
}

fn make_directory(path: &str, mode: u32) -> io::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|error| io::Error::new(error.kind(), format!("{path} can't be made: {error}")))
}
