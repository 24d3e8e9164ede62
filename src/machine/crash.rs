//! The end of an init that has failed in a way that no code can go on from: a bad access to memory, an abort for want
//! of memory, a bug in the runtime. The kernel would panic, and a host would see a machine that says nothing.
//!
//! A signal handler says which signal it was, brings the disks up to date and restarts the machine within a second. A
//! panic is no such end: it is caught where it happens (`reaper::live`, the task of an event), and goes to
//! `power::fail`.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc::{self, c_int};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::power::is_machines_init;

/// The signals that the kernel sends for a fault, and abort(3) for a failed allocation.
const FATAL: [(Signal, &str); 6] = [
    (
        Signal::SIGABRT,
        "polyinit: init aborted (SIGABRT), as for want of memory; restarting the machine\n",
    ),
    (
        Signal::SIGBUS,
        "polyinit: init was hit by SIGBUS; restarting the machine\n",
    ),
    (
        Signal::SIGFPE,
        "polyinit: init was hit by SIGFPE; restarting the machine\n",
    ),
    (
        Signal::SIGILL,
        "polyinit: init was hit by SIGILL; restarting the machine\n",
    ),
    (
        Signal::SIGSEGV,
        "polyinit: init was hit by SIGSEGV; restarting the machine\n",
    ),
    (
        Signal::SIGSYS,
        "polyinit: init was hit by SIGSYS; restarting the machine\n",
    ),
];

/// How long disks may take to be brought up to date, in microseconds.
const SYNC_MICROSECONDS: libc::suseconds_t = 800_000;

static CRASHED: AtomicBool = AtomicBool::new(false);

/// Prepares for the worst, in the machine's own init; anybody else's crash is left to the kernel, with its core dump.
///
/// Called before the WebAssembly engine installs its own handlers, which pass on what is not theirs.
pub fn restart_on_crash() {
    if !is_machines_init() {
        return;
    }
    for (signal, _) in FATAL {
        handle(signal, on_crash);
    }
    handle(Signal::SIGALRM, on_late);
}

#[allow(unsafe_code)]
fn handle(signal: Signal, handler: extern "C" fn(c_int)) {
    // On the stack that the standard library gives every thread for this, since a thread's own may be what is used up.
    let flags = SaFlags::SA_ONSTACK | SaFlags::SA_NODEFER;
    let action = SigAction::new(SigHandler::Handler(handler), flags, SigSet::empty());
    // SAFETY: the handlers below call nothing but async-signal-safe functions (signal-safety(7)).
    // Fails only for signals that can't be handled, of which there is none here.
    let _ = unsafe { sigaction(signal, &action) };
}

/// Nothing but system calls: whatever lock there is may be held by the thread that was hit.
#[allow(unsafe_code)]
extern "C" fn on_crash(signal: c_int) {
    // SAFETY: getpid(2), write(2), setitimer(2), sync(2), signal(2), raise(3) and pause(2) are async-signal-safe, and
    // are given numbers, and addresses of values that live until they return.
    unsafe {
        if libc::getpid() != 1 {
            // A child between fork and exec: its end is its own.
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
            return;
        }
        if CRASHED.swap(true, Ordering::SeqCst) {
            // Another thread, or this very handler: the first one ends it all, or the alarm does.
            loop {
                libc::pause();
            }
        }
        let message = FATAL.iter().find(|(one, _)| *one as c_int == signal);
        let message = message.map_or("polyinit: init crashed; restarting the machine\n", |(_, message)| {
            message
        });
        libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len());
        // sync(2) can't be interrupted, but the signal goes to another thread then.
        let time = libc::timeval {
            tv_sec: 0,
            tv_usec: SYNC_MICROSECONDS,
        };
        let timer = libc::itimerval {
            it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
            it_value: time,
        };
        libc::syscall(
            libc::SYS_setitimer,
            libc::ITIMER_REAL,
            &raw const timer,
            std::ptr::null::<libc::itimerval>(),
        );
        libc::sync();
    }
    restart();
}

extern "C" fn on_late(_: c_int) {
    if CRASHED.load(Ordering::SeqCst) {
        restart();
    }
}

#[allow(unsafe_code)]
fn restart() -> ! {
    loop {
        // SAFETY: reboot(2) and pause(2) take no memory of ours, and are single system calls.
        unsafe {
            libc::reboot(libc::RB_AUTOBOOT);
            libc::pause();
        }
    }
}
