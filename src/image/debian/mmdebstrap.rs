//! Runs mmdebstrap(1) for [`super::bootstrap`]: its command line, its environment, and what it says.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{ChildStderr, Command, Stdio};

use super::DebianError;
use crate::image::{Progress, tools};
use crate::open_files;

/// Its name.
pub const PROGRAM: &str = "mmdebstrap";
/// How the way to the network is named in an environment; apt and most that loads something follow them.
pub const PROXY_VARIABLES: [&str; 4] = ["http_proxy", "https_proxy", "no_proxy", "all_proxy"];
/// What else of this machine's environment it is given.
const KEPT_VARIABLES: [&str; 5] = ["PATH", "HOME", "USER", "LOGNAME", "TMPDIR"];
/// What a recipe's command is announced with, among all else that is said.
pub const COMMAND_MARK: &str = "command ";
/// What it says when it gives up. What follows are only consequences.
const GIVES_UP: &str = "E: setup failed";

/// mmdebstrap, with nothing of this machine's environment but what it needs: packages' scripts see it, too.
pub fn command(epoch: u32) -> Command {
    let kept = KEPT_VARIABLES.into_iter().chain(PROXY_VARIABLES);
    let kept: Vec<(&str, OsString)> = kept.filter_map(|name| Some((name, std::env::var_os(name)?))).collect();
    let mut command = open_files::command(PROGRAM);
    command
        .env_clear()
        .envs(kept)
        .env("LC_ALL", "C.UTF-8")
        .env("SOURCE_DATE_EPOCH", epoch.to_string());
    command
}

/// An option that has something done at a stage: a line for a shell, or one of mmdebstrap's own special hooks.
pub fn hook(stage: &str, line: &str) -> String {
    format!("--{stage}-hook={line}")
}

/// One word for a POSIX shell (XCU 2.2.2), and for mmdebstrap's own splitting of special hooks.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Runs it, with `input` as its standard input and `output` as its standard output.
///
/// # Errors
/// It isn't there, or fails.
pub fn run(mut command: Command, input: &str, output: &File, progress: Progress<'_>) -> Result<(), DebianError> {
    let output = output.try_clone().map_err(DebianError::Run)?;
    command.stdin(Stdio::piped()).stdout(output).stderr(Stdio::piped());
    let done = tools::with(&mut command, |mut child| {
        // A few lines fit into the pipe, so this doesn't wait for the child; and one that died already says why itself.
        if let Some(mut stdin) = child.stdin.take() {
            drop(stdin.write_all(input.as_bytes()));
        }
        let heard = child
            .stderr
            .take()
            .map_or(Ok(String::new()), |stderr| listen(stderr, progress));
        Ok((child.wait()?, heard?))
    });
    let (status, reason) = done.map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            DebianError::NoMmdebstrap
        } else {
            DebianError::Run(error)
        }
    })?;
    if status.success() {
        Ok(())
    } else {
        Err(DebianError::Failed { status, reason })
    }
}

/// Passes on what is said until it ends. Returns what of it belongs into an error.
fn listen(stderr: ChildStderr, progress: Progress<'_>) -> io::Result<String> {
    let mut last_words = LastWords::default();
    let mut in_command = false;
    for line in BufReader::new(stderr).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        // A line that was written over and over shows how far it got: only its end is left on a screen.
        let line = line.trim_end().rsplit('\r').next().unwrap_or_default();
        in_command |= line.starts_with(COMMAND_MARK);
        last_words.hear(line);
        if let Some(shown) = worth_showing(line, in_command).filter(|_| !last_words.given_up) {
            progress(shown);
        }
    }
    Ok(last_words.reason())
}

/// Its headlines, warnings and errors; and all that the recipe's own commands say, once they began.
fn worth_showing(line: &str, in_command: bool) -> Option<&str> {
    match line.split_once(": ") {
        // All hooks are ours, and those that matter announce themselves.
        Some(("I", text)) => {
            Some(text).filter(|text| !text.starts_with("running --") && !text.starts_with("running special"))
        }
        Some(("E" | "W", _)) => Some(line),
        _ => in_command.then_some(line),
    }
}

/// What of a failed run goes into its error: what it calls errors until it gives up, else the last line.
#[derive(Default)]
struct LastWords {
    errors: Vec<String>,
    last: String,
    given_up: bool,
}

impl LastWords {
    const MAX_ERRORS: usize = 5;

    fn hear(&mut self, line: &str) {
        self.given_up |= line.starts_with(GIVES_UP);
        if self.given_up && !self.errors.is_empty() {
            return;
        }
        if let Some(error) = line.strip_prefix("E: ")
            && self.errors.len() < Self::MAX_ERRORS
        {
            self.errors.push(error.trim().to_owned());
        }
        if !line.trim().is_empty() {
            line.trim().clone_into(&mut self.last);
        }
    }

    fn reason(self) -> String {
        if self.errors.is_empty() {
            self.last
        } else {
            self.errors.join("; ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_the_shell_stay_one_word() {
        let output = Command::new("/bin/sh")
            .arg("-c")
            .arg(format!("printf %s {}", quoted("a 'b' $c \\ \"d\"")))
            .output();
        assert_eq!(output.expect("a shell").stdout, b"a 'b' $c \\ \"d\"");
    }

    #[test]
    fn a_failed_run_is_told_by_its_errors() {
        let reason = |lines: &[&str]| {
            let mut last_words = LastWords::default();
            lines.iter().for_each(|line| last_words.hear(line));
            last_words.reason()
        };
        let lines = [
            "I: running",
            "E: Unable to locate package nodjs",
            "",
            "E: setup failed: E: apt-get failed",
            "E: failed to run",
        ];
        assert_eq!(reason(&lines), "Unable to locate package nodjs");
        assert_eq!(
            reason(&["E: setup failed: E: apt-get failed"]),
            "setup failed: E: apt-get failed"
        );
        assert_eq!(reason(&["sh: 1: x: not found", ""]), "sh: 1: x: not found");
    }

    #[test]
    fn a_user_sees_headlines_and_the_words_of_commands() {
        assert_eq!(
            worth_showing("I: extracting archives...", false),
            Some("extracting archives...")
        );
        assert_eq!(worth_showing("I: running special hook: tar-in x /", true), None);
        assert_eq!(worth_showing("Setting up x", false), None);
        assert_eq!(worth_showing("hello", true), Some("hello"));
        assert_eq!(worth_showing("E: no", false), Some("E: no"));
    }
}
