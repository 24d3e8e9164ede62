//! polyinit.toml: what `check` and `routes` say of it, and where requests go by it.

use std::process::Command;

use crate::support::{Served, folder_with, request};

/// A component that answers with its own name and the path.
fn program(manifest: &str, components: &[&str]) -> tempfile::TempDir {
    let folder = folder_with("polyinit.toml", manifest);
    for name in components {
        let code = format!(
            "async def app(scope, receive, send):\n    assert scope['type'] == 'http'\n    \
             await send({{'type': 'http.response.start', 'status': 200}})\n    \
             await send({{'type': 'http.response.body', 'body': b'{name} ' + scope['path'].encode()}})\n"
        );
        std::fs::write(folder.path().join(format!("{name}.py")), code).unwrap();
    }
    folder
}

/// Runs the binary to its end: its exit code, and what it printed to standard output and to standard error.
pub fn polyinit(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_polyinit"))
        .args(arguments)
        .env_remove("POLYINIT_LOG")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

const SHOP: &str = r#"
[components.front]
source = "front.py"
[components.api]
source = "api.py"
routes = ["/api/*"]
[components.read]
source = "read.py"
routes = [{ path = "/book", methods = ["GET"] }]
[components.admin]
source = "admin.py"
routes = [{ host = "admin.example" }, { host = "*.staff.example", path = "/only" }]
[components.hidden]
source = "hidden.py"
routes = []
"#;
const NAMES: [&str; 5] = ["front", "api", "read", "admin", "hidden"];

#[tokio::test]
async fn requests_go_where_the_routes_say() {
    let folder = program(SHOP, &NAMES);
    let app = Served::start(folder.path(), &[]);
    for (path, expected) in [
        ("/", "front /"),
        ("/api/books", "api /api/books"),
        ("/apix", "front /apix"),
        ("/book", "read /book"),
    ] {
        assert_eq!(app.get(path).await.text(), expected);
    }
    for (host, path, expected) in [
        ("ADMIN.example:8080", "/api/x", "admin /api/x"),
        ("a.staff.example", "/only", "admin /only"),
        ("staff.example", "/only", "front /only"),
    ] {
        let sent = http::Request::get(path).header("host", host);
        assert_eq!(request(&app.address, sent, "").await.text(), expected);
    }
    app.stop();
}

#[tokio::test]
async fn a_method_that_nobody_takes_is_a_405_with_allow() {
    let manifest = "[components.read]\nsource = \"read.py\"\nroutes = [{ path = \"/book\", methods = [\"GET\"] }]";
    let folder = program(manifest, &["read"]);
    let app = Served::start(folder.path(), &[]);
    let refused = request(&app.address, http::Request::delete("/book"), "").await;
    assert_eq!(refused.status, 405);
    assert_eq!(refused.all("allow"), [b"GET, HEAD"]);
    assert_eq!(refused.json()["status"], 405);
    assert_eq!(app.get("/other").await.status, 404);
    app.stop();
}

#[test]
fn routes_are_shown_in_the_order_in_which_they_are_tried() {
    let folder = program(SHOP, &NAMES);
    let path = folder.path().to_str().unwrap();
    let (code, said, _) = polyinit(&["routes", path]);
    assert_eq!(code, 0);
    assert_eq!(
        said,
        "\
admin.example/*       admin (python)
*.staff.example/only  admin (python)
GET /book             read (python)
/api/*                api (python)
/*                    front (python)
messages go to no component: give one `messages = true`
"
    );
    let (_, json, _) = polyinit(&["routes", path, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[2]["route"], "GET /book");
    assert_eq!(json[2]["component"], "read");
    assert_eq!(json[2]["engine"], "python");
}

#[test]
fn everyone_who_takes_messages_is_shown() {
    let manifest = "\
[components.a]
source = \"a.py\"
messages = true
[components.b]
source = \"b.py\"
messages = [{ channel = \"shop\", type = \"POST\" }, { sender = \"0x1\" }]
";
    let folder = program(manifest, &["a", "b"]);
    let (_, said, _) = polyinit(&["routes", folder.path().to_str().unwrap()]);
    assert_eq!(
        said,
        "\
messages                                     a (python)
messages type=POST channel=shop, sender=0x1  b (python)
"
    );
}

#[test]
fn check_tells_every_mistake_at_once() {
    let folder = program("[components.a]\nsuorce = \"x\"\nmessages = 1\n", &[]);
    let path = folder.path().to_str().unwrap();
    let (code, said, errors) = polyinit(&["check", path]);
    assert_eq!((code, said.as_str()), (1, ""));
    let file = format!("{path}/polyinit.toml");
    let expected = format!(
        "error: {file}:2:1: unknown key `suorce`\n  2 | suorce = \"x\"\n    | ^^^^^^\n  did you mean `source`?\n\
         error: {file}:3:12: this is an integer, and must be true or false or an array\n  3 | messages = 1\n    |            ^\n"
    );
    assert_eq!(errors, expected);
    let (code, json, errors) = polyinit(&["check", path, "--json"]);
    assert_eq!((code, errors.as_str()), (1, ""));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let first = &json["mistakes"][0];
    assert_eq!(
        (&first["line"], &first["column"], &first["hint"]),
        (&2.into(), &1.into(), &"did you mean `source`?".into())
    );
    assert_eq!(json["mistakes"].as_array().unwrap().len(), 2);
}

#[test]
fn check_says_that_all_is_well_and_what_is_no_manifests_fault() {
    let folder = program(SHOP, &NAMES);
    let path = folder.path().to_str().unwrap();
    let (code, said, errors) = polyinit(&["check", path]);
    assert_eq!((code, errors.as_str()), (0, ""));
    assert!(said.contains("no mistake: admin (python), api (python)"), "{said}");
    let manifest = folder.path().join("polyinit.toml");
    for command in ["check", "routes", "inspect", "build"] {
        assert_eq!(polyinit(&[command, manifest.to_str().unwrap()]).0, 0, "{command}");
    }
    let (code, json, _) = polyinit(&["check", path, "--json"]);
    assert_eq!(code, 0);
    assert!(json.contains("\"admin.py is a Python file\""), "{json}");
    let (code, _, errors) = polyinit(&["check", "/nowhere"]);
    assert_eq!(code, 1);
    assert!(errors.contains("can't read /nowhere"), "{errors}");
    let (code, json, _) = polyinit(&["check", "/nowhere", "--json"]);
    assert_eq!(code, 1);
    assert!(json.contains("can't read /nowhere"), "{json}");
}

#[test]
fn check_prints_the_schema_that_is_published() {
    let published = include_str!("../docs/polyinit.schema.json");
    assert_eq!(
        polyinit(&["check", "--schema"]),
        (0, published.to_owned(), String::new())
    );
    assert_eq!(polyinit(&["check"]).0, 2);
}

/// Mistakes of form and others, in one component and in another: all are told at once, each where it stands.
#[test]
fn every_mistake_is_told_at_once() {
    let manifest = "\
[components.a]
source = \"a.py\"
workers = \"many\"
memory = \"12XB\"
cpu = 0
schedules = [{ cron = \"61 * * * *\" }, { cron = \"* * * * *\", method = \"post\" }]
[components.b]
source = \"bee.py\"
[components.c]
source = \"a.py\"
engine = \"node\"
[components.d]
source = \".\"
entrypoint = \"bea:app\"
[components.e]
engine = \"static\"
source = \".\"
messages = true
environment = { A = \"1\" }
[http]
timeout = -1
acces_log = \"json\"
[static]
folder = \"public\"
[routes]
";
    let folder = program(manifest, &["a", "bea_"]);
    std::fs::rename(folder.path().join("bea_.py"), folder.path().join("beta.py")).unwrap();
    let (code, _, errors) = polyinit(&["check", folder.path().to_str().unwrap()]);
    assert_eq!(code, 1, "{errors}");
    for (place, said) in [
        (":3:11: ", "this is a string, and must be an integer or `auto`"),
        (":4:10: ", "\"12XB\" is no size"),
        (":5:7: ", "must be a number of processors"),
        (":6:23: ", "is no cron expression: Number out of bounds; it is minute"),
        (":6:70: ", "\"post\" is not how a method is written: \"POST\""),
        (":8:10: ", "did you mean `beta.py`?"),
        (":11:10: ", "a.py is Python"),
        (":14:14: ", "did you mean `beta`?"),
        (":18:12: ", "is for programs, and static files are none"),
        (":19:1: ", "is for programs, and static files are none"),
        (":21:11: ", "must be more than 0"),
        (":22:1: ", "did you mean `access_log`?"),
        (
            ":23:2: ",
            "static files are a component: [components.NAME] with engine = \"static\"",
        ),
        (":25:2: ", "it belongs below [components.NAME]"),
    ] {
        let account = errors
            .split("error: ")
            .find(|account| account.contains(&format!("polyinit.toml{place}")));
        let account = account.unwrap_or_else(|| panic!("nothing at {place}: {errors}"));
        assert!(account.contains(said) && account.contains('^'), "{place}: {account}");
    }
    assert_eq!(errors.matches("error: ").count(), 14, "{errors}");
}

/// Nothing is said of what a component does that it doesn't.
#[test]
fn who_takes_messages_is_told_truly() {
    for (template, takes) in [
        ("static", false),
        ("executable", false),
        ("handler", true),
        ("node", true),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app").to_str().unwrap().to_owned();
        assert_eq!(polyinit(&["new", template, &path]).0, 0);
        let (_, inspected, _) = polyinit(&["inspect", &path, "--json"]);
        let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
        assert_eq!(inspected["components"][0]["messages"], takes, "{template}: {inspected}");
        let (_, routes, _) = polyinit(&["routes", &path]);
        assert_eq!(
            !routes.contains("messages go to no component"),
            takes,
            "{template}: {routes}"
        );
    }
}

/// A star with credentials, or an origin that no browser writes so, would let nobody in.
#[test]
fn what_can_not_be_in_cors_is_told() {
    for (keys, said) in [
        (
            "credentials = true, methods = [\"*\"]",
            "\"*\" stands for nothing with credentials",
        ),
        (
            "credentials = true, headers = [\"*\"]",
            "\"*\" stands for nothing with credentials",
        ),
        (
            "credentials = true, expose = [\"*\"]",
            "\"*\" stands for nothing with credentials",
        ),
        ("methods = [\"*\"], headers = [\"*\"], expose = [\"*\"]", ""),
    ] {
        cors_says(&format!("origins = [\"https://a.example\"], {keys}"), said);
    }
    for origin in [
        "https://A.example",
        "HTTPS://a.example",
        "https://a.example:443",
        "http://a.example:80",
    ] {
        cors_says(&format!("origins = [\"{origin}\"]"), "is no origin");
    }
    cors_says("origins = [\"http://a.example:443\", \"https://a.example:8443\"]", "");
}

fn cors_says(keys: &str, said: &str) {
    let manifest = format!("[components.api]\nsource = \"api.py\"\n[http]\ncors = {{ {keys} }}\n");
    let folder = program(&manifest, &["api"]);
    let (code, _, errors) = polyinit(&["check", folder.path().to_str().unwrap()]);
    assert_eq!(code, i32::from(!said.is_empty()), "{keys}: {errors}");
    assert!(errors.contains(said), "{keys}: {errors}");
}
