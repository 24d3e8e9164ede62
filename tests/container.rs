//! An image in a container runtime (podman over runc), as docs/images.md says it: its PID 1 is polyinit, and a program of
//! many components works in it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::serve::shop_works;
use crate::support::{PATIENCE, built, leftovers};

/// Marks every process of the container in its environment.
const MARK: &str = "POLYINIT_TEST_CONTAINER";

/// podman with a storage of its own, which goes with this, and whatever runs from it.
struct Podman {
    folder: tempfile::TempDir,
}

impl Podman {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder }
    }

    fn command(&self, words: &[&str]) -> Command {
        let place = |name: &str| self.folder.path().join(name).display().to_string();
        let mut all = as_root("podman");
        all.args(["--root", &place("images"), "--runroot", &place("running")]);
        all.args([
            "--tmpdir",
            &place("tmp"),
            "--runtime",
            "runc",
            "--cgroup-manager",
            "cgroupfs",
        ]);
        all.args(words);
        all
    }

    /// What it says, or why containers don't run on this machine.
    fn run(&self, words: &[&str]) -> String {
        let output = self.command(words).output();
        let output =
            output.unwrap_or_else(|error| panic!("podman can't be run ({error}): tests/host/setup installs it"));
        let told = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "`podman {}`: {errors}{told}", words.join(" "));
        // What a container has printed comes on both.
        if words[0] == "logs" {
            format!("{told}\n{errors}")
        } else {
            told
        }
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.command(&["rm", "--all", "--force", "--time", "0"]).output();
        let _ = as_root("rm").arg("-rf").arg(self.folder.path()).output();
    }
}

fn as_root(program: &str) -> Command {
    if nix::unistd::Uid::effective().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["-n", program]);
    command
}

/// The archive that `make images` builds.
fn archive() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/images/debian-12.oci");
    assert!(
        path.exists(),
        "{} is not built: run make images, or make test",
        path.display()
    );
    path
}

#[tokio::test]
async fn the_shop_works_in_a_container_and_ends_with_it() {
    let podman = Podman::new();
    let image = podman.run(&["pull", "--quiet", &format!("oci-archive:{}", archive().display())]);
    let mark = format!("{MARK}={}", std::process::id());
    let app = format!("{}:/app:ro", built("polyglot").display());
    let id = podman.run(&[
        "run",
        "--detach",
        "--network",
        "host",
        "--volume",
        &app,
        "--env",
        &mark,
        // The usual ones are more than a machine may have that is itself a container.
        "--ulimit",
        "nofile=4096:4096",
        "--ulimit",
        "nproc=5000:5000",
        &image,
        "serve",
        "/app",
        "--listen",
        "127.0.0.1:0",
    ]);
    let deadline = Instant::now() + PATIENCE;
    let address = loop {
        let log = podman.run(&["logs", &id]);
        if let Some((_, address)) = log.split_once("serving on http://") {
            break address.split_whitespace().next().unwrap().to_owned();
        }
        let state = podman.run(&["inspect", "--format", "{{.State.Status}}", &id]);
        assert!(state == "running" && Instant::now() < deadline, "{state}: {log}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let first = podman.run(&["inspect", "--format", "{{.State.Pid}}", &id]);
    let status = std::fs::read_to_string(format!("/proc/{first}/status")).unwrap();
    let numbers = status.lines().find(|line| line.starts_with("NSpid:")).unwrap();
    assert!(
        status.starts_with("Name:\tpolyinit\n") && numbers.ends_with("\t1"),
        "{status}"
    );
    shop_works(&address).await;
    // The environment that a container is given is its programs', too: of the interpreters of two components here.
    let pythons = "grep -l python3 /proc/[0-9]*/comm | sed s/comm/environ/";
    let count = format!("grep -l {mark} $({pythons}) | wc -l");
    let marked: usize = podman.run(&["exec", &id, "sh", "-c", &count]).parse().unwrap();
    assert!(marked >= 2, "{marked}");

    let began = Instant::now();
    podman.run(&["kill", "--signal", "TERM", &id]);
    let code = podman.run(&["wait", &id]);
    assert_eq!(code, "0", "{}", podman.run(&["logs", &id]));
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    // Who is not root sees no environment of root's processes, but that there is none of this number.
    assert!(!Path::new("/proc").join(&first).exists(), "PID 1 is left");
    assert_eq!(leftovers(&mark), Vec::<String>::new(), "left behind");
}
