//! The recipes of docs/programs.md for languages that have no worker of ours: whatever listens is served.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Served, built, program};

/// Asks a program that tells what it was asked, and the same again at once from many sides.
async fn asks(folder: PathBuf, arguments: &[&str], language: &str) -> Value {
    let app = Served::start(folder, arguments);
    assert!(app.output().contains("run.sh begins with #!"), "{}", app.output());
    let posted = app.post("/a/b?q=1", "hello").await;
    assert_eq!(posted.status, 200, "{posted:?}");
    let told = posted.json();
    assert_eq!(told["language"], language);
    assert_eq!(told["method"], "POST");
    assert_eq!(told["uri"], "/a/b?q=1");
    assert_eq!(told["body"], "hello");
    assert_eq!(told["forwarded"], "127.0.0.1");
    let many = (0..20).map(|_| app.get("/"));
    for reply in futures_util::future::join_all(many).await {
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    app.stop();
    told
}

#[tokio::test]
async fn php() {
    let told = asks(program("exec-php"), &[], "PHP").await;
    assert_eq!(told["query"]["q"], "1");
}

#[tokio::test]
async fn ruby() {
    asks(program("exec-ruby"), &[], "Ruby").await;
}

#[tokio::test]
async fn java() {
    asks(built("exec-java"), &[], "Java").await;
}

/// PATH with a runtime that `tests/host/get-programs` has fetched.
fn path_with(runtime: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/toolchains/js");
    let folder = folder.join(runtime).join("node_modules/.bin");
    assert!(
        folder.join(runtime).exists(),
        "{} is not there: run tests/host/get-programs, or make test",
        folder.display()
    );
    format!("PATH={}:{}", folder.display(), std::env::var("PATH").unwrap())
}

#[tokio::test]
async fn deno() {
    let cache = tempfile::tempdir().unwrap();
    let cache = format!("DENO_DIR={}", cache.path().display());
    asks(
        program("exec-deno"),
        &["--env", &path_with("deno"), "--env", &cache],
        "Deno",
    )
    .await;
}

#[tokio::test]
async fn bun() {
    asks(program("exec-bun"), &["--env", &path_with("bun")], "Bun").await;
}
