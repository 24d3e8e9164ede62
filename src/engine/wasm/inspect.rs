//! What a Wasm file asks for and offers, for the one who wants to know before it runs.

use std::path::Path;

use super::link;
use super::load::{Code, Source};
use super::runtime::{self, Kind};
use crate::engine::StartError;
use crate::program::sandbox::Sandbox;

/// The outside of a Wasm program.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Interface {
    /// `module` (WASI 0.1, or none) or `component`.
    pub form: &'static str,
    /// How it takes events: "a component for wasi:http/proxy 0.2".
    pub runs_as: Option<String>,
    /// Why it can't be run, where that is so.
    pub refused: Option<String>,
    /// Interfaces (`wasi:http/types@0.2.0`) of a component, functions (`module::name`) of a module; sorted.
    pub imports: Vec<String>,
    pub exports: Vec<String>,
}

/// Compiles the Wasm file at `path`, or takes it from the cache, and says what it imports and exports, and whether it can be
/// run.
///
/// # Errors
/// [`StartError`] if the file can't be read or is no valid WebAssembly.
pub fn inspect(path: &Path, cache: Option<&Path>) -> Result<Interface, StartError> {
    let source = Source::read(path)?;
    let kind = Kind {
        machinery: source.machinery(),
        metered: false,
    };
    let runtime = runtime::runtime(kind)?;
    let engine = &runtime.engine;
    let code = source.load(engine, cache)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (runs_as, refused) = match link::link(runtime, &code, &name, &Sandbox::default(), 1) {
        Ok(linked) => (Some(linked.description), None),
        Err(error) => (None, Some(error.message)),
    };
    let (form, mut imports, mut exports): (_, Vec<String>, Vec<String>) = match code {
        Code::Module(module) => (
            "module",
            module
                .imports()
                .map(|import| format!("{}::{}", import.module(), import.name()))
                .collect(),
            module.exports().map(|export| export.name().to_owned()).collect(),
        ),
        Code::Component(component) => {
            let outside = component.component_type();
            (
                "component",
                outside.imports(engine).map(|(name, _)| name.to_owned()).collect(),
                outside.exports(engine).map(|(name, _)| name.to_owned()).collect(),
            )
        }
    };
    imports.sort();
    exports.sort();
    Ok(Interface {
        form,
        runs_as,
        refused,
        imports,
        exports,
    })
}
