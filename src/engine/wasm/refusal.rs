//! Why a Wasm file is no guest, for the one who built it: what is wrong with it, and how to build it instead.
//!
//! Most files that can't be run were built for another host, a browser above all. Their imports tell which.

use std::path::Path;

use crate::engine::StartError;

use super::message;

/// Names that are listed; files for browsers have hundreds.
const LISTED: usize = 8;

const GO: &str = "build it with GOOS=wasip1 (GOOS=js is for browsers)";
const WASM_BINDGEN: &str = "build it for wasm32-wasip1 or wasm32-wasip2 (wasm-bindgen is for browsers)";
const EMSCRIPTEN: &str =
    "build it with -sSTANDALONE_WASM (Emscripten's other files are for the JavaScript that it writes beside them)";

/// What imports that begin so say of how the file was built, and what to do instead. The first that fits counts.
const BUILT_FOR: [(&str, &str); 14] = [
    ("gojs.", GO),
    ("go.", GO),
    ("wbg.", WASM_BINDGEN),
    ("__wbindgen", WASM_BINDGEN),
    // The JavaScript that wasm-bindgen writes for bundlers.
    ("./", WASM_BINDGEN),
    // Emscripten without optimisation, and with: there names are letters.
    ("env.emscripten", EMSCRIPTEN),
    ("env._emscripten", EMSCRIPTEN),
    ("a.", EMSCRIPTEN),
    (
        "env.abort",
        "compile it with --use abort= and without other functions of `env` (AssemblyScript)",
    ),
    (
        "env.",
        "link it with wasi-libc and without undefined symbols (Emscripten: -sSTANDALONE_WASM)",
    ),
    (
        "wasi.thread",
        "threads are not offered: build it without them, for wasm32-wasip1",
    ),
    (
        "wasi_unstable.",
        "build it with a newer WASI SDK, for wasi_snapshot_preview1",
    ),
    ("wasi_snapshot_preview1.", "WASI 0.1 has no such function"),
    (
        "wasi:",
        "build it for WASI 0.2 or 0.3, with the interfaces of wasi:http or wasi:cli/command",
    ),
];

/// What compilers' errors mean that are not about a mistake in the code.
const COMPILER_SAYS: [(&str, &str); 6] = [
    (
        "unexpected end",
        "the file is not whole; build it again, or copy it again",
    ),
    (
        "is out of bounds (bound = ",
        "the file is not whole; build it again, or copy it again",
    ),
    (
        "threads must be enabled",
        "threads are not offered; build it without them",
    ),
    (
        "exceptions proposal not enabled",
        "exceptions are not offered; build it without them (C++: -fno-exceptions)",
    ),
    (
        "gc types",
        "garbage collection by the host is not offered; build it with a collector of its own",
    ),
    (
        "memory has a minimum byte size",
        "that is the most memory that an instance has on this machine; build it with less to begin with (--initial-memory)",
    ),
];

/// For a module without `_start`.
pub(super) fn no_program(name: &str, exports: &[String], imports: &[String]) -> StartError {
    let part_of_a_component = exports
        .iter()
        .any(|export| export.starts_with("cabi_") || (export.contains(':') && export.contains('#')))
        || imports.iter().any(|import| import.starts_with("wasi:"));
    let elsewhere = built_for(imports);
    let instead = if part_of_a_component {
        "it is what a component is made of: make one of it with `wasm-tools component new`, or build it for wasm32-wasip2".to_owned()
    } else if elsewhere.is_empty() {
        "it is built as a library, build it as a program with a `main`".to_owned()
    } else {
        elsewhere
    };
    StartError::new(format!(
        "{name} is a module that can't be run: it exports {}, and no `_start`, with which a WASI 0.1 program begins; {instead}",
        listed(exports)
    ))
}

/// For a component that exports nothing of what gives it events.
pub(super) fn no_world(name: &str, exports: &[String]) -> StartError {
    let instead = if exports.iter().any(|export| export.starts_with(message::INTERFACE_NAME)) {
        "; build it against wasm-examples/wit/event.wit of this version"
    } else if exports.iter().any(|export| export.starts_with("wasi:")) {
        "; build it for wasi:http/proxy 0.2, wasi:http/service 0.3 or wasi:cli/command"
    } else {
        ""
    };
    StartError::new(format!(
        "{name} is a component that can't be run: it exports {}, and none of `wasi:http/incoming-handler` 0.2, \
         `wasi:http/handler` 0.3 (for requests), `{}` (for messages), `wasi:cli/run` 0.2 and 0.3 (a command){instead}",
        listed(exports),
        message::INTERFACE
    ))
}

/// For imports that nothing here offers.
pub(super) fn missing_imports(name: &str, missing: &[String]) -> StartError {
    let mut instead = built_for(missing);
    if instead.is_empty() {
        instead = "compose it with a component that exports them, or build it without them".to_owned();
    }
    StartError::new(format!(
        "{name} imports what is not offered here: {}; {instead}",
        listed(missing)
    ))
}

/// For interfaces that are offered, but not as they are imported.
pub(super) fn not_linked(name: &str, error: &wasmtime::Error) -> StartError {
    let error = format!("{error:#}");
    let instead = if error.contains("`wasi:") {
        "; the interface is a draft or newer than what is offered here, build it for WASI 0.2.0 or 0.3.0"
    } else {
        ""
    };
    StartError::new(format!("{name} can't be linked: {error}{instead}"))
}

/// For what the compiler doesn't take.
pub(super) fn not_compiled(path: &Path, error: &wasmtime::Error) -> StartError {
    let error = format!("{error:#}");
    let instead = COMPILER_SAYS
        .iter()
        .find(|(said, _)| error.contains(said))
        .map_or(String::new(), |(_, instead)| format!("; {instead}"));
    StartError::new(format!("{} can't be compiled: {error}{instead}", path.display()))
}

/// What to do about `imports` that tell which host they are for.
fn built_for(imports: &[String]) -> String {
    let tells = |import: &String| BUILT_FOR.iter().position(|(prefix, _)| import.starts_with(prefix));
    let mut told: Vec<usize> = imports.iter().filter_map(tells).collect();
    told.sort_unstable();
    let mut instead: Vec<&str> = told.into_iter().map(|index| BUILT_FOR[index].1).collect();
    instead.dedup();
    instead.join("; ")
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        return "nothing".to_owned();
    }
    let mut list: Vec<String> = names
        .iter()
        .take(LISTED)
        .map(|name| format!("`{}`", name.escape_debug()))
        .collect();
    if let Some(more) = names.len().checked_sub(LISTED).filter(|more| *more > 0) {
        list.push(format!("and {more} more"));
    }
    list.join(", ")
}
