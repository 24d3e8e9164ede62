//! Every orphan is reaped, and nobody's child but an orphan.
//!
//! A process whose parent ended becomes a child of PID 1, and stays in the process table until PID 1 waits for it. The
//! usual loop on `waitpid(-1)` would also take the exit status of children that a task of ours waits for, such as the
//! workers. A list of our own children would not help either: a child can end before its starter has noted its number.
//!
//! The kernel knows the difference, for it keeps which *thread* a child belongs to: a child belongs to the thread that
//! forked it, and an orphan is given to the first living thread of its new parent, which is the main thread
//! (`find_new_reaper` in the kernel's `kernel/exit.c`). So:
//!
//! - the main thread starts no processes and does nothing but wait for its own, with `__WNOTHREAD` (wait(2)): those are
//!   the orphans;
//! - the life of init, with its runtime and everything that starts processes, runs on other threads.
//!
//! One gap is left: when a thread ends before a child that it started, that child goes to the main thread as well, and
//! a runtime may end threads that have nothing to do. But whoever waits for a child through tokio holds a pidfd of it,
//! opened by the same thread that forked it: so a child in the main thread's hands for which this process has a pidfd
//! is not an orphan, and is left to its owner. There is no moment at which a child could be mistaken: the pidfd is
//! older than the thread's end, and the thread's end is older than our finding the child.

use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;
use std::{fs, io, thread};

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl;
use nix::unistd::{Pid, getpid, gettid};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// Why there was no life at all.
#[derive(Debug, thiserror::Error)]
pub enum ReaperError {
    #[error("only the main thread is given orphans, and it is another thread that asks to reap them")]
    NotTheMainThread,
    #[error("becoming the one that orphans are given to failed: prctl(PR_SET_CHILD_SUBREAPER): {0}")]
    Subreaper(Errno),
    #[error("starting to watch for ended children failed: {0}")]
    Watch(io::Error),
    #[error("starting init's own thread failed: {0}")]
    Thread(io::Error),
}

/// The longest time for which an ended child that its owner does not fetch holds up the orphans behind it in the
/// kernel's queue.
const OWNER_PATIENCE: Duration = Duration::from_millis(20);

/// The pause after orphans were reaped: those that end meanwhile are reaped together. A storm of them costs a few
/// thousand system calls a second at most.
const BREATH: Duration = Duration::from_millis(20);

/// Runs `life` on a thread of its own and, on this one, reaps the orphans until it ends. Gives back what `life` gives,
/// or its panic.
///
/// To be called on the main thread, which must not have children that somebody else waits for. In PID 1 that is all.
/// Any other process becomes the one that its descendants' orphans are given to.
///
/// # Errors
/// When called on another thread, or when the system refuses a thread or a signal handler.
pub fn live<T: Send + 'static>(life: impl FnOnce() -> T + Send + 'static) -> Result<thread::Result<T>, ReaperError> {
    if gettid() != getpid() {
        return Err(ReaperError::NotTheMainThread);
    }
    if getpid() != Pid::from_raw(1) {
        prctl::set_child_subreaper(true).map_err(ReaperError::Subreaper)?;
    }
    let watch = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(ReaperError::Watch)?;
    let ended = {
        let _context = watch.enter();
        // Before the first process is started, so that none can end unheard.
        signal(SignalKind::child()).map_err(ReaperError::Watch)?
    };
    let (tell, told) = oneshot::channel();
    thread::Builder::new()
        .name("life".to_owned())
        .spawn(move || {
            let outcome = catch_unwind(AssertUnwindSafe(life));
            // The receiver outlives this thread.
            let _ = tell.send(outcome);
        })
        .map_err(ReaperError::Thread)?;
    Ok(watch.block_on(reap_until(told, ended)))
}

async fn reap_until<T>(mut life: oneshot::Receiver<thread::Result<T>>, mut ended: Signal) -> thread::Result<T> {
    loop {
        let swept = sweep();
        tokio::select! {
            outcome = &mut life => {
                sweep();
                return outcome.unwrap_or_else(|_| Err(Box::new("the life of init ended without a word")));
            }
            _ = ended.recv(), if swept != Swept::Some => {}
            () = tokio::time::sleep(OWNER_PATIENCE), if swept == Swept::UpToAnOwned => {}
            () = tokio::time::sleep(BREATH), if swept == Swept::Some => {}
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Swept {
    /// There was none.
    None,
    Some,
    /// Somebody's child, ended and not yet fetched, stands before the rest.
    UpToAnOwned,
}

/// Reaps every orphan that has ended.
fn sweep() -> Swept {
    let mut swept = Swept::None;
    while let Some(first) = next_ended() {
        // In this order: a child that is found now has its pidfd already, if anybody waits for it.
        let children = children_of_this_thread().unwrap_or_else(|| vec![first]);
        let awaited = awaited();
        let mut orphans = children.into_iter().filter(|child| !awaited.contains(child));
        let reaped = orphans.by_ref().filter(|orphan| reap(*orphan)).count();
        tracing::trace!("reaped {reaped} orphans");
        if reaped == 0 {
            return Swept::UpToAnOwned;
        }
        swept = Swept::Some;
    }
    swept
}

/// The children of this very thread, living and ended (proc_pid_task_children(5)); `None` where the kernel has no such list.
fn children_of_this_thread() -> Option<Vec<Pid>> {
    let list = fs::read_to_string(format!("/proc/self/task/{}/children", gettid())).ok()?;
    let numbers = list.split_ascii_whitespace().filter_map(|number| number.parse().ok());
    Some(numbers.map(Pid::from_raw).collect())
}

/// An ended child of this very thread, left as it is.
fn next_ended() -> Option<Pid> {
    wait_id(libc::P_ALL, 0, libc::WNOWAIT)
}

/// Reaps `child` if it has ended.
fn reap(child: Pid) -> bool {
    wait_id(libc::P_PID, child.as_raw().unsigned_abs(), 0).is_some()
}

/// waitid(2), for ended children of this thread, without waiting. `nix::sys::wait::waitid` is of no use here: it takes
/// a child that was killed by a real-time signal for an error.
#[allow(unsafe_code, reason = "a system call with a buffer")]
fn wait_id(kind: libc::idtype_t, id: libc::id_t, more: libc::c_int) -> Option<Pid> {
    let options = libc::WEXITED | libc::WNOHANG | libc::__WNOTHREAD | more;
    // SAFETY: all zeroes is a valid siginfo_t, a plain C structure.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes to `info` only, which lives until the call is over.
    let outcome = unsafe { libc::waitid(kind, id, &raw mut info, options) };
    // SAFETY: the kernel has filled in the fields of SIGCHLD, or left the zeroes, which mean that no child has ended.
    let pid = unsafe { info.si_pid() };
    (outcome == 0 && pid != 0).then(|| Pid::from_raw(pid))
}

/// The processes that this one holds a pidfd of. Without /proc there are none, and the main thread's children are all
/// taken for orphans.
fn awaited() -> Vec<Pid> {
    let open = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    open.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(pid_of_pidfd)
        .collect()
}

/// The process that `descriptor` stands for, if it is a pidfd (pidfd_open(2), proc_pid_fdinfo(5)).
fn pid_of_pidfd(descriptor: RawFd) -> Option<Pid> {
    let link = fs::read_link(Path::new("/proc/self/fd").join(descriptor.to_string())).ok()?;
    // `anon_inode:[pidfd]`, and since Linux 6.9 `pidfd:[inode]`.
    if !link.to_str()?.contains("pidfd") {
        return None;
    }
    let information = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).ok()?;
    let pid = information.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    pid.trim().parse().ok().map(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::isolation::{Namespace, isolated};
    use std::os::unix::process::ExitStatusExt;
    use std::time::Instant;
    use tokio::process::Command;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime")
    }

    /// The processes that are children of this one, with their states.
    fn children() -> Vec<(Pid, char)> {
        let me = getpid().as_raw();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
                continue;
            };
            let mut fields = stat.rsplit_once(") ").expect("a stat line").1.split(' ');
            let state = fields.next().expect("a state").chars().next().expect("a letter");
            if fields.next().expect("a parent").parse() == Ok(me) {
                found.push((Pid::from_raw(pid), state));
            }
        }
        found
    }

    fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done() {
            assert!(Instant::now() < deadline, "{what} never came: {:?}", children());
            thread::yield_now();
        }
    }

    /// Starts shells that leave an orphan each and end with a code of their own, all at once, and checks every code.
    async fn shells_with_orphans(count: usize) {
        let shells: Vec<_> = (0..count)
            .map(|i| {
                let code = i % 200;
                let script = format!("(exit 99) & (sleep 0.0{}; exit 98) & exit {code}", i % 5);
                let mut child = Command::new("sh").arg("-c").arg(script).spawn().expect("a shell");
                tokio::spawn(async move {
                    let status = child.wait().await.expect("its status is there to be fetched");
                    assert_eq!(status.code(), Some(code as i32));
                })
            })
            .collect();
        for shell in shells {
            shell.await.expect("the right status");
        }
    }

    fn everything_is_reaped() {
        let outcome = live(|| {
            runtime().block_on(shells_with_orphans(100));
            wait_until("a table without children", || children().is_empty());
            42
        });
        assert_eq!(outcome.expect("a life").expect("no panic"), 42);
    }

    #[test]
    fn pid_1_reaps_orphans_and_leaves_each_status_to_its_owner() {
        isolated(
            "machine::reaper::tests::pid_1_reaps_orphans_and_leaves_each_status_to_its_owner",
            &[Namespace::Pid, Namespace::Mount],
            everything_is_reaped,
        );
    }

    #[test]
    fn so_does_any_process_without_rights() {
        isolated(
            "machine::reaper::tests::so_does_any_process_without_rights",
            &[],
            everything_is_reaped,
        );
    }

    #[test]
    fn an_orphan_killed_by_a_real_time_signal_is_reaped() {
        isolated(
            "machine::reaper::tests::an_orphan_killed_by_a_real_time_signal_is_reaped",
            &[],
            || {
                let outcome = live(|| {
                    let status = std::process::Command::new("sh")
                        .args(["-c", "sh -c 'kill -40 $$' & exit 5"])
                        .status()
                        .expect("a shell");
                    assert_eq!(status.code(), Some(5));
                    wait_until("a table without children", || children().is_empty());
                });
                outcome.expect("a life").expect("no panic");
            },
        );
    }

    #[test]
    fn a_child_outlives_the_thread_that_started_it_and_keeps_its_status() {
        isolated(
            "machine::reaper::tests::a_child_outlives_the_thread_that_started_it_and_keeps_its_status",
            &[],
            || {
                let outcome = live(|| {
                    let runtime = runtime();
                    let handle = runtime.handle().clone();
                    let starter = thread::spawn(move || {
                        let _context = handle.enter();
                        Command::new("cat")
                            .stdin(std::process::Stdio::piped())
                            .spawn()
                            .expect("a child")
                    });
                    let mut child = starter.join().expect("started");
                    let pid = Pid::from_raw(child.id().expect("it runs") as i32);
                    // Ended, in the main thread's hands, and nobody fetches its status yet.
                    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("killed");
                    wait_until("an ended child", || children().contains(&(pid, 'Z')));
                    // An orphan that ends after it has to wait for its turn, and gets it.
                    let shell = std::process::Command::new("sh").args(["-c", "true & exit 0"]).status();
                    assert!(shell.expect("a shell").success());

                    let status = runtime.block_on(child.wait()).expect("its status is there");
                    assert_eq!(status.signal(), Some(9));
                    wait_until("a table without children", || children().is_empty());
                });
                outcome.expect("a life").expect("no panic");
            },
        );
    }

    #[test]
    fn a_panic_of_the_life_is_handed_on() {
        isolated("machine::reaper::tests::a_panic_of_the_life_is_handed_on", &[], || {
            let outcome: thread::Result<()> = live(|| panic!("no more")).expect("a life");
            let panic = outcome.expect_err("a panic");
            assert_eq!(panic.downcast_ref::<&str>(), Some(&"no more"));
        });
    }

    #[test]
    fn another_thread_than_the_main_one_is_turned_away() {
        let refused = live(|| ()).map(|_| ()).expect_err("tests have threads of their own");
        assert!(matches!(refused, ReaperError::NotTheMainThread));
    }
}
