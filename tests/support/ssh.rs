//! A client of a machine's SSH server.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A new key in `folder`; its public half is in the file beside it.
pub fn key(folder: &Path, name: &str) -> PathBuf {
    let key = folder.join(name);
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key)
        .status();
    assert!(made.unwrap().success());
    key
}

/// A port that is free now, and hardly anybody else's in a second.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Has root run `command` on the machine that a port of this host leads to.
pub fn log_in(port: u16, key: &Path, command: &str) -> Output {
    let mut ssh = Command::new("ssh");
    ssh.arg("-p")
        .arg(port.to_string())
        .arg("-i")
        .arg(key)
        .args(["-F", "/dev/null"]);
    for option in [
        "BatchMode=yes",
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "ConnectTimeout=10",
    ] {
        ssh.args(["-o", option]);
    }
    ssh.args(["root@127.0.0.1", command]).output().unwrap()
}
