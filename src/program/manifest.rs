//! `polyinit.toml`: says what the program's parts are, where guessing would not do.
//!
//! ```toml
//! [components.api]
//! source = "api"              # file or folder, from where this file stands; "." unless said
//! entrypoint = "main:app"     # optional, as is the engine
//! engine = "python"
//! environment = { GREETING = "hello" }
//! routes = ["/api/*"]         # every path unless said; with messages = true, none
//! messages = true             # takes the network's messages
//!
//! [components.api.wasm]       # of WebAssembly alone: what it is granted, and its limits (`sandbox`)
//! hosts = ["https://api.example.org"]
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::sandbox::Sandbox;
use super::{Component, EngineKind, Hint, ProgramError, detect};

/// The name of the file.
pub const NAME: &str = "polyinit.toml";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    components: BTreeMap<String, Part>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    #[serde(default = "here")]
    source: PathBuf,
    entrypoint: Option<String>,
    engine: Option<EngineKind>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    routes: Vec<String>,
    #[serde(default)]
    messages: bool,
    wasm: Option<Sandbox>,
}

fn here() -> PathBuf {
    ".".into()
}

/// Reads the manifest in `root`, if there is one.
///
/// # Errors
/// [`ProgramError::Manifest`] with file, line and what is wrong there.
pub fn read(root: &Path) -> Result<Option<Vec<Component>>, ProgramError> {
    let path = root.join(NAME);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ProgramError::read(&path, error)),
    };
    let wrong = |message: String| ProgramError::Manifest {
        path: path.clone(),
        message,
    };
    let manifest: Manifest = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    if manifest.components.is_empty() {
        return Err(wrong("it names no component: add a table [components.NAME]".into()));
    }
    let components = manifest.components.into_iter().map(|(name, part)| {
        for route in &part.routes {
            check_route(route).map_err(|problem| wrong(format!("[components.{name}] routes: {route:?} {problem}")))?;
        }
        let hint = Hint {
            entrypoint: part.entrypoint,
            engine: part.engine,
            ..Hint::default()
        };
        let source = root.join(&part.source);
        if !source.exists() {
            return Err(wrong(format!(
                "[components.{name}] source: there is no {}",
                source.display()
            )));
        }
        let mut component = detect::find(&source, &hint)?;
        component.name = name;
        component.environment = part.environment;
        component.routes = part.routes;
        component.messages = part.messages;
        if let Some(mut sandbox) = part.wasm {
            if component.engine != EngineKind::Wasm {
                return Err(wrong(format!(
                    "[components.{name}.wasm] is for WebAssembly, and {name} is not: {}",
                    component.why,
                    name = component.name
                )));
            }
            sandbox.resolve(root);
            component.wasm = sandbox;
        }
        Ok(component)
    });
    components.collect::<Result<_, _>>().map(Some)
}

fn check_route(route: &str) -> Result<(), &'static str> {
    let plain = route.strip_suffix("/*").unwrap_or(route);
    if !route.starts_with('/') {
        return Err("must begin with a slash");
    }
    if plain.contains('*') {
        return Err("has a star that isn't at the end, behind a slash: \"/api/*\"");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Entrypoint;

    fn manifest(text: &str) -> (tempfile::TempDir, Result<Option<Vec<Component>>, ProgramError>) {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join(NAME), text).unwrap();
        std::fs::create_dir(root.path().join("api")).unwrap();
        std::fs::write(root.path().join("api/main.py"), "app = None").unwrap();
        std::fs::write(root.path().join("page.mjs"), "").unwrap();
        let read = read(root.path());
        (root, read)
    }

    #[test]
    fn reads_components() {
        let (root, read) = manifest(
            r#"
            [components.api]
            source = "api"
            entrypoint = "main:app"
            environment = { A = "1" }
            routes = ["/api/*"]
            [components.page]
            source = "page.mjs"
            messages = true
            "#,
        );
        let components = read.unwrap().unwrap();
        assert_eq!(components[0].name, "api");
        assert_eq!(components[0].engine, EngineKind::Python);
        assert_eq!(components[0].root, root.path().join("api"));
        let attribute = Some("app".to_owned());
        let module = "main".to_owned();
        assert_eq!(components[0].entrypoint, Entrypoint::Module { module, attribute });
        assert_eq!(components[0].environment["A"], "1");
        assert_eq!(components[1].engine, EngineKind::Node);
        assert!(components[1].messages);
    }

    #[test]
    fn says_where_a_mistake_is() {
        for (text, expected) in [
            ("[components.a]\nsuorce = \"api\"", "line 2"),
            ("[components.a]\nsuorce = \"api\"", "`source`"),
            ("[components.a]\nengine = \"ruby\"", "`python`"),
            ("[components.a]\nsource = \"nowhere\"", "there is no"),
            (
                "[components.a]\nsource = \"api\"\nroutes = [\"api\"]",
                "must begin with a slash",
            ),
            ("[components.a]\nsource = \"api\"\nroutes = [\"/a*b\"]", "star"),
            ("[components]", "names no component"),
        ] {
            let (_root, read) = manifest(text);
            let message = read.unwrap_err().to_string();
            assert!(message.contains(expected), "{text:?}: {message}");
            assert!(message.contains(NAME), "{message}");
        }
    }

    #[test]
    fn no_manifest_is_no_mistake() {
        let root = tempfile::tempdir().unwrap();
        assert!(read(root.path()).unwrap().is_none());
    }
}
