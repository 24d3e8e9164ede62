//! The binary as a child process: its lines as they come, its end, and what it must not leave behind.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::PATIENCE;

/// Marks every process of one test run in its environment, whatever becomes of its parents.
const MARK: &str = "POLYINIT_TEST_MARK";

pub struct Running {
    child: Child,
    mark: String,
    output: Arc<Output>,
    /// For its temporary files: one that is killed can't remove them.
    temporary: tempfile::TempDir,
}

#[derive(Default)]
struct Output {
    text: Mutex<(String, usize)>,
    changed: Condvar,
}

impl Running {
    /// Starts the binary. Its programs get a mark in their environment, by which leftovers are known.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_under(&[], arguments)
    }

    /// Has the words of `starter` start it.
    pub fn start_under(starter: &[&str], arguments: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mark = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let words = [starter, &[env!("CARGO_BIN_EXE_polyinit")]].concat();
        let temporary = tempfile::tempdir().unwrap();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .args(arguments)
            .env(MARK, &mark)
            .env("TMPDIR", temporary.path())
            .env("NO_COLOR", "1")
            .env_remove("POLYINIT_LOG");
        if arguments[0] == "serve" {
            command.args(["--env", &format!("{MARK}={mark}")]);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = Arc::new(Output::default());
        output.text.lock().unwrap().1 = 2;
        follow(child.stdout.take().unwrap(), &output);
        follow(child.stderr.take().unwrap(), &output);
        Self {
            child,
            mark,
            output,
            temporary,
        }
    }

    /// The command lines of its children.
    pub fn children(&self) -> Vec<String> {
        let id = self.child.id();
        let tasks = std::fs::read_dir(format!("/proc/{id}/task")).unwrap().flatten();
        let lists = tasks.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
        let children: String = lists.collect();
        let line = |pid: &str| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let text = |pid: &str| String::from_utf8_lossy(&line(pid)).replace('\0', " ");
        children.split_whitespace().map(text).collect()
    }

    pub fn output(&self) -> String {
        self.output.text.lock().unwrap().0.clone()
    }

    /// Waits for a line with `text` in it, and returns that line.
    pub fn wait_for(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut output = self.output.text.lock().unwrap();
        loop {
            if let Some(line) = output.0.lines().find(|line| line.contains(text)) {
                return line.to_owned();
            }
            assert!(output.1 > 0, "it ended without saying {text:?}:\n{}", output.0);
            let left = deadline.checked_duration_since(Instant::now());
            let left = left.unwrap_or_else(|| panic!("it does not say {text:?}:\n{}", output.0));
            output = self.output.changed.wait_timeout(output, left).unwrap().0;
        }
    }

    /// Waits until that is so.
    pub fn wait_until(&mut self, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "it ended before:\n{}", self.output());
            assert!(Instant::now() < deadline, "it does not come so far:\n{}", self.output());
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn interrupt(&self) {
        self.signal(Signal::SIGINT);
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for the end; nothing of it may be left then. Returns how it ended and what it printed.
    pub fn end(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.output());
            std::thread::park_timeout(Duration::from_millis(2));
        };
        assert_eq!(
            leftovers(&format!("{MARK}={}", self.mark)),
            Vec::<String>::new(),
            "left behind"
        );
        if status.signal() != Some(Signal::SIGKILL as i32) {
            assert_eq!(own_files(self.temporary.path()), [""; 0], "left behind");
        }
        let mut output = self.output.text.lock().unwrap();
        while output.1 > 0 {
            output = self.output.changed.wait(output).unwrap();
        }
        (status, std::mem::take(&mut output.0))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn follow(pipe: impl Read + Send + 'static, output: &Arc<Output>) {
    let output = output.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let mut text = output.text.lock().unwrap();
            text.0.push_str(&String::from_utf8_lossy(&line));
            text.0.push('\n');
            output.changed.notify_all();
        }
        output.text.lock().unwrap().1 -= 1;
        output.changed.notify_all();
    });
}

/// What polyinit itself has in a folder for temporary files: programs have theirs there, too.
fn own_files(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("polyinit")).collect()
}

/// The living processes that have `variable`, `NAME=VALUE`, in their environment (proc_pid_environ(5)), by their command lines.
pub fn leftovers(variable: &str) -> Vec<String> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let environment = std::fs::read(process.path().join("environ")).unwrap_or_default();
        if environment
            .split(|byte| *byte == 0)
            .any(|one| one == variable.as_bytes())
        {
            let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            // One that has ended meanwhile has none.
            if !line.is_empty() {
                found.push(String::from_utf8_lossy(&line).replace('\0', " "));
            }
        }
    }
    found
}
