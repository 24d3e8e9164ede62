//! Files that are no guests, and what is said of them.

use super::*;

async fn refusal(wat: &str) -> String {
    start_with(&Settings::default(), wat).await.err().unwrap().message
}

#[tokio::test]
async fn imports_that_are_not_offered_are_all_named() {
    let refused =
        refusal(r#"(module (import "env" "frobnicate" (func)) (import "gojs" "x" (func)) (func (export "_start")))"#)
            .await;
    assert_eq!(
        refused,
        "guest.wasm imports what is not offered here: `env.frobnicate`, `gojs.x`; build it with GOOS=wasip1 \
         (GOOS=js is for browsers); link it with wasi-libc and without undefined symbols (Emscripten: -sSTANDALONE_WASM)"
    );
    let refused = refusal(
        r#"(component (import "acme:odd/gadget@1.0.0" (instance)) (import "wasi:keyvalue/store@0.2.0" (instance))
            (instance $i) (export "wasi:cli/run@0.2.0" (instance $i)))"#,
    )
    .await;
    assert!(refused.starts_with(
        "guest.wasm imports what is not offered here: `acme:odd/gadget@1.0.0`, `wasi:keyvalue/store@0.2.0`; build it for WASI 0.2"
    ), "{refused}");
}

#[tokio::test]
async fn what_can_not_be_run_is_told_with_what_it_exports() {
    let refused = refusal(r#"(module (func (export "_initialize")) (func (export "add")))"#).await;
    assert_eq!(
        refused,
        "guest.wasm is a module that can't be run: it exports `_initialize`, `add`, and no `_start`, with which a WASI 0.1 \
         program begins; it is built as a library, build it as a program with a `main`"
    );
    let refused = refusal("(component)").await;
    assert!(
        refused.starts_with(
            "guest.wasm is a component that can't be run: it exports nothing, and none of `wasi:http/incoming-handler` 0.2"
        ),
        "{refused}"
    );
    let exports = (0..20).map(|index| format!("(func (export \"f{index}\"))"));
    let refused = refusal(&format!("(module {})", exports.collect::<String>())).await;
    assert!(refused.contains("`f7`, and 12 more, and no `_start`"), "{refused}");
}

#[tokio::test]
async fn a_module_for_another_host_is_told_how_to_be_built_for_this_one() {
    for (imports, exports, instead) in [
        (
            r#"(import "wbg" "__wbg_log_0f17" (func))"#,
            r#"(func (export "greet"))"#,
            "build it for wasm32-wasip1",
        ),
        (
            r#"(import "./page_bg.js" "__wbg_log_0f17" (func))"#,
            r#"(func (export "greet"))"#,
            "build it for wasm32-wasip1",
        ),
        (
            r#"(import "gojs" "syscall/js.valueGet" (func))"#,
            r#"(func (export "run"))"#,
            "build it with GOOS=wasip1",
        ),
        (
            r#"(import "a" "a" (func)) (import "a" "b" (func))"#,
            r#"(func (export "c"))"#,
            "build it with -sSTANDALONE_WASM",
        ),
        (
            r#"(import "env" "emscripten_resize_heap" (func))"#,
            r#"(func (export "_start"))"#,
            "build it with -sSTANDALONE_WASM",
        ),
        (
            r#"(import "env" "abort" (func))"#,
            r#"(func (export "_start"))"#,
            "compile it with --use abort=",
        ),
        (
            "",
            r#"(func (export "wasi:http/incoming-handler@0.2.0#handle"))"#,
            "make one of it with `wasm-tools component new`",
        ),
    ] {
        let refused = refusal(&format!("(module {imports} {exports})")).await;
        let (_, told) = refused.split_once("; ").unwrap();
        assert!(told.contains(instead) && !told.contains("; "), "{imports}: {refused}");
    }
}

#[tokio::test]
async fn what_the_compiler_does_not_take_is_told_with_what_to_do() {
    for (guest, instead) in [
        (
            r#"(module (memory 5000) (func (export "_start")))"#,
            "exceeds the limit of 0x10000000 bytes; that is the most memory that an instance has on this machine; build it with less",
        ),
        (
            r#"(module (memory 1 2 shared) (func (export "_start")))"#,
            "threads are not offered; build it without them",
        ),
        (
            r#"(module (tag) (func (export "_start")))"#,
            "exceptions are not offered; build it without them",
        ),
        (
            r#"(module (type (struct)) (func (export "_start")))"#,
            "garbage collection by the host is not offered",
        ),
        (
            r#"(module (table 1 externref) (func (export "_start")))"#,
            "garbage collection by the host is not offered",
        ),
    ] {
        let refused = refusal(guest).await;
        assert!(refused.contains(instead), "{refused}");
    }
    let whole = wat::parse_str(module(PLAIN, &say(26))).unwrap();
    let component = wat::parse_str(component("")).unwrap();
    for cut in [&whole[..whole.len() / 2], &component[..component.len() / 2]] {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("guest.wasm"), cut).unwrap();
        let refused = start_file(&Settings::default(), directory.path(), "guest.wasm").await;
        let refused = refused.err().unwrap().message;
        assert!(refused.contains("; the file is not whole; build it again"), "{refused}");
    }
}

#[tokio::test]
async fn a_component_for_a_version_that_is_not_offered_is_told_which_are() {
    for version in ["0.2.99", "0.2.0-rc-2023-11-10"] {
        let refused = refusal(&format!(
            r#"(component
                (import "wasi:clocks/monotonic-clock@{version}" (instance (export "soon" (func (result u64)))))
                (core module $m (func (export "run") (result i32) (i32.const 0)))
                (core instance $i (instantiate $m))
                (func $run (result (result)) (canon lift (core func $i "run")))
                (instance $runner (export "run" (func $run)))
                (export "wasi:cli/run@0.2.0" (instance $runner)))"#
        ))
        .await;
        assert!(
            refused.contains(&format!("`wasi:clocks/monotonic-clock@{version}`")),
            "{refused}"
        );
        assert!(refused.ends_with("build it for WASI 0.2.0 or 0.3.0"), "{refused}");
    }
}
