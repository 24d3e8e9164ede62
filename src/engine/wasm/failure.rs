//! What Wasmtime says of a guest that ended badly, in the words of the one who wrote the guest.

use wasmtime::component::ResourceTableError;
use wasmtime::{PoolConcurrencyLimitError, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use super::limits::Refused;
use super::log::Log;
use super::runtime::{RETRY_AFTER, STACK};
use crate::event::{Failure, FailureKind};

/// The guest's way out: `Ok` where it called `exit(0)`, else what is wrong.
///
/// `refused` is the last memory that it asked for in vain, or what it held too much of outside that, `fuel` what it had where that is counted.
pub(super) fn ended(
    error: &wasmtime::Error,
    log: &Log,
    refused: Option<Refused>,
    fuel: Option<u64>,
) -> Result<(), Failure> {
    if let Some(I32Exit(code)) = error.downcast_ref() {
        return match code {
            0 => Ok(()),
            code => Err(exited(*code, log)),
        };
    }
    if error.is::<PoolConcurrencyLimitError>() {
        return Err(no_room(format!(
            "no place for another Wasm instance ({})",
            error.root_cause()
        )));
    }
    let backtrace = error.downcast_ref::<WasmBacktrace>();
    // Without a backtrace nothing of the guest was at work: there was no memory to make it in.
    if let (Some(refused @ Refused::Machine { .. }), None) = (refused, backtrace) {
        return Err(no_room(format!("no memory for another Wasm instance: {refused}")));
    }
    let mut message = match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => {
            let fuel = fuel.unwrap_or_default();
            format!("the guest used up the {fuel} units of fuel that an event may use; `fuel` and --fuel set how many")
        }
        Some(Trap::StackOverflow) => format!(
            "the guest trapped: its calls nest deeper than its stack of {} KiB holds; an endless recursion?",
            STACK >> 10
        ),
        Some(trap) => {
            let trap = trap.to_string();
            format!("the guest trapped: {}", trap.trim_start_matches("wasm trap: "))
        }
        None if is_full(error) && refused.is_none() => format!(
            "the guest failed: {}. Streams, bodies, headers and open files count, each until the guest drops it; an instance of \
             less than 256 MiB may have fewer of them",
            error.root_cause()
        ),
        None => format!("the guest failed: {}", error.root_cause()),
    };
    if let Some(refused) = refused {
        message.push_str(&format!("; before that, {refused}"));
    }
    Err(with_account(
        Failure::new(FailureKind::Program, message),
        log,
        backtrace.map(ToString::to_string),
    ))
}

/// Whether the guest holds all the resources that it may.
fn is_full(error: &wasmtime::Error) -> bool {
    matches!(error.root_cause().downcast_ref(), Some(ResourceTableError::Full))
}

/// What others have now there may be later.
fn no_room(message: String) -> Failure {
    Failure {
        retry_after: Some(RETRY_AFTER),
        ..Failure::new(FailureKind::Unavailable, format!("{message}; try again later"))
    }
}

/// An exit status that is not 0.
pub(super) fn exited(code: i32, log: &Log) -> Failure {
    let tail = log.tail();
    let message = match (panic_of_go(&tail), tail.lines().last()) {
        (Some(panic), _) => format!("the guest exited with status {code}: {panic}"),
        (None, Some(last)) => format!("the guest exited with status {code}; its last line on stderr: {last}"),
        (None, None) => format!("the guest exited with status {code} and wrote nothing to stderr"),
    };
    with_account(Failure::new(FailureKind::Program, message), log, None)
}

/// The line in which Go says what happened; its stack comes after it.
fn panic_of_go(tail: &str) -> Option<&str> {
    let begins = |line: &&str| line.starts_with("panic: ") || line.starts_with("fatal error: ");
    tail.lines().find(begins)
}

/// As much of what a guest gives for a reason is told, in bytes: it may be as long as the guest's memory.
const REASON_LIMIT: usize = 4 << 10;

/// A guest that ended well and broke its interface all the same.
pub(super) fn broke_interface(message: impl Into<String>, log: &Log) -> Failure {
    let mut message = message.into();
    message.truncate(message.floor_char_boundary(REASON_LIMIT));
    with_account(Failure::new(FailureKind::Program, message), log, None)
}

/// Adds what the guest said itself: its last lines on stderr, and where it was.
fn with_account(failure: Failure, log: &Log, backtrace: Option<String>) -> Failure {
    let tail = Some(log.tail()).filter(|tail| !tail.is_empty());
    let account = match (tail, backtrace) {
        (None, None) => return failure,
        (Some(one), None) | (None, Some(one)) => one,
        (Some(tail), Some(backtrace)) => format!("{tail}\n{backtrace}"),
    };
    failure.with_traceback(account)
}

/// A request that `wasi:http` has no form for.
pub(super) fn bad_request(error: &wasmtime::Error) -> Failure {
    Failure::new(
        FailureKind::BadEvent,
        format!("the request can't be given to a guest: {error:#}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventId;

    #[test]
    fn a_reason_of_any_length_is_told_in_part() {
        let log = Log::new(&"test".into(), EventId::NONE, "stderr");
        let told = broke_interface("é".repeat(1 << 20), &log);
        assert_eq!(told.message, "é".repeat(REASON_LIMIT / 2));
    }

    #[test]
    fn what_counts_is_said_where_a_guest_may_hold_no_more() {
        let log = Log::new(&"test".into(), EventId::NONE, "stderr");
        let told = |error: ResourceTableError| ended(&error.into(), &log, None, None).unwrap_err().message;
        assert!(told(ResourceTableError::Full).contains("each until the guest drops it"));
        assert!(!told(ResourceTableError::HasChildren).contains("drops it"));
    }

    #[test]
    fn a_guest_that_there_is_no_memory_to_make_may_have_some_later() {
        let log = Log::new(&"test".into(), EventId::NONE, "stderr");
        let error = wasmtime::format_err!("memory minimum size of 3200 pages exceeds memory limits");
        let told = |refused| ended(&error, &log, Some(refused), None).unwrap_err();
        let later = told(Refused::Machine { asked: 2, total: 1 });
        assert_eq!(
            (later.kind, later.retry_after),
            (FailureKind::Unavailable, Some(RETRY_AFTER))
        );
        let never = told(Refused::Guest { asked: 2, limit: 1 });
        assert_eq!((never.kind, never.retry_after), (FailureKind::Program, None));
    }
}
