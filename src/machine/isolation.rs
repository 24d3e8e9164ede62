//! For tests that ask the kernel for real mounts, networks and orphans: a process of its own in namespaces of its own,
//! so that nothing of this reaches the machine that runs the tests.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio, exit};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

const INSIDE: &str = "POLYINIT_ISOLATED_TEST";
/// Exit code of automake's test harness for "skipped".
const SKIPPED: i32 = 77;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    Mount,
    /// The body runs as PID 1.
    Pid,
    Network,
    HostName,
}

/// Runs `body` as the only test of a process of its own, on the main thread of a child in new namespaces. `name` is
/// the full path of the calling test.
///
/// Where namespaces are not allowed, says so on stderr and lets the test pass.
pub fn isolated(name: &str, namespaces: &[Namespace], body: fn()) {
    let status = outcome(name, namespaces, body);
    assert!(
        matches!(status, Outcome::Ended(0) | Outcome::Skipped),
        "{name} ended in isolation with {status:?}: see above"
    );
}

/// How the isolated body ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Ended(i32),
    Signalled(i32),
    Skipped,
}

/// As [`isolated`], and tells how the body ended.
pub fn outcome(name: &str, namespaces: &[Namespace], body: fn()) -> Outcome {
    if std::env::var(INSIDE).is_ok_and(|inside| inside == name) {
        // Beyond this point the process belongs to this one test.
        exit(run_in_child(namespaces, body));
    }
    // A root that was left behind can't be tidied up from inside.
    let folder = tempfile::tempdir().expect("a folder");
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, name)
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .output()
        .expect("the test program starts again");
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    match output.status.code() {
        Some(SKIPPED) => {
            eprintln!("SKIPPED: {name}: this machine does not allow the namespaces {namespaces:?}");
            Outcome::Skipped
        }
        // As shells tell of a child that was killed.
        Some(code) if code > 128 => Outcome::Signalled(code - 128),
        Some(code) => Outcome::Ended(code),
        None => Outcome::Signalled(0),
    }
}

#[allow(unsafe_code)]
fn run_in_child(namespaces: &[Namespace], body: fn()) -> i32 {
    // SAFETY: the test harness's other threads hold no lock that the child needs: it waits for this one test, and the
    // C library keeps its allocator usable across a fork.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Parent { child } => match waitpid(child, None).expect("wait for the child") {
            WaitStatus::Exited(_, code) => code,
            WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
            _ => 1,
        },
        ForkResult::Child => {
            let flags = namespaces.iter().fold(CloneFlags::empty(), |flags, one| {
                flags
                    | match one {
                        Namespace::Mount => CloneFlags::CLONE_NEWNS,
                        Namespace::Pid => CloneFlags::CLONE_NEWPID,
                        Namespace::Network => CloneFlags::CLONE_NEWNET,
                        Namespace::HostName => CloneFlags::CLONE_NEWUTS,
                    }
            });
            if let Err(errno) = unshare(flags) {
                eprintln!("unshare: {errno}");
                exit(SKIPPED);
            }
            if namespaces.contains(&Namespace::Mount) {
                let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
            }
            if namespaces.contains(&Namespace::Pid) {
                // The next child is PID 1 of the new namespace.
                exit(run_in_child_without(namespaces, body));
            }
            exit(verdict(body));
        }
    }
}

#[allow(unsafe_code)]
fn run_in_child_without(namespaces: &[Namespace], body: fn()) -> i32 {
    // SAFETY: this process has one thread.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Parent { child } => match waitpid(child, None).expect("wait for PID 1") {
            WaitStatus::Exited(_, code) => code,
            WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
            _ => 1,
        },
        ForkResult::Child => {
            if namespaces.contains(&Namespace::Mount) {
                mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>).expect("a /proc of its own");
            }
            exit(verdict(body));
        }
    }
}

fn verdict(body: fn()) -> i32 {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(()) => 0,
        Err(_) => 101,
    }
}
