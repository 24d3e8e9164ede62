//! What is taken for the program, and what is not.

use super::*;

fn found(files: &[(&str, &[u8])], hint: Hint) -> Result<(EngineKind, Entrypoint, String), String> {
    let root = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = root.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let found = find(root.path(), &hint).map_err(|error| error.to_string())?;
    Ok((found.engine, found.entrypoint, found.why))
}

fn engine(files: &[(&str, &[u8])]) -> EngineKind {
    found(files, Hint::default()).unwrap().0
}

#[test]
fn tells_each_kind_by_itself() {
    assert_eq!(engine(&[("main.py", b"app = 1")]), EngineKind::Python);
    assert_eq!(engine(&[("package.json", b"{}")]), EngineKind::Node);
    assert_eq!(engine(&[("index.mjs", b"")]), EngineKind::Node);
    assert_eq!(engine(&[("hello.wasm", b"\0asm\x01\0\0\0")]), EngineKind::Wasm);
    assert_eq!(
        engine(&[("guest", b"\0asm\x0d\0\x01\0"), ("README", b"")]),
        EngineKind::Wasm
    );
    let compiled: (&str, &[u8]) = ("hello", b"\x7fELF\x02\x01\x01\xc8\0");
    assert_eq!(engine(&[compiled]), EngineKind::Wasm);
    let (_, entrypoint, _) = found(&[compiled, ("hello.wasm", b"\0asm\x01\0\0\0")], Hint::default()).unwrap();
    assert_eq!(entrypoint, Entrypoint::File("hello.wasm".into()));
    assert_eq!(
        engine(&[("srv", b"\x7fELF\x02"), ("README", b"")]),
        EngineKind::Executable
    );
    assert_eq!(engine(&[("go.sh", b"#!/bin/sh")]), EngineKind::Executable);
    assert_eq!(
        engine(&[("tidy.sh", b"#!/bin/sh"), ("app/__init__.py", b"")]),
        EngineKind::Executable
    );
    assert_eq!(engine(&[("index.html", b"<p>"), ("a.css", b"")]), EngineKind::Static);
}

#[test]
fn what_a_page_loads_is_for_browsers() {
    let begins = |page: &str, script: &str| engine(&[("index.html", page.as_bytes()), (script, b"")]);
    for (page, script) in [
        ("<script src=\"app.js\" defer></script>", "app.js"),
        ("<script src=./index.js></script>", "index.js"),
        ("<script type=module>import '/main.mjs?v=2'</script>", "main.mjs"),
    ] {
        assert_eq!(begins(page, script), EngineKind::Static, "{page}");
    }
    for page in [
        "<p>Run app.js",
        "<script src=\"other/app.js\">",
        "<script src='my-app.js'>",
    ] {
        assert_eq!(begins(page, "app.js"), EngineKind::Node, "{page}");
    }
    let both: &[(&str, &[u8])] = &[
        ("index.html", b"<script src='main.js'>"),
        ("main.js", b""),
        ("server.js", b""),
    ];
    let (_, entrypoint, _) = found(both, Hint::default()).unwrap();
    assert_eq!(entrypoint, Entrypoint::File("server.js".into()));
}

#[test]
fn knows_a_django_project() {
    let manage = b"os.environ.setdefault(\"DJANGO_SETTINGS_MODULE\", \"shop.settings.dev\")";
    let begins = |files: &[(&str, &[u8])]| match found(files, Hint::default()).unwrap().1 {
        Entrypoint::Module { module, attribute } => format!("{module}:{}", attribute.unwrap_or_default()),
        Entrypoint::File(file) => file.display().to_string(),
    };
    let both: &[(&str, &[u8])] = &[("manage.py", manage), ("shop/asgi.py", b""), ("shop/wsgi.py", b"")];
    assert_eq!(begins(both), "shop.wsgi:application");
    assert_eq!(begins(&both[..2]), "shop.asgi:application");
    // Without either it is a Python file as any other.
    assert_eq!(begins(&both[..1]), "manage:");
}

#[test]
fn knows_the_packages_that_frameworks_begin_with() {
    let begins = |files: &[(&str, &[u8])]| match found(files, Hint::default()).unwrap().1 {
        Entrypoint::Module { module, .. } => module,
        Entrypoint::File(file) => file.display().to_string(),
    };
    let files: &[(&str, &[u8])] = &[
        ("setup.py", b"0"),
        ("prestart.sh", b"#!/bin/sh"),
        ("app/__init__.py", b"app = 0"),
        ("app/main.py", b"app = 0"),
        ("wsgi.py", b"app = 0"),
        ("start.sh", b"#!/bin/sh"),
    ];
    assert_eq!(begins(&files[..3]), "app");
    assert_eq!(begins(&files[..4]), "app.main");
    assert_eq!(begins(&files[..5]), "wsgi");
    // Who says how it is to be run is asked first.
    assert_eq!(begins(files), "start.sh");
    assert_eq!(begins(&[("__main__.py", b"0"), ("web.py", b"0")]), "web");
}

#[test]
fn what_may_be_beside_another_program_is_not_taken_for_it() {
    let engine = |files: &[(&str, &[u8])]| found(files, Hint::default()).unwrap().0;
    let elf = b"\x7fELF\x02\x01\x01";
    assert_eq!(
        engine(&[("myserver", elf), ("wsgi.py", b"app = 0")]),
        EngineKind::Executable
    );
    assert_eq!(
        engine(&[("_fast.so", elf), ("libpq.so.5", elf), ("wsgi.py", b"app = 0")]),
        EngineKind::Python
    );
    assert_eq!(
        engine(&[("index.html", b"hello"), ("app/__init__.py", b"app = 0")]),
        EngineKind::Static
    );
    for program in ["wsgi.py", "app/main.py"] {
        assert_eq!(
            engine(&[("index.html", b"hello"), ("style.css", b""), (program, b"app = 0")]),
            EngineKind::Python
        );
    }
}

#[test]
fn a_module_may_be_in_the_programs_virtual_environment() {
    let named = |folder: &str| {
        let hint = Hint {
            entrypoint: Some("shop.web:app".to_owned()),
            ..Hint::default()
        };
        found(&[(folder, b"")], hint).map(|(engine, ..)| engine)
    };
    assert_eq!(named(".venv/pyvenv.cfg"), Ok(EngineKind::Python));
    assert!(named("src/shop/web.py").is_err());
}

#[test]
fn a_named_entrypoint_wins() {
    let files: &[(&str, &[u8])] = &[("main.py", b""), ("pkg/web.py", b""), ("x.wasm", b"\0asm")];
    let named = |entrypoint: &str| {
        let entrypoint = Some(entrypoint.to_owned());
        found(
            files,
            Hint {
                entrypoint,
                ..Hint::default()
            },
        )
    };
    let (_, entrypoint, _) = named("pkg.web:api").unwrap();
    let attribute = Some("api".to_owned());
    assert_eq!(
        entrypoint,
        Entrypoint::Module {
            module: "pkg.web".into(),
            attribute
        }
    );
    assert_eq!(named("x.wasm").unwrap().0, EngineKind::Wasm);
    assert_eq!(
        named("/pkg/web.py").unwrap().1,
        Entrypoint::Module {
            module: "pkg.web".into(),
            attribute: None
        }
    );
    let error = named("nothere:app").unwrap_err();
    assert!(error.contains("nothere:app") && error.contains("main.py"), "{error}");
}

#[test]
fn an_entrypoint_in_another_file_than_the_one_that_is_named_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let main = root.path().join("main.py");
    std::fs::write(&main, "").unwrap();
    let find = |entrypoint: &str, interface| {
        let entrypoint = Some(entrypoint.to_owned());
        let hint = Hint {
            entrypoint,
            interface,
            ..Hint::default()
        };
        let component = find(&main, &hint).map_err(|error| error.to_string())?;
        match component.entrypoint {
            Entrypoint::Module { module, attribute } => Ok((module, attribute.unwrap_or_default())),
            Entrypoint::File(file) => Err(file.display().to_string()),
        }
    };
    let shop = Ok(("main".to_owned(), "shop".to_owned()));
    assert_eq!(find("shop", None), shop);
    assert_eq!(find("main:shop", None), shop);
    let refused = find("other:shop", None).unwrap_err();
    assert!(refused.ends_with("did you mean `main:shop`?"), "{refused}");
    // A host that sends one file has named it itself.
    assert_eq!(find("other:shop", Some(Interface::Asgi)), shop);
}

#[test]
fn a_host_that_can_only_say_asgi_gets_what_is_there() {
    let hint = Hint {
        entrypoint: Some("main:app".into()),
        interface: Some(Interface::Asgi),
        ..Hint::default()
    };
    let (engine, _, why) = found(&[("server.js", b"")], hint).unwrap();
    assert_eq!(engine, EngineKind::Node);
    assert_eq!(why, "there is no Python module \"main\", but server.js is JavaScript");
}

#[test]
fn a_script_that_is_to_be_executed_is() {
    let hint = |interface| Hint {
        entrypoint: Some("run.py".into()),
        interface,
        ..Hint::default()
    };
    let files: &[(&str, &[u8])] = &[("run.py", b"#!/usr/bin/python3")];
    assert_eq!(
        found(files, hint(Some(Interface::Executable))).unwrap().0,
        EngineKind::Executable
    );
    assert_eq!(found(files, hint(None)).unwrap().0, EngineKind::Python);
}

#[test]
fn says_what_it_can_not_run() {
    let error = found(&[("notes.txt", b"hello")], Hint::default()).unwrap_err();
    assert!(error.contains("notes.txt"), "{error}");
    let entrypoint = Some("notes.txt".to_owned());
    let error = found(
        &[("notes.txt", b"hello")],
        Hint {
            entrypoint,
            ..Hint::default()
        },
    )
    .unwrap_err();
    assert!(error.contains("begins with \"hello\""), "{error}");
}
