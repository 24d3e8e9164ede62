//! Which face: PID 1 of a machine, or a command.

use std::process::ExitCode;

use polyinit::{cli, init, report};

fn main() -> ExitCode {
    report::begin();
    if is_machines_init() {
        init::run();
    }
    cli::run()
}

/// The kernel starts PID 1 by the name of its file, and hands it words of its command line. A container that runs
/// `polyinit serve` has a PID 1, too, but one that was asked for by name.
fn is_machines_init() -> bool {
    let named_init = std::env::args_os()
        .next()
        .is_some_and(|name| std::path::Path::new(&name).file_name() == Some("init".as_ref()));
    std::process::id() == 1 && named_init
}
