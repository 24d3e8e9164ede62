//! The machine's console: where init's log goes, and standard input and output of whoever is not given another.
//!
//! A serial console is slow (115,200 baud is 11 KB a second, and each byte may cost an exit from the virtual machine),
//! and a write to it blocks. So the log goes through [`Bounded`], which never blocks its caller and leaves out lines
//! rather than hold up an event. What programs print is their engine's to keep; it comes here only as log.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::sys::stat::fstat;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use parking_lot::{Condvar, Mutex};

use super::power::is_machines_init;

/// Gives this process a console where the kernel had none to give (no /dev/console in the image): Rust's start-up code
/// has put /dev/null in the place of all three standard streams then. To be called once /dev is mounted.
///
/// Streams that lead anywhere are left alone: a container's are pipes. `chosen` is a terminal that is used in any case,
/// if it can be opened.
pub fn attach(chosen: Option<&Path>) {
    if let Some(Ok(console)) = chosen.map(open) {
        return take(&console);
    }
    if all_lead_nowhere()
        && let Ok(console) = open(Path::new("/dev/console"))
    {
        take(&console);
    }
    // A machine without a console has nobody to tell.
}

/// Opens a terminal for reading and writing.
///
/// # Errors
/// Those of open(2).
pub(super) fn open(terminal: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        // Not ours to be ended by: a Ctrl-C on the console is a program's business.
        .custom_flags(libc::O_NOCTTY)
        .open(terminal)
}

fn take(console: &File) {
    // Only a descriptor that isn't open would be refused.
    let _ = dup2_stdin(console);
    let _ = dup2_stdout(console);
    let _ = dup2_stderr(console);
}

fn all_lead_nowhere() -> bool {
    let Ok(null) = fs::metadata("/dev/null") else {
        return true;
    };
    let leads_nowhere = |stream: &dyn AsFd| fstat(stream.as_fd()).is_ok_and(|found| found.st_rdev == null.rdev());
    leads_nowhere(&io::stdin()) && leads_nowhere(&io::stdout()) && leads_nowhere(&io::stderr())
}

/// Whether `stream` is the machine's console itself.
pub(super) fn leads_to_console(stream: &dyn AsFd) -> bool {
    let found = fstat(stream.as_fd()).map(|found| found.st_rdev);
    matches!((found, fs::metadata("/dev/console")), (Ok(here), Ok(console)) if here == console.rdev())
}

/// Lets only the kernel's warnings, and worse, onto the machine's console (syslog(2)): each line of its chatter about
/// devices and file systems costs milliseconds there. A host that asked for less gets less.
pub fn quieten_kernel() {
    const PRINTK: &str = "/proc/sys/kernel/printk";
    /// The level from which on messages are kept back: 5 is KERN_NOTICE.
    const NOTICE: u32 = 5;
    let level = || {
        let levels = fs::read_to_string(PRINTK).ok()?;
        levels.split_whitespace().next()?.parse::<u32>().ok()
    };
    if is_machines_init() && level().is_some_and(|level| level > NOTICE) {
        // Without it the machine works as well.
        let _ = fs::write(PRINTK, format!("{NOTICE}\n"));
    }
}

/// The most that waits for a slow console, in bytes.
pub const BACKLOG: usize = 256 << 10;

/// A writer that never blocks: a thread of its own passes on what is written, and lines that find [`BACKLOG`] bytes
/// waiting are left out and counted.
///
/// Each call of `write` is one record, kept whole or left out whole.
#[derive(Debug, Clone)]
pub struct Bounded {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    backlog: Mutex<Backlog>,
    /// Something to write has come, or everything has been written.
    changed: Condvar,
    limit: usize,
}

#[derive(Debug, Default)]
struct Backlog {
    bytes: VecDeque<u8>,
    left_out: u64,
    /// Taken out of `bytes`, and not yet known to be written.
    writing: bool,
}

impl Bounded {
    /// Writes to `sink` from a new thread that lives as long as the process.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn new(sink: impl Write + Send + 'static, limit: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            backlog: Mutex::default(),
            changed: Condvar::new(),
            limit,
        });
        let theirs = Arc::clone(&shared);
        thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || theirs.pass_on(sink))?;
        Ok(Self { shared })
    }

    /// Waits until everything is written, `patience` at most. True if it is.
    pub fn drain(&self, patience: Duration) -> bool {
        let mut backlog = self.shared.backlog.lock();
        let waits = |backlog: &mut Backlog| !backlog.is_done();
        let waited = self.shared.changed.wait_while_for(&mut backlog, waits, patience);
        !waited.timed_out()
    }
}

impl Write for Bounded {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let mut backlog = self.shared.backlog.lock();
        if backlog.bytes.len() + record.len() > self.shared.limit {
            backlog.left_out += 1;
        } else {
            backlog.bytes.extend(record);
        }
        drop(backlog);
        self.shared.changed.notify_all();
        Ok(record.len())
    }

    /// Nothing to do: see [`Bounded::drain`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Backlog {
    fn is_done(&self) -> bool {
        self.bytes.is_empty() && self.left_out == 0 && !self.writing
    }
}

impl Shared {
    fn pass_on(&self, mut sink: impl Write) {
        loop {
            let mut backlog = self.backlog.lock();
            let is_empty = |backlog: &mut Backlog| backlog.bytes.is_empty() && backlog.left_out == 0;
            self.changed.wait_while(&mut backlog, is_empty);
            let bytes = std::mem::take(&mut backlog.bytes);
            let left_out = std::mem::take(&mut backlog.left_out);
            backlog.writing = true;
            drop(backlog);

            // A console that fails is no reason to stop trying, and there is nowhere to complain.
            let (front, back) = bytes.as_slices();
            let _ = sink.write_all(front).and_then(|()| sink.write_all(back));
            if left_out > 0 {
                let _ = writeln!(sink, "({left_out} lines left out: the console is slower than the log)");
            }
            let _ = sink.flush();

            self.backlog.lock().writing = false;
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::isolation::{Namespace, isolated};
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_console_that_takes_nothing_does_not_block_and_says_later_what_it_missed() {
        let (sink, mut console) = UnixStream::pair().expect("a pair");
        let mut log = Bounded::new(sink, 64 << 10).expect("a thread");
        let line = [b'x'; 1023];
        // Far more than a socket's buffer and the backlog hold together.
        for _ in 0..4096 {
            log.write_all(&line).expect("never fails");
            log.write_all(b"\n").expect("never fails");
        }
        assert!(!log.drain(Duration::ZERO), "somebody reads");

        let reader = thread::spawn(move || {
            let mut text = String::new();
            let mut piece = [0; 65536];
            while !text.ends_with("than the log)\n") {
                let n = console.read(&mut piece).expect("readable");
                text.push_str(std::str::from_utf8(&piece[..n]).expect("text"));
            }
            text
        });
        assert!(log.drain(Duration::from_secs(20)));
        let text = reader.join().expect("read");
        assert!(text.len() < 4096 * 1024 / 2, "{} bytes were kept", text.len());
        let note = text.lines().next_back().expect("a note");
        assert!(
            note.ends_with(" lines left out: the console is slower than the log)"),
            "{note}"
        );
    }

    #[test]
    fn what_fits_comes_whole_and_in_order() {
        let (sink, mut console) = UnixStream::pair().expect("a pair");
        let mut log = Bounded::new(sink, BACKLOG).expect("a thread");
        let expected: String = (0..100).map(|i| format!("line {i}\n")).collect();
        for line in expected.split_inclusive('\n') {
            log.write_all(line.as_bytes()).expect("never fails");
        }
        assert!(log.drain(Duration::from_secs(20)));
        let mut text = vec![0; expected.len()];
        console.read_exact(&mut text).expect("all of it");
        assert_eq!(text, expected.as_bytes());
    }

    #[test]
    fn streams_that_lead_nowhere_get_the_console_and_others_are_kept() {
        isolated(
            "machine::console::tests::streams_that_lead_nowhere_get_the_console_and_others_are_kept",
            &[Namespace::Mount],
            || {
                let stderr_before = fstat(io::stderr()).expect("stderr").st_ino;
                attach(None);
                assert_eq!(fstat(io::stderr()).expect("stderr").st_ino, stderr_before);

                // A console of our own, under the name of the real one.
                let file = tempfile::NamedTempFile::new().expect("a file");
                let flags = nix::mount::MsFlags::MS_BIND;
                nix::mount::mount(Some(file.path()), "/dev/console", None::<&str>, flags, None::<&str>).expect("bound");
                let null = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open("/dev/null")
                    .expect("null");
                dup2_stdin(&null).expect("dup");
                dup2_stdout(&null).expect("dup");
                dup2_stderr(&null).expect("dup");
                attach(None);
                io::stderr().write_all(b"to the console").expect("written");
                assert_eq!(fs::read(file.path()).expect("read"), b"to the console");
            },
        );
    }
}
