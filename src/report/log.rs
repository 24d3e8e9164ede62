//! The log: one line each on standard error, for people. What programs print goes through it, too, with their
//! component's name before it.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, OnceLock};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The environment variable that says what is logged: `debug`, `polyinit=trace`, `warn,program=off`.
pub const VARIABLE: &str = "POLYINIT_LOG";

/// Begins to log to `sink`, at least what is as weighty as `level`, unless [`VARIABLE`] says otherwise. The second call
/// of a process does nothing.
pub fn begin(sink: impl Write + Send + 'static, level: &str) {
    let filter = std::env::var(VARIABLE)
        .ok()
        .and_then(|filter| EnvFilter::try_new(filter).ok())
        .unwrap_or_else(|| EnvFilter::new(level));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // That a line can't be written would be told by `eprintln!`, which panics where nobody reads it.
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .event_format(Line)
        .with_writer(Mutex::new(sink))
        .try_init();
}

/// What is logged: a line of ours, or of a program.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Empty where it is of none.
    pub component: &'a str,
    /// The event that it was printed for; empty where that is not known.
    pub event: &'a str,
    pub level: Level,
    pub message: &'a str,
}

type Tap = Box<dyn Fn(&Entry<'_>) + Send + Sync>;

static TAP: OnceLock<Tap> = OnceLock::new();

/// Tells `tap` of everything that is logged from now on, too. The second call of a process does nothing.
pub fn tap(tap: impl Fn(&Entry<'_>) + Send + Sync + 'static) {
    let _ = TAP.set(Box::new(tap));
}

/// Whether `text` says what is logged, as [`VARIABLE`] does.
pub fn is_filter(text: &str) -> bool {
    !text.is_empty() && EnvFilter::try_new(text).is_ok()
}

/// `warning: the message key=value`, or `component | what the program printed`, with the number of the event that it was
/// printed for where that is known: `component#17 | ...`.
struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut parts = Parts::default();
        event.record(&mut parts);
        let metadata = event.metadata();
        if let Some(tap) = TAP.get() {
            tap(&Entry {
                component: &parts.component,
                event: &parts.event,
                level: *metadata.level(),
                message: &parts.message,
            });
        }
        if metadata.target() == "program" {
            let event = if parts.event.is_empty() { "" } else { "#" };
            return writeln!(writer, "{}{event}{} | {}", parts.component, parts.event, parts.message);
        }
        let (word, colour) = match *metadata.level() {
            Level::ERROR => ("error: ", "\x1b[31m"),
            Level::WARN => ("warning: ", "\x1b[33m"),
            Level::INFO => ("", ""),
            Level::DEBUG => ("debug: ", "\x1b[2m"),
            Level::TRACE => ("trace: ", "\x1b[2m"),
        };
        if writer.has_ansi_escapes() && !colour.is_empty() {
            write!(writer, "{colour}{word}\x1b[0m")?;
        } else {
            writer.write_str(word)?;
        }
        if !parts.component.is_empty() {
            write!(writer, "{}: ", parts.component)?;
        }
        writeln!(writer, "{}{}", visible(&parts.message), parts.rest)
    }
}

/// `text` without what a terminal would obey: control characters but the ends of lines and tabs are written as escapes. A
/// sentence of ours may have names in it that a file of somebody else's has given itself.
pub fn visible(text: &str) -> Cow<'_, str> {
    let is_obeyed = |letter: char| letter.is_control() && !matches!(letter, '\n' | '\t');
    if !text.contains(is_obeyed) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        match is_obeyed(letter) {
            true => shown.extend(letter.escape_default()),
            false => shown.push(letter),
        }
    }
    shown.into()
}

#[derive(Default)]
struct Parts {
    message: String,
    component: String,
    event: String,
    rest: String,
}

impl Visit for Parts {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "component" => self.component.push_str(value),
            "event" => self.event.push_str(value),
            "stream" => {}
            _ => self.record_debug(field, &value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String can't fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            "component" => write!(self.component, "{value:?}"),
            name => write!(self.rest, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_that_a_terminal_would_obey() {
        assert_eq!(
            visible("a\x1b[31mb\u{9b}1mc\rd\n\te é"),
            "a\\u{1b}[31mb\\u{9b}1mc\\rd\n\te é"
        );
    }
}
