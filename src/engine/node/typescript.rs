//! What Node has to be told to run a program that is written in TypeScript: it takes types off itself, from 22.6 on by a
//! flag, from 22.18 and 23.6 on without.

use std::time::Duration;

use super::start_script::{self, StartScript};
use crate::engine::process;
use crate::engine::{Settings, StartError};
use crate::open_files;
use crate::program::{Component, Entrypoint};

const FLAG: &str = "--experimental-strip-types";

/// How long Node may take to tell its version, which it does in some 10 ms.
const PATIENCE: Duration = Duration::from_secs(10);

/// The flags for `component`, none where it does not begin with TypeScript.
///
/// # Errors
/// The Node that there is can't run TypeScript.
pub async fn flags(
    component: &Component,
    settings: &Settings,
    start: Option<&StartScript>,
) -> Result<Vec<String>, StartError> {
    if !begins_with_typescript(component, start) {
        return Ok(Vec::new());
    }
    let asked = tokio::process::Command::from(open_files::command("node"))
        .arg("--version")
        .env_clear()
        .envs(process::environment(component, settings))
        .kill_on_drop(true)
        .output();
    let said = match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        // What is wrong with it is told when it is started.
        _ => return Ok(Vec::new()),
    };
    match version(&said) {
        Some(version) if version < (22, 6) && start.is_some_and(StartScript::loads_ahead) => Ok(Vec::new()),
        Some(version) if version < (22, 6) => Err(StartError::new(format!(
            "{}: it is TypeScript, which this Node, {said}, can't run: it takes Node 22.6 or newer. Bring such a one (first \
             on PATH), or compile the program to JavaScript",
            component.name
        ))),
        Some(version) if needs_flag(version) => Ok(vec![FLAG.to_owned()]),
        _ => Ok(Vec::new()),
    }
}

fn needs_flag(version: (u32, u32)) -> bool {
    version < (22, 18) || ((23, 0)..(23, 6)).contains(&version)
}

/// `v22.7.0`
fn version(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.strip_prefix('v')?.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn begins_with_typescript(component: &Component, start: Option<&StartScript>) -> bool {
    let Entrypoint::File(file) = &component.entrypoint else {
        return false;
    };
    // `node .` runs what the description names.
    if let Some(start) = start.filter(|start| !matches!(&start.file[..], "." | "./")) {
        return is_typescript(&start.file);
    }
    let Some(description) = start_script::description(component) else {
        return is_typescript(&file.to_string_lossy());
    };
    let mut names = description["main"].as_str().map(str::to_owned).into_iter().collect();
    strings(&description["exports"], &mut names);
    names.iter().any(|name| is_typescript(name))
}

/// All strings in `value`.
fn strings(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::String(text) => found.push(text.clone()),
        serde_json::Value::Array(values) => values.iter().for_each(|value| strings(value, found)),
        serde_json::Value::Object(fields) => fields.values().for_each(|value| strings(value, found)),
        _ => {}
    }
}

fn is_typescript(file: &str) -> bool {
    !file.ends_with(".d.ts")
        && [".ts", ".mts", ".cts"]
            .iter()
            .any(|extension| file.ends_with(extension))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::EngineKind;

    #[test]
    fn a_start_script_may_leave_the_file_to_the_description() {
        let folder = tempfile::tempdir().unwrap();
        let begins = |main: &str, start: &str| {
            let description = serde_json::json!({ "main": main, "scripts": { "start": start } });
            std::fs::write(folder.path().join("package.json"), description.to_string()).unwrap();
            let entrypoint = Entrypoint::File(".".into());
            let component = Component::new("program", folder.path(), EngineKind::Node, entrypoint);
            begins_with_typescript(&component, StartScript::of(&description).as_ref())
        };
        assert!(begins("src/a.ts", "node ."));
        assert!(begins("a.js", "node src/a.ts"));
        assert!(!begins("src/a.ts", "node a.js"));
        assert!(!begins("a.js", "node ./"));
    }

    #[test]
    fn knows_who_needs_the_flag() {
        for (said, expected) in [
            ("v22.6.0", true),
            ("v22.17.1", true),
            ("v22.18.0", false),
            ("v23.5.0", true),
            ("v23.6.0", false),
            ("v24.9.0", false),
        ] {
            assert_eq!(needs_flag(version(said).unwrap()), expected, "{said}");
        }
        assert_eq!(version("nonsense"), None);
    }
}
