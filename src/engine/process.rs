//! A native program as the kernel sees it: started in a session of its own, watched, and ended with all that it
//! started. Both the executables and the workers of the languages are such processes; what they say to us and how is
//! their engines' matter.

mod account;
mod birth;
mod cgroup;
mod confine;
mod living;
mod memory;
mod session;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use super::Settings;
use super::keeper::Kept;
use super::output::{self, Tail};
use crate::open_files;
use crate::program::Component;
use crate::program::limits::Size;
use account::Accounts;
use birth::on_lasting_thread;
use living::Listed;
use memory::Memory;

pub use confine::Confinement;
pub use living::{end_all, living};
pub use session::members;
use session::{Kin, kill_session, kin};

/// How long the last output of a program that has ended may take to arrive. It is in the pipe already, unless a child
/// that left the session still holds the other end.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Another thread that forks at the wrong moment holds a file that we have just written open for writing, for as long
/// as its child takes to call execve(2): ETXTBSY, which is over in microseconds.
const TEXT_BUSY_PATIENCE: Duration = Duration::from_secs(1);

/// What to start, and with what.
#[derive(Debug)]
pub struct Launch {
    /// The component's name, for the log.
    pub component: String,
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    /// Working directory.
    pub directory: PathBuf,
    /// The whole environment: nothing of ours gets to the program beside it.
    pub environment: Vec<(String, String)>,
    /// A descriptor that the program gets under the same number that it has here; tell it with an argument or a
    /// variable. Every other one of ours is closed.
    pub channel: Option<OwnedFd>,
    pub confinement: Confinement,
}

/// A program that was started. Dropping it kills it and all that it started.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// The session and the process group that the program leads: its own process id.
    leader: Pid,
    tail: Tail,
    ended: Option<Exit>,
    /// Its place in the machine, where that keeps programs, or where its limits are.
    kept: Option<Box<dyn Kept>>,
    /// The most memory that it may use.
    memory: Option<Size>,
    /// Processes that the kernel had killed on this machine for want of memory when this one was started.
    killed_before: u64,
    _listed: Listed,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    status: ExitStatus,
    memory: Memory,
}

/// The environment of `component`: that of every program, then its own.
pub fn environment(component: &Component, settings: &Settings) -> Vec<(String, String)> {
    let mut environment = base_environment(settings);
    let keys = &component.keys;
    let identity = keys
        .user
        .as_ref()
        .map(|user| Accounts::here().identity(Some(user), None));
    if let Some(home) = identity.and_then(|identity| identity.ok()?.home) {
        environment.push(("HOME".to_owned(), home.to_string_lossy().into_owned()));
    }
    let own = component.environment.iter();
    environment.extend(own.map(|(name, value)| (name.clone(), value.clone())));
    environment
}

/// The environment of every program: the basics that it may count on, then what the machine names.
pub fn base_environment(settings: &Settings) -> Vec<(String, String)> {
    let inherited = |name: &str, default: &str| {
        let value = std::env::var(name).ok().filter(|value| !value.is_empty());
        (name.to_owned(), value.unwrap_or_else(|| default.to_owned()))
    };
    let mut environment = vec![
        inherited("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        inherited("HOME", "/root"),
        inherited("LANG", "C.UTF-8"),
    ];
    environment.extend(settings.environment.iter().cloned());
    environment
}

impl Launch {
    /// Starts the program: in its own session, stdin empty, stdout and stderr to the log, to be killed by the kernel
    /// if this process dies first.
    ///
    /// # Errors
    /// Those of fork(2), chdir(2) and execve(2); limits that this machine can't enforce.
    pub async fn start(self) -> io::Result<Process> {
        let patience = Instant::now() + TEXT_BUSY_PATIENCE;
        let mut launch = self;
        loop {
            let (back, started) = on_lasting_thread(move || {
                let started = launch.spawn();
                (launch, started)
            })
            .await?;
            launch = back;
            match started {
                Err(error) if error.raw_os_error() == Some(Errno::ETXTBSY as i32) && Instant::now() < patience => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                started => return started,
            }
        }
    }

    fn spawn(&self) -> io::Result<Process> {
        let mut command = Command::from(open_files::command(&self.program));
        command
            .args(&self.arguments)
            .current_dir(&self.directory)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let parent = nix::unistd::getpid();
        let channel = self.channel.as_ref().map(AsRawFd::as_raw_fd);
        let kept = self.confinement.place(&self.component)?;
        let confinement = self.confinement.ready();
        let entrance = kept.as_ref().map(|kept| kept.entrance()).transpose()?;
        let prepare = move || {
            if let Some(entrance) = &entrance {
                nix::unistd::write(entrance, b"0")?;
                memory::be_killed_first();
            }
            nix::unistd::setsid()?;
            confinement.enter()?;
            // Not before: who becomes somebody else is not to be killed any more.
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            if nix::unistd::getppid() != parent {
                // We died between fork and prctl: nobody would ever send that signal.
                return Err(Errno::ESRCH.into());
            }
            close_on_exec_from(3);
            if let Some(channel) = channel {
                // SAFETY: `self.channel` owns the descriptor and outlives the call of `spawn` below, and the child
                // has a copy of our descriptor table, so that the number is open here.
                #[allow(unsafe_code)]
                let channel = unsafe { std::os::fd::BorrowedFd::borrow_raw(channel) };
                fcntl(channel, FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec of a process with threads only async-signal-safe functions may run
        // (signal-safety(7)): `prepare` makes system calls and neither allocates nor takes a lock.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(prepare)
        };
        let mut child = command.spawn()?;
        let leader = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .map(Pid::from_raw)
            .ok_or_else(|| io::Error::other("the program ended before it could be watched"))?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(io::Error::other("the program's output is not piped"));
        };
        let tail = output::follow(&self.component, stdout, stderr);
        Ok(Process {
            child,
            leader,
            tail,
            ended: None,
            kept,
            memory: self.confinement.memory(),
            killed_before: memory::kills(),
            _listed: Listed::new(&self.component, leader),
        })
    }
}

impl Process {
    /// Puts a process that was started ahead under the limits that the manifest has for it.
    ///
    /// # Errors
    /// This machine can't enforce them.
    pub fn confine(&mut self, confinement: &Confinement) -> io::Result<()> {
        match &self.kept {
            Some(kept) => confinement.limit(&**kept)?,
            None => self.kept = confinement.place_of(self.leader)?,
        }
        self.memory = confinement.memory();
        Ok(())
    }

    /// The program's process id, which also is the id of its session and its process group.
    pub fn leader(&self) -> Pid {
        self.leader
    }

    /// Whether it has ended by now, as far as the kernel says.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// The program's last lines.
    pub fn tail(&self) -> &Tail {
        &self.tail
    }

    /// Waits for the program's end. Whatever it started and left behind in its session is killed then. May be dropped
    /// and called again.
    ///
    /// # Errors
    /// Those of waitpid(2): somebody else has reaped the child.
    pub async fn ended(&mut self) -> io::Result<Exit> {
        if let Some(exit) = self.ended {
            return Ok(exit);
        }
        let status = self.child.wait().await?;
        let exit = Exit {
            status,
            memory: self.memory(status),
        };
        self.ended = Some(exit);
        // The leader's id is free from here on, but as long as any process is in the group or the session the kernel
        // gives it to nobody else; and if none is, ids being handed out in a circle, nobody has it yet.
        self.kill_all();
        Ok(exit)
    }

    fn memory(&self, status: ExitStatus) -> Memory {
        let ran_out = self.kept.as_deref().is_some_and(Kept::ran_out_of_memory);
        let was_killed = status.signal() == Some(Signal::SIGKILL as i32);
        match self.memory {
            Some(limit) if ran_out => Memory::Limit(limit),
            None if ran_out => Memory::Machine,
            _ if was_killed && memory::kills() > self.killed_before => Memory::Machine,
            _ => Memory::Enough,
        }
    }

    fn kill_all(&self) {
        kill_session(self.leader);
        // What has left the session can't leave this.
        if let Some(kept) = &self.kept {
            kept.kill();
        }
    }

    /// The last lines, once the program has ended: waits for those still in the pipe.
    pub async fn last_words(&self) -> String {
        self.tail.text_at_end(LAST_WORDS).await
    }

    /// Sends `signal` to the program and its process group.
    pub fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            // ESRCH, the only error possible towards our own child, means that there is nobody to tell.
            let _ = killpg(self.leader, signal);
        }
    }

    /// Ends the program: SIGTERM to its group, and SIGKILL to all that is left of its session after `grace`.
    ///
    /// # Errors
    /// As [`Process::ended`].
    pub async fn stop(&mut self, grace: Duration) -> io::Result<Exit> {
        let deadline = tokio::time::Instant::now() + grace;
        // Those in sessions of their own are not to be found any more once the leader has ended.
        let kin = kin(self.leader);
        self.signal(Signal::SIGTERM);
        let all_ended = async {
            self.child.wait().await?;
            // A shell that is told to end does so at once and leaves the server that it started to its own shutdown.
            let mut pause = Duration::from_millis(1);
            while kin.iter().any(Kin::is_alive) || !members(self.leader).is_empty() {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(20));
            }
            Ok(())
        };
        if let Ok(Err(error)) = tokio::time::timeout_at(deadline, all_ended).await {
            return Err(error);
        }
        self.kill_all();
        kin.iter().for_each(Kin::kill);
        self.ended().await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.kill_all();
        }
    }
}

impl Exit {
    /// Its status, where it ended of itself.
    pub fn code(self) -> Option<i32> {
        self.status.code()
    }

    /// Whether the program ended of itself and with status 0.
    pub fn success(self) -> bool {
        self.status.success()
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => write!(f, "exited with status {code}"),
            (None, Some(number)) => match Signal::try_from(number) {
                Ok(signal) => write!(f, "was killed by {signal}"),
                Err(_) => write!(f, "was killed by signal {number}"),
            },
            (None, None) => write!(f, "ended ({})", self.status),
        }?;
        write!(f, "{}", self.memory)
    }
}

/// Marks every descriptor from `first` on to be closed by execve(2): ours are anyway, but those that we were started
/// with ourselves may not be. Linux before 5.11 can't (close_range(2)); there they stay as they are.
fn close_on_exec_from(first: nix::libc::c_uint) {
    // SAFETY: only flags of descriptors change, and only in a child that is about to call execve(2).
    #[allow(unsafe_code)]
    unsafe {
        nix::libc::syscall(
            nix::libc::SYS_close_range,
            first,
            nix::libc::c_uint::MAX,
            nix::libc::CLOSE_RANGE_CLOEXEC,
        )
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::{SECONDS, until};
    use tokio::io::AsyncReadExt;

    fn shell(script: &str) -> Launch {
        Launch {
            component: "test".to_owned(),
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            directory: "/".into(),
            environment: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
            channel: None,
            confinement: Confinement::default(),
        }
    }

    #[tokio::test]
    async fn tells_status_and_last_words() {
        let mut process = shell("echo out; echo sorry >&2; exit 3").start().await.unwrap();
        let exit = process.ended().await.unwrap();
        assert_eq!(exit.to_string(), "exited with status 3");
        assert_eq!(process.last_words().await, "sorry");
        assert_eq!(process.ended().await.unwrap(), exit);
    }

    #[tokio::test]
    async fn tells_the_signal() {
        let mut process = shell("kill -SEGV $$").start().await.unwrap();
        assert_eq!(process.ended().await.unwrap().to_string(), "was killed by SIGSEGV");
    }

    #[tokio::test]
    async fn gives_only_the_environment_named() {
        let mut process = shell("env >&2").start().await.unwrap();
        process.ended().await.unwrap();
        let mut names: Vec<String> = process
            .last_words()
            .await
            .lines()
            .filter_map(|line| Some(line.split_once('=')?.0.to_owned()))
            .collect();
        names.retain(|name| name != "PWD" && name != "_" && name != "SHLVL");
        assert_eq!(names, ["PATH"]);
    }

    #[tokio::test]
    async fn is_in_its_own_session() {
        let process = shell("sleep 100").start().await.unwrap();
        assert_eq!(nix::unistd::getsid(Some(process.leader())).unwrap(), process.leader());
    }

    #[tokio::test]
    async fn kills_what_the_program_leaves_behind() {
        let mut process = shell("sleep 100 & sleep 100 & exit 0").start().await.unwrap();
        assert!(process.ended().await.unwrap().success());
        until("the sleeps are gone", || members(process.leader()).is_empty()).await;
    }

    #[tokio::test]
    async fn stops_gently() {
        let mut process = shell("trap 'echo bye >&2; exit 7' TERM; echo up; while :; do sleep 0.01; done")
            .start()
            .await
            .unwrap();
        until("the trap is set", || process.tail().text() == "up").await;
        let exit = process.stop(SECONDS).await.unwrap();
        assert_eq!(exit.to_string(), "exited with status 7");
        assert_eq!(process.last_words().await.lines().last(), Some("bye"));
    }

    #[tokio::test]
    async fn waits_for_the_children_of_a_shell() {
        let server = "trap 'sleep 0.1; echo saved >&2; exit' TERM; echo up; while :; do sleep 0.01; done";
        let mut process = shell(&format!("sh -c \"{server}\" & wait")).start().await.unwrap();
        until("the trap is set", || process.tail().text() == "up").await;
        process.stop(SECONDS).await.unwrap();
        assert_eq!(process.last_words().await.lines().last(), Some("saved"));
    }

    #[tokio::test]
    async fn kills_what_does_not_stop() {
        let mut process = shell("trap '' TERM; echo up; while :; do sleep 0.01; done")
            .start()
            .await
            .unwrap();
        until("the trap is set", || process.tail().text() == "up").await;
        let exit = process.stop(Duration::from_millis(50)).await.unwrap();
        assert_eq!(exit.to_string(), "was killed by SIGKILL");
        until("all are gone", || members(process.leader()).is_empty()).await;
    }

    #[tokio::test]
    async fn drop_kills() {
        let process = shell("sleep 100 & sleep 100").start().await.unwrap();
        let leader = process.leader();
        drop(process);
        until("all are gone", || members(leader).is_empty()).await;
    }

    #[tokio::test]
    async fn hands_down_the_channel_alone() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let number = theirs.as_raw_fd();
        // Not in sh, which knows descriptors of one digit only.
        let mut launch = shell(&format!(
            "exec python3 -c 'import os; os.write({number}, b\"hello\"); os.system(\"ls -l /proc/self/fd >&2\")'"
        ));
        launch.channel = Some(theirs.into());
        let mut process = launch.start().await.unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut ours = tokio::net::UnixStream::from_std(ours).unwrap();
        let mut said = String::new();
        tokio::time::timeout(SECONDS, ours.read_to_string(&mut said))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(said, "hello");
        process.ended().await.unwrap();
        let words = process.last_words().await;
        // 0, 1, 2, the channel, and the one that `ls` reads the directory with.
        assert_eq!(words.lines().filter(|line| line.contains("->")).count(), 5, "{words}");
    }

    #[tokio::test]
    async fn says_what_cannot_be_started() {
        let mut launch = shell("");
        launch.program = "/nowhere/at/all".into();
        assert_eq!(launch.start().await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn knows_children_in_other_sessions() {
        let start = async || {
            let process = shell("setsid sleep 100 & wait").start().await.unwrap();
            let has_left = || {
                kin(process.leader())
                    .iter()
                    .any(|other| other.session != process.leader().as_raw())
            };
            until("one has left the session", has_left).await;
            let all = kin(process.leader());
            assert_eq!(all.len(), 2);
            (process, all)
        };
        let (process, all) = start().await;
        drop(process);
        until("both are gone", || !all.iter().any(Kin::is_alive)).await;
        let (mut process, all) = start().await;
        process.stop(Duration::from_millis(50)).await.unwrap();
        until("both are gone", || !all.iter().any(Kin::is_alive)).await;
    }
}
