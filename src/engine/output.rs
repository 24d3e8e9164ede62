//! Between a program's stdout and stderr and the log: every line goes to the log as it comes, and the last ones are
//! kept, for the sentence that has to say why the program ended.
//!
//! ```text
//! child's pipes -> lines of bounded length -> tracing, target "program"
//!                                         \-> Tail: the last lines, for errors
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;

/// The longest line that is passed on, in bytes; the rest of a longer one is counted and left out.
pub const LINE_LIMIT: usize = 8 << 10;

/// Lines kept of each stream, and how many bytes of them: what fits an error message.
const TAIL_LINES: usize = 40;
const TAIL_BYTES: usize = 8 << 10;

/// One read takes at most this much: a pipe's usual capacity is 64 KiB, and few programs write more than a page at once.
const READ_SIZE: usize = 8 << 10;

/// The last lines that a program wrote. Cheap to clone; all clones see the same lines.
#[derive(Debug, Clone)]
pub struct Tail {
    stdout: Arc<Mutex<Lines>>,
    stderr: Arc<Mutex<Lines>>,
    /// How many of the two streams are still open.
    open: watch::Receiver<usize>,
}

/// Follows both streams of a program until they end, in tasks of their own. `component` names it in the log.
pub fn follow<O, E>(component: &str, stdout: O, stderr: E) -> Tail
where
    O: AsyncRead + Unpin + Send + 'static,
    E: AsyncRead + Unpin + Send + 'static,
{
    let (open, receiver) = watch::channel(2);
    let open = Arc::new(open);
    let tail = Tail {
        stdout: Arc::default(),
        stderr: Arc::default(),
        open: receiver,
    };
    forward(component, "stdout", stdout, &tail.stdout, &open);
    forward(component, "stderr", stderr, &tail.stderr, &open);
    tail
}

impl Tail {
    /// What the program last wrote to stderr, or to stdout if it wrote nothing there; empty if it was silent.
    pub fn text(&self) -> String {
        let stderr = self.stderr.lock().text();
        if stderr.is_empty() {
            self.stdout.lock().text()
        } else {
            stderr
        }
    }

    /// [`Tail::text`] after the streams have ended. A process that is gone may leave children that hold its pipes
    /// open: after `patience` the text is taken as it is then.
    pub async fn text_at_end(&self, patience: Duration) -> String {
        let mut open = self.open.clone();
        // Neither outcome matters: an error means that both tasks are gone, which is the end as well.
        let _ = tokio::time::timeout(patience, open.wait_for(|open| *open == 0)).await;
        self.text()
    }
}

fn forward(
    component: &str,
    stream: &'static str,
    pipe: impl AsyncRead + Unpin + Send + 'static,
    lines: &Arc<Mutex<Lines>>,
    open: &Arc<watch::Sender<usize>>,
) {
    let (component, lines, open) = (component.to_owned(), Arc::clone(lines), Arc::clone(open));
    tokio::spawn(async move {
        read_lines(pipe, |line| {
            let (event, line) = split_event(line);
            tracing::info!(target: "program", component, event, stream, "{line}");
            lines.lock().push(line);
        })
        .await;
        open.send_modify(|open| *open -= 1);
    });
}

/// The id of the event that a worker wrote a line for, between ASCII's record and unit separators, and the line.
fn split_event(line: &str) -> (Option<&str>, &str) {
    line.strip_prefix('\x1e')
        .and_then(|marked| marked.split_once('\x1f'))
        .filter(|(event, _)| event.len() <= 20 && event.bytes().all(|letter| letter.is_ascii_digit()))
        .map_or((None, line), |(event, line)| (Some(event), line))
}

/// Gives `each` every line of `pipe`, without its end of line, as text.
async fn read_lines(mut pipe: impl AsyncRead + Unpin, mut each: impl FnMut(&str)) {
    let mut piece = [0; READ_SIZE];
    let mut line = Line::default();
    // An error of a pipe means the same as its end: nothing more comes.
    while let Ok(read @ 1..) = pipe.read(&mut piece).await {
        let mut rest = &piece[..read];
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            line.extend(&rest[..end]);
            line.finish(&mut each);
            rest = &rest[end + 1..];
        }
        line.extend(rest);
    }
    if !line.is_empty() {
        line.finish(&mut each);
    }
}

/// A line in the making.
#[derive(Default)]
struct Line {
    kept: Vec<u8>,
    left_out: usize,
}

impl Line {
    fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    fn extend(&mut self, bytes: &[u8]) {
        let room = LINE_LIMIT - self.kept.len();
        let taken = bytes.len().min(room);
        self.kept.extend_from_slice(&bytes[..taken]);
        self.left_out += bytes.len() - taken;
    }

    fn finish(&mut self, each: &mut impl FnMut(&str)) {
        let text = String::from_utf8_lossy(&self.kept);
        let text = text.trim_end_matches('\r');
        match self.left_out {
            0 => each(text),
            more => each(&format!("{text} [... {more} more bytes in this line]")),
        }
        self.kept.clear();
        self.left_out = 0;
    }
}

/// The last lines of one stream.
#[derive(Debug, Default)]
struct Lines {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Lines {
    fn push(&mut self, line: &str) {
        self.bytes += line.len();
        self.lines.push_back(line.to_owned());
        while self.lines.len() > TAIL_LINES || (self.bytes > TAIL_BYTES && self.lines.len() > 1) {
            self.bytes -= self.lines.pop_front().map_or(0, |line| line.len());
        }
    }

    fn text(&self) -> String {
        self.lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    async fn lines_of(bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        read_lines(bytes, |line| lines.push(line.to_owned())).await;
        lines
    }

    #[tokio::test]
    async fn cuts_into_lines() {
        assert_eq!(lines_of(b"one\r\n\ntwo\nthree").await, ["one", "", "two", "three"]);
        assert_eq!(lines_of(b"").await, Vec::<String>::new());
        assert_eq!(lines_of(b"caf\xe9\n").await, ["caf\u{fffd}"]);
    }

    #[test]
    fn knows_the_event_of_a_line() {
        assert_eq!(split_event("\x1e17\x1fhello"), (Some("17"), "hello"));
        assert_eq!(split_event("hello"), (None, "hello"));
        for other in [
            "\x1e17 hello",
            "\x1eseventeen\x1fhello",
            "\x1e123456789012345678901\x1f",
        ] {
            assert_eq!(split_event(other), (None, other));
        }
    }

    #[tokio::test]
    async fn says_what_it_leaves_out_of_a_long_line() {
        let mut bytes = vec![b'x'; 3 * LINE_LIMIT + 7];
        bytes.extend_from_slice(b"\nnext\n");
        let lines = lines_of(&bytes).await;
        let more = 2 * LINE_LIMIT + 7;
        assert_eq!(
            lines[0],
            format!("{} [... {more} more bytes in this line]", "x".repeat(LINE_LIMIT))
        );
        assert_eq!(lines[1..], ["next"]);
    }

    #[tokio::test]
    async fn keeps_the_last_lines_of_stderr() {
        let stderr: String = (0..1000).map(|number| format!("line {number}\n")).collect();
        let tail = follow("test", &b"out\n"[..], std::io::Cursor::new(stderr));
        let text = tail.text_at_end(PATIENCE).await;
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), TAIL_LINES);
        assert_eq!(lines[TAIL_LINES - 1], "line 999");
    }

    #[tokio::test]
    async fn falls_back_to_stdout() {
        let tail = follow("test", &b"out\n"[..], &b""[..]);
        assert_eq!(tail.text_at_end(PATIENCE).await, "out");
    }

    #[tokio::test]
    async fn does_not_wait_for_ever_for_the_end() {
        let (_writer, reader) = tokio::io::duplex(16);
        let tail = follow("test", reader, &b"why\n"[..]);
        assert_eq!(tail.text_at_end(Duration::from_millis(20)).await, "why");
    }
}
