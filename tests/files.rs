//! Static files.

use ::http::Request;

use crate::support::{Served, folder_with, request};

const MANIFEST: &str = "[components.assets]\nengine = \"static\"\nsource = \"public\"\nroutes = [\"/static/*\"]\n";

fn site() -> tempfile::TempDir {
    let folder = folder_with("polyinit.toml", MANIFEST);
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    write("secret.txt", "secret");
    write("public/index.html", "<h1>home</h1>");
    write("public/app.js", "0123456789");
    write("public/app.js.gz", "as gzip");
    write("public/app.js.br", "as brotli");
    write("public/.env", "secret");
    write("public/.well-known/x", "known");
    write("public/docs/index.html", "<h1>docs</h1>");
    write("public/a b.txt", "a b");
    folder
}

#[tokio::test]
async fn files_folders_and_their_types() {
    let folder = site();
    let app = Served::start(folder.path(), &[]);
    let home = app.get("/static/").await;
    assert_eq!((home.status, home.text().as_str()), (200, "<h1>home</h1>"));
    assert_eq!(home.all("content-type"), [b"text/html; charset=utf-8"]);
    for (path, to) in [
        ("/static", "/static/"),
        ("/static?a=b", "/static/?a=b"),
        ("/static/docs", "/static/docs/"),
        ("/static/docs?a=b", "/static/docs/?a=b"),
    ] {
        let moved = app.get(path).await;
        assert_eq!(
            (moved.status, moved.all("location")),
            (307, vec![to.as_bytes()]),
            "{path}"
        );
    }
    assert_eq!(app.get("/static/docs/").await.text(), "<h1>docs</h1>");
    assert_eq!(app.get("/static/a%20b.txt").await.text(), "a b");
    assert_eq!(app.get("/static/.well-known/x").await.text(), "known");
    let head = request(&app.address, Request::head("/static/app.js"), "").await;
    assert_eq!((head.status, head.all("content-length")), (200, vec![&b"10"[..]]));
    let post = request(&app.address, Request::post("/static/app.js"), "x").await;
    assert_eq!((post.status, post.all("allow").len()), (405, 1));
    app.stop();
}

#[tokio::test]
async fn what_is_not_for_everybody() {
    let folder = site();
    std::os::unix::fs::symlink("loop", folder.path().join("public/loop")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("public/socket")).unwrap();
    for name in ["fifo", "app.js.zst"] {
        nix::unistd::mkfifo(&folder.path().join("public").join(name), nix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    std::os::unix::fs::symlink("/dev/zero", folder.path().join("public/device")).unwrap();
    let app = Served::start(folder.path(), &[]);
    let compressed = app.ask("/static/app.js", &[("accept-encoding", "zstd")]).await;
    assert_eq!((compressed.status, compressed.text().as_str()), (200, "0123456789"));
    for path in ["/static/fifo", "/static/socket", "/static/device"] {
        let head = request(&app.address, Request::head(path), "").await;
        assert_eq!(head.status, 404, "{path}");
    }
    for path in [
        "/static/loop",
        "/static/fifo",
        "/static/socket",
        "/static/device",
        "/static/nothing",
        "/static/.env",
        "/static/%2eenv",
        "/static/../secret.txt",
        "/static/%2e%2e/secret.txt",
        "/static/..%2fsecret.txt",
        "/static/docs/..%2f..%2fsecret.txt",
        "/static//etc/passwd",
        "/static/%00",
        "/static/app.js/x",
        &format!("/static/{}", "x".repeat(5000)),
    ] {
        let response = app.get(path).await;
        assert_eq!(response.status, 404, "{path}: {}", response.text());
    }
    app.stop();
}

#[tokio::test]
async fn ranges_and_what_the_client_has_already() {
    let folder = site();
    let app = Served::start(folder.path(), &[]);
    let whole = app.get("/static/app.js").await;
    assert_eq!(whole.text(), "0123456789");
    let value = |name: &str| String::from_utf8(whole.all(name)[0].to_vec()).unwrap();
    let part = app.ask("/static/app.js", &[("range", "bytes=2-4")]).await;
    assert_eq!((part.status, part.text().as_str()), (206, "234"));
    assert_eq!(part.all("content-range"), [b"bytes 2-4/10"]);
    assert_eq!(app.ask("/static/app.js", &[("range", "bytes=20-")]).await.status, 416);
    for (name, held) in [
        ("if-none-match", value("etag")),
        ("if-modified-since", value("last-modified")),
    ] {
        let same = app.ask("/static/app.js", &[(name, &held)]).await;
        assert_eq!((same.status, same.body.len()), (304, 0), "{name}");
    }
    for held in [value("etag"), value("last-modified")] {
        let rest = [("range", "bytes=8-"), ("if-range", &held)];
        assert_eq!(app.ask("/static/app.js", &rest).await.text(), "89", "{held}");
    }
    std::fs::write(folder.path().join("public/app.js"), "changed").unwrap();
    for range in ["bytes=2-4", "bytes=8-"] {
        let rest = [("range", range), ("if-range", &value("etag"))];
        let other = app.ask("/static/app.js", &rest).await;
        assert_eq!((other.status, other.text().as_str()), (200, "changed"), "{range}");
    }
    let other = app.ask("/static/app.js", &[("if-none-match", &value("etag"))]).await;
    assert_eq!((other.status, other.text().as_str()), (200, "changed"));
    app.stop();
}

#[tokio::test]
async fn what_is_no_part_of_a_file_is_all_of_it() {
    let folder = site();
    std::fs::write(folder.path().join("public/empty"), "").unwrap();
    let app = Served::start(folder.path(), &[]);
    for range in [
        "bytes=-400",
        "bytes=0-1,4-5",
        "lines=1-2",
        "bytes=4-2",
        "bytes= 0-1",
        "bytes",
    ] {
        let whole = app.ask("/static/app.js", &[("range", range)]).await;
        assert_eq!((whole.status, whole.text().as_str()), (200, "0123456789"), "{range}");
        assert!(whole.all("content-range").is_empty(), "{range}");
    }
    for range in ["bytes=10-", "bytes=10-12", "bytes=-0"] {
        let none = app.ask("/static/app.js", &[("range", range)]).await;
        assert_eq!(
            (none.status, none.all("content-range")),
            (416, vec![&b"bytes */10"[..]]),
            "{range}"
        );
    }
    for range in ["bytes=0-", "bytes=-5"] {
        assert_eq!(
            app.ask("/static/empty", &[("range", range)]).await.status,
            200,
            "{range}"
        );
    }
    app.stop();
}

#[tokio::test]
async fn what_was_compressed_ahead_goes_to_those_who_take_it() {
    let folder = site();
    let app = Served::start(folder.path(), &[]);
    for (accepted, encoding, content) in [
        ("gzip", &[&b"gzip"[..]][..], "as gzip"),
        ("gzip, br", &[b"br"], "as brotli"),
        ("identity", &[], "0123456789"),
    ] {
        let response = app.ask("/static/app.js", &[("accept-encoding", accepted)]).await;
        assert_eq!(
            (response.text().as_str(), response.all("content-encoding").as_slice()),
            (content, encoding)
        );
        assert!(
            response.all("content-type")[0].starts_with(b"text/javascript"),
            "{response:?}"
        );
        assert_eq!(response.all("vary"), [b"accept-encoding"]);
    }
    app.stop();
}

#[tokio::test]
async fn a_folder_with_an_index_needs_no_manifest() {
    let folder = folder_with("index.html", "<p>hello");
    std::fs::create_dir(folder.path().join("docs")).unwrap();
    let app = Served::start(folder.path(), &[]);
    // Not to the host `docs`.
    assert_eq!(app.get("//docs").await.all("location"), [b"/docs/"]);
    assert!(
        app.output().contains("index.html is there, serves its files → static"),
        "{}",
        app.output()
    );
    assert_eq!(app.get("/").await.text(), "<p>hello");
    app.stop();
}
