//! `polyinit new`: every template runs as it comes out.

use std::path::Path;

use crate::manifest::polyinit;
use crate::support::{Served, built};

fn made(template: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app").to_str().unwrap().to_owned();
    let (code, said, errors) = polyinit(&["new", template, &path]);
    assert_eq!(code, 0, "{errors}");
    assert!(said.contains("polyinit serve ."), "{said}");
    (folder, path)
}

/// Serves what the template made, with these variables, and asks it.
async fn asks(template: &str, arguments: &[&str], replies: &[(&str, &str)]) {
    let (_folder, path) = made(template);
    serves(&path, arguments, replies).await;
}

async fn serves(path: &str, arguments: &[&str], replies: &[(&str, &str)]) {
    let app = Served::start(path, arguments);
    for (path, expected) in replies {
        let reply = app.get(path).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        assert!(reply.text().contains(expected), "{path}: {}", reply.text());
    }
    app.stop();
}

#[tokio::test]
async fn those_with_nothing_to_install() {
    for template in ["python", "handler", "node", "executable"] {
        asks(template, &[], &[("/", "world"), ("/you", "you")]).await;
    }
    asks("static", &[], &[("/", "<h1>Hello, world</h1>"), ("/style.css", "font")]).await;
    asks(
        "polyglot",
        &[],
        &[
            ("/", "<h1>Polyglot</h1>"),
            ("/api/", "\"site\": \"Polyglot\""),
            ("/static/style.css", "font"),
        ],
    )
    .await;
}

#[tokio::test]
async fn those_in_python_with_packages() {
    let packages = format!("PYTHONPATH={}", crate::python::packages());
    asks(
        "fastapi",
        &["--env", &packages],
        &[("/", "world"), ("/greet/you?shout=1", "HELLO, YOU!")],
    )
    .await;
    let packages = format!("PYTHONPATH={}", built("frameworks").display());
    asks(
        "flask",
        &["--env", &packages],
        &[("/", "world"), ("/greet/you", "Hello, you")],
    )
    .await;
}

#[tokio::test]
async fn those_that_are_compiled() {
    for (template, product, expected) in [
        ("go", "app.wasm", "{\"hello\":\"you\"}"),
        ("rust", "target/wasm32-wasip1/release/app.wasm", "{\"hello\": \"you\"}"),
        ("c", "app.wasm", "Hello from C: GET /you"),
    ] {
        let (_folder, path) = made(template);
        // Not every machine has the compilers where the template's own command looks for them: `wasm-examples/build`
        // has built the same sources with those that it brings.
        let product = Path::new(&path).join(product);
        std::fs::create_dir_all(product.parent().unwrap()).unwrap();
        std::fs::copy(built(&format!("template-{template}.wasm")), product).unwrap();
        serves(&path, &[], &[("/you", expected)]).await;
    }
}

#[test]
fn editors_find_the_schema_beside_the_manifest() {
    let (_, schema, _) = polyinit(&["check", "--schema"]);
    for template in ["polyglot", "go", "rust", "c"] {
        let (_folder, path) = made(template);
        let read = |name: &str| std::fs::read_to_string(Path::new(&path).join(name)).unwrap();
        let first = read("polyinit.toml").lines().next().unwrap().to_owned();
        let named = first.strip_prefix("#:schema ./").unwrap();
        let [beside, printed] =
            [&read(named), &schema].map(|text| serde_json::from_str::<serde_json::Value>(text).unwrap());
        assert_eq!(beside, printed, "{template}");
    }
}

#[test]
fn nothing_is_written_over() {
    let (_folder, path) = made("python");
    let (code, _, errors) = polyinit(&["new", "node", &path]);
    assert_eq!(code, 1);
    assert!(errors.contains("is there already"), "{errors}");
    let (code, _, errors) = polyinit(&["new", "fortran", "/nowhere"]);
    assert_eq!(code, 2);
    assert!(errors.contains("polyglot"), "{errors}");
}

#[test]
fn build_runs_the_commands_and_says_what_is_wrong() {
    let manifest = "\
[components.good]
build = \"printf '#!/bin/sh\\\\n' > good\"
source = \"good\"
[components.bad]
build = \"echo line 7: no such thing; exit 2\"
source = \"bad\"
routes = [\"/bad\"]
";
    let folder = crate::support::folder_with("polyinit.toml", manifest);
    let path = folder.path().to_str().unwrap();
    let (code, _, errors) = polyinit(&["check", path]);
    assert_eq!(code, 1);
    assert!(errors.contains("run `polyinit build`, which makes it"), "{errors}");
    let (code, said, errors) = polyinit(&["build", path, "good"]);
    assert_eq!(code, 0, "{errors}");
    assert!(said.contains("good: built in "), "{said}");
    let (code, _, errors) = polyinit(&["build", path]);
    assert_eq!(code, 1);
    assert!(
        errors.contains("bad: the build command failed with status 2"),
        "{errors}"
    );
    assert!(errors.contains("line 7: no such thing"), "{errors}");
    let (code, _, errors) = polyinit(&["build", path, "other"]);
    assert_eq!(code, 1);
    assert!(errors.contains("these have: bad, good"), "{errors}");
    let (code, _, errors) = polyinit(&["build", env!("CARGO_MANIFEST_DIR")]);
    assert_eq!(code, 1);
    assert!(errors.contains("there is no polyinit.toml in"), "{errors}");
}

#[test]
fn what_to_do_next_can_be_copied_to_a_shell() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it's mine").to_str().unwrap().to_owned();
    let (code, said, errors) = polyinit(&["new", "python", &path]);
    assert_eq!(code, 0, "{errors}");
    let line = said.lines().find(|line| line.contains("cd ")).unwrap();
    let output = std::process::Command::new("sh")
        .args(["-c", &format!("{line} && pwd")])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), path);
}
