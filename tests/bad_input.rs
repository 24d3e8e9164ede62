//! What a user gets to read when something is wrong with what they brought.

use crate::support::{Served, built, folder_with, program};

/// Starts a program that can't be served, and returns what is said of it.
fn refused(program: impl AsRef<std::path::Path>, arguments: &[&str]) -> String {
    let (status, output) = Served::launch(program, arguments).end();
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(!output.contains("serving on"), "{output}");
    assert!(!output.contains("panicked"), "{output}");
    output
}

fn says(output: &str, expected: &[&str]) {
    for expected in expected {
        assert!(output.contains(expected), "{expected:?} is not said:\n{output}");
    }
}

#[test]
fn a_path_that_is_not_there() {
    says(
        &refused("/nowhere/main.py", &[]),
        &["error: can't read /nowhere/main.py", "No such file"],
    );
}

#[test]
fn a_folder_without_a_program() {
    let folder = folder_with("notes.txt", "hello");
    says(
        &refused(folder.path(), &[]),
        &["found no program", "notes.txt", "--entrypoint"],
    );
}

#[test]
fn an_entrypoint_that_is_not_there() {
    let plain = program("asgi-plain");
    says(
        &refused(&plain, &["--entrypoint", "other:app"]),
        &["no entrypoint \"other:app\"", "main.py"],
    );
    says(
        &refused(&plain, &["--entrypoint", "main:nothing"]),
        &["no 'nothing'", "it has:"],
    );
    says(
        &refused(program("asgi-no-app"), &[]),
        &[
            "nothing to run under the names app",
            "it has: my_service",
            "entrypoint: main:NAME",
        ],
    );
}

#[test]
fn a_package_that_is_not_installed() {
    let python = folder_with("main.py", "import absent.part\n");
    let missing = "ModuleNotFoundError: No module named 'absent'. In the program's folder, `";
    let output = refused(python.path(), &[]);
    says(
        &output,
        &[
            missing,
            "`python3 -m venv .venv && .venv/bin/pip install absent` installs",
        ],
    );
    std::fs::write(python.path().join("requirements.txt"), "absent\n").unwrap();
    std::fs::create_dir(python.path().join("venv")).unwrap();
    let output = refused(python.path(), &[]);
    says(
        &output,
        &[missing, "`venv/bin/pip install -r requirements.txt` installs"],
    );
    // No package is wanting where the program's own is not whole.
    std::fs::create_dir(python.path().join("absent")).unwrap();
    let output = refused(python.path(), &[]);
    assert!(
        output.contains("No module named 'absent.part'") && !output.contains("install"),
        "{output}"
    );

    let node = folder_with("main.js", "require('@scope/absent/part')");
    let missing = "Error: Cannot find module '@scope/absent/part'. In the program's folder, `";
    says(
        &refused(node.path(), &[]),
        &[missing, "`npm install @scope/absent` installs"],
    );
    std::fs::write(node.path().join("package.json"), r#"{"main": "main.js"}"#).unwrap();
    says(&refused(node.path(), &[]), &[missing, "`npm install` installs"]);
    std::fs::write(node.path().join("main.js"), "require('./absent')").unwrap();
    let output = refused(node.path(), &[]);
    assert!(
        output.contains("Cannot find module './absent'") && !output.contains("install"),
        "{output}"
    );
}

#[test]
fn a_python_file_that_serves_by_itself() {
    let script = "import http.server\n\
                  http.server.HTTPServer(('127.0.0.1', 0), http.server.BaseHTTPRequestHandler).serve_forever()\n";
    let folder = folder_with("main.py", script);
    let output = refused(folder.path(), &["--start-timeout", "1"]);
    says(
        &output,
        &[
            "not ready within 1 s: it listens on 127.0.0.1:",
            "`engine = \"executable\"` in a polyinit.toml",
        ],
    );
}

#[test]
fn a_syntax_error_in_the_programs_own_terms() {
    let output = refused(program("asgi-syntax-error"), &[]);
    says(&output, &["SyntaxError", "main.py", "line "]);
    assert!(
        !output.contains("importlib") && !output.contains("polyinit worker"),
        "{output}"
    );
}

#[test]
fn an_import_that_is_missing() {
    let folder = folder_with("main.py", "import nowhere_to_be_found\napp = None\n");
    let output = refused(folder.path(), &[]);
    says(&output, &["No module named 'nowhere_to_be_found'", "main.py\", line 1"]);
}

#[test]
fn a_lifespan_that_fails() {
    let output = refused(program("asgi-lifespan-failed"), &[]);
    says(
        &output,
        &["startup failed", "the database at db.example does not answer"],
    );
}

#[test]
fn a_lifespan_that_never_completes() {
    let folder = folder_with(
        "main.py",
        "import asyncio\nasync def app(s, r, t):\n    await asyncio.Event().wait()\n",
    );
    let output = refused(folder.path(), &["--start-timeout", "0.5"]);
    says(&output, &["within 0.5 s"]);
}

#[test]
fn a_program_that_ends_while_it_is_imported() {
    for (code, expected) in [
        ("raise SystemExit(4)", "sys.exit(4)"),
        ("import os; os._exit(5)", "exited with status 5"),
    ] {
        let folder = folder_with("main.py", code);
        says(&refused(folder.path(), &[]), &[expected]);
    }
}

#[test]
fn wasm_that_is_none_or_wants_too_much() {
    says(&refused(built("bad/bad-text.wasm"), &[]), &["no WebAssembly"]);
    says(&refused(built("bad/bad-import.wasm"), &[]), &["frobnicate"]);
    refused(built("bad/bad-component-import.wasm"), &[]);
    refused(built("bad/bad-empty.wasm"), &[]);
    refused(built("bad/bad-cut.wasm"), &[]);
    refused(built("bad/bad-no-entry.wasm"), &[]);
}

#[test]
fn a_port_in_use() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let plain = program("asgi-plain");
    let running = crate::support::Running::start(&["serve", plain.to_str().unwrap(), "--listen", &address]);
    let (status, output) = running.end();
    assert_eq!(status.code(), Some(1));
    says(&output, &["can't listen on", &address, "--listen"]);
}

#[test]
fn an_address_without_its_port() {
    let running = crate::support::Running::start(&["serve", ".", "--listen", "localhost"]);
    let (status, output) = running.end();
    assert_eq!(status.code(), Some(2));
    says(
        &output,
        &["--listen", "an IP address and a port, such as 127.0.0.1:8080"],
    );
}

#[test]
fn a_zip_that_leads_outside() {
    use std::io::Write;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file("../evil.py", zip::write::SimpleFileOptions::default())
        .unwrap();
    zip.write_all(b"app = None").unwrap();
    let folder = folder_with("app.zip", zip.finish().unwrap().into_inner());
    says(&refused(folder.path().join("app.zip"), &[]), &["../evil.py", "refused"]);
}

#[test]
fn an_executable_that_dies_or_never_listens() {
    let output = refused(program("exec-dies/run.sh"), &[]);
    says(&output, &["status 7", "giving up"]);
    let output = refused(program("exec-never-listens/run.sh"), &["--start-timeout", "1"]);
    says(&output, &["did not listen", "within 1s"]);
}

#[test]
fn a_manifest_with_a_mistake() {
    let folder = folder_with("polyinit.toml", "[components.a]\nsuorce = \"x\"\n");
    says(
        &refused(folder.path(), &[]),
        &["polyinit.toml:2:1: unknown key `suorce`", "did you mean `source`?"],
    );
}

#[test]
fn a_command_line_that_is_not_understood() {
    let (status, output) = crate::support::Running::start(&["sevre", "x"]).end();
    assert_eq!(status.code(), Some(2));
    says(&output, &["serve"]);
}

#[test]
fn a_path_that_is_not_utf_8() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join(std::ffi::OsStr::from_bytes(b"a\xff"));
    std::fs::create_dir(&program).unwrap();
    let run = |arguments: &[&std::ffi::OsStr]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_polyinit"));
        let output = command.args(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (text(output.stdout), text(output.stderr))
    };
    for (file, language) in [("main.py", "Python"), ("index.mjs", "Node")] {
        std::fs::write(program.join(file), "").unwrap();
        let (_, said) = run(&["invoke".as_ref(), program.as_ref()]);
        says(
            &said,
            &[&format!("is no path for a {language} program: it is not UTF-8")],
        );
        let (json, said) = run(&["inspect".as_ref(), "--json".as_ref(), program.as_ref()]);
        assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{said}");
        std::fs::remove_file(program.join(file)).unwrap();
    }
    // Where such a name is merely among those that are there.
    let entrypoint = ["invoke", "--entrypoint", "nothing:app"].map(AsRef::as_ref);
    let (_, said) = run(&[entrypoint.as_slice(), &[folder.path().as_ref()]].concat());
    assert!(!said.contains("can't be read"), "{said}");
}
