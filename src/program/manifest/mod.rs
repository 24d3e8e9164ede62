//! `polyinit.toml`: says what the program's parts are, where guessing would not do. From the text to [`Component`]s.
//!
//! ```toml
//! [components.api]
//! source = "api"              # file or folder, relative to this file; "." by default
//! entrypoint = "main:app"     # optional, as is the engine
//! engine = "python"
//! environment = { GREETING = "hello" }
//! routes = ["/api/*"]         # every path by default; with messages and other components, none
//! messages = true             # takes the network's messages
//! ```
//!
//! [`keys`] has the keys, [`schema`] holds a text against them, and what types can't say is checked here. All mistakes
//! are told at once, each where it stands.

mod form;
mod http;
mod keys;
mod schema;

use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub use keys::{
    AccessLog, ComponentKeys, CorsKeys, HttpKeys, ManifestKeys, RateKeys, RouteKeys, RouteTable, ScheduleKeys,
};
pub use schema::schema;

use super::build::Build;
use super::route::Route;
use super::{Component, Hint, Program, ProgramError, detect, limits};
use crate::report::mistake::{Mistake, Source, nearest};
use crate::schedule::Schedule;

/// The name of the file.
pub const NAME: &str = "polyinit.toml";

/// A manifest is some pages of text: more than this is none.
const MAX_BYTES: u64 = 1 << 20;

/// The mistakes of one manifest, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.0.iter()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, mistake) in self.0.iter().enumerate() {
            let newline = if number == 0 { "" } else { "\nerror: " };
            write!(f, "{newline}{mistake}")?;
        }
        Ok(())
    }
}

/// Reads the manifest in `root`, if there is one.
///
/// # Errors
/// [`ProgramError::Manifest`] with every mistake, its file, line and column.
pub fn read(root: &Path) -> Result<Option<Program>, ProgramError> {
    with_text(root, |source| parse(source, root))
}

/// The build commands in the manifest in `root`, if there is one. What they are to make need not be there.
///
/// # Errors
/// As [`read`], for mistakes of form.
pub fn builds(root: &Path) -> Result<Option<Vec<Build>>, ProgramError> {
    let here = std::path::absolute(root).map_err(|error| ProgramError::read(root, error))?;
    with_text(root, |source| {
        let keys = keys_of(source)?.components.into_iter();
        Ok(keys.filter_map(|(name, keys)| build_of(name, &keys, &here)).collect())
    })
}

fn build_of(component: String, keys: &ComponentKeys, root: &Path) -> Option<Build> {
    let watched = match &keys.watch {
        Some(paths) => paths.iter().map(|path| root.join(path)).collect(),
        None => vec![root.to_owned()],
    };
    Some(Build {
        component,
        command: keys.build.clone()?,
        directory: root.to_owned(),
        watched,
        product: root.join(&keys.source),
    })
}

fn with_text<T>(
    root: &Path,
    read: impl FnOnce(Source<'_>) -> Result<T, Vec<Mistake>>,
) -> Result<Option<T>, ProgramError> {
    let path = root.join(NAME);
    let mut text = String::new();
    let length = match std::fs::File::open(&path) {
        Ok(file) => file.take(MAX_BYTES + 1).read_to_string(&mut text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => Err(error),
    };
    if length.map_err(|error| ProgramError::read(&path, error))? as u64 > MAX_BYTES {
        let error = std::io::Error::other(format!("it is longer than a manifest may be, {MAX_BYTES} bytes"));
        return Err(ProgramError::read(&path, error));
    }
    let source = Source {
        path: &path,
        text: &text,
    };
    read(source)
        .map(Some)
        .map_err(|mistakes| ProgramError::Manifest(Mistakes(mistakes)))
}

fn keys_of(source: Source<'_>) -> Result<ManifestKeys, Vec<Mistake>> {
    toml::from_str(source.text).map_err(|first| form::mistakes(source, &first).0)
}

fn parse(source: Source<'_>, root: &Path) -> Result<Program, Vec<Mistake>> {
    let (keys, mistakes) = match toml::from_str(source.text) {
        Ok(keys) => (keys, Vec::new()),
        Err(first) => match form::mistakes(source, &first) {
            // What is left may have mistakes of the other kind, which are told, too.
            (mistakes, Some(keys)) => (keys, mistakes),
            (mistakes, None) => return Err(mistakes),
        },
    };
    let mut check = Check {
        source,
        found: mistakes,
    };
    let program = check.program(keys, root);
    if check.found.is_empty() {
        return Ok(program);
    }
    check.found.sort_by_key(|mistake| (mistake.line, mistake.column));
    Err(check.found)
}

/// The name in the same folder that is nearest to that of `path`, which isn't there.
fn neighbour(path: &Path) -> Option<String> {
    let wanted = path.file_name()?.to_str()?;
    let entries = std::fs::read_dir(path.parent()?).ok()?.flatten();
    let names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    nearest(wanted, names.iter().map(String::as_str)).map(str::to_owned)
}

/// One step of the way to a value.
#[derive(Clone, Copy)]
enum Step<'a> {
    Key(&'a str),
    Item(usize),
}

/// What types can't say.
struct Check<'a> {
    source: Source<'a>,
    found: Vec<Mistake>,
}

impl Check<'_> {
    fn program(&mut self, keys: ManifestKeys, root: &Path) -> Program {
        if keys.components.is_empty() {
            let message = "it names no component";
            self.say(
                &[Step::Key("components")],
                message,
                Some("add a table [components.NAME]"),
            );
        }
        let mut components: Vec<Component> = Vec::with_capacity(keys.components.len());
        for (name, keys) in keys.components {
            components.extend(self.component(name, keys, root));
        }
        self.conflicts(&components);
        self.http(&keys.http);
        Program {
            components,
            http: keys.http,
        }
    }

    fn component(&mut self, name: String, mut keys: ComponentKeys, root: &Path) -> Option<Component> {
        let at = [Step::Key("components"), Step::Key(&name)];
        if !is_name(&name) {
            self.say(
                &at,
                "not a name for a component",
                Some("letters, digits, - and _, at most 63 of them"),
            );
        }
        let routes = keys.routes.as_ref().map(|routes| self.routes(&at, routes));
        self.environment(&at, &keys);
        self.schedules(&at, &keys);
        let hint = Hint {
            entrypoint: keys.entrypoint.clone(),
            engine: keys.engine,
            ..Hint::default()
        };
        let path = root.join(&keys.source);
        if !path.exists() {
            let message = format!("there is no {}", path.display());
            let hint = match &keys.build {
                Some(_) => Some("run `polyinit build`, which makes it".to_owned()),
                None => neighbour(&path)
                    .map(|name| format!("did you mean `{}`?", keys.source.with_file_name(name).display())),
            };
            self.say(&[&at[..], &[Step::Key("source")]].concat(), message, hint.as_deref());
            return None;
        }
        match detect::find(&path, &hint) {
            Ok(component) => {
                for (key, problem) in limits::mistakes(&keys, component.engine) {
                    self.say(&[&at[..], &[Step::Key(key)]].concat(), problem, None);
                }
                keys.wasm.resolve(root);
                Some(Component {
                    name,
                    environment: keys.environment.clone(),
                    routes,
                    messages: keys.messages.any(),
                    keys,
                    ..component
                })
            }
            Err(error) => {
                let key = match &error {
                    ProgramError::NoEntrypoint { .. } | ProgramError::Misspelt { .. } => "entrypoint",
                    ProgramError::OtherEngine { .. } => "engine",
                    _ => "source",
                };
                self.say(&[&at[..], &[Step::Key(key)]].concat(), error.to_string(), None);
                None
            }
        }
    }

    fn routes(&mut self, at: &[Step<'_>], routes: &[RouteKeys]) -> Vec<Route> {
        let mut good = Vec::with_capacity(routes.len());
        for (number, keys) in routes.iter().enumerate() {
            match Route::new(keys) {
                Ok(route) => good.push(route),
                Err(error) => {
                    let mut at = [at, &[Step::Key("routes"), Step::Item(number)]].concat();
                    if matches!(keys, RouteKeys::Table(_)) {
                        at.push(Step::Key(error.key));
                    }
                    self.say(&at, error.problem, None);
                }
            }
        }
        good
    }

    fn schedules(&mut self, at: &[Step<'_>], keys: &ComponentKeys) {
        for (number, schedule) in keys.schedules.iter().enumerate() {
            // The component's own name, which may be wrong, too, has been looked at.
            if let Err((key, problem)) = Schedule::new("component", schedule) {
                let at = [at, &[Step::Key("schedules"), Step::Item(number), Step::Key(key)]].concat();
                self.say(&at, problem, None);
            }
        }
    }

    /// A name with `=` in it, and a zero byte anywhere, can't be given to a program (environ(7)).
    fn environment(&mut self, at: &[Step<'_>], keys: &ComponentKeys) {
        for (name, value) in &keys.environment {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                let at = [at, &[Step::Key("environment"), Step::Key(name)]].concat();
                self.say(&at, "not a variable that a program can be given", None);
            }
        }
    }

    /// Of two routes that say the same, none wins.
    fn conflicts(&mut self, components: &[Component]) {
        let alone = components.len() == 1;
        let taken = |component: &Component| component.routes_taken(alone);
        for (number, component) in components.iter().enumerate() {
            for (place, route) in taken(component).iter().enumerate() {
                let before = components[..number].iter().find_map(|other| {
                    let route = taken(other).into_iter().find(|theirs| theirs.conflicts(route))?;
                    Some((other, route))
                });
                let within = taken(component)[..place].iter().any(|other| other.conflicts(route));
                let message = match before {
                    Some((other, theirs)) => {
                        format!("the route {route} is taken by [components.{}], as {theirs}", other.name)
                    }
                    None if within => format!("the route {route} is there twice"),
                    None => continue,
                };
                let mut at = vec![Step::Key("components"), Step::Key(&component.name)];
                if component.routes.is_some() {
                    at.extend([Step::Key("routes"), Step::Item(place)]);
                }
                let hint = "let one of them say more, or less: a longer path, a host, methods; routes = [] takes none";
                self.say(&at, message, Some(hint));
            }
        }
    }

    fn say(&mut self, at: &[Step<'_>], message: impl Into<String>, hint: Option<&str>) {
        let span = locate(self.source.text, at);
        self.found
            .push(self.source.mistake(span, message, hint.map(str::to_owned)));
    }
}

/// Where the value at the end of the way stands, or else as much of the way as there is; a table by its name.
fn locate(text: &str, way: &[Step<'_>]) -> Range<usize> {
    let Ok(document) = DeTable::parse(text) else {
        return 0..0;
    };
    let mut span = 0..0;
    let mut here: Option<&Spanned<DeValue<'_>>> = None;
    for step in way {
        let next = match step {
            Step::Key(name) => {
                let table = match here {
                    Some(value) => value.get_ref().as_table(),
                    None => Some(document.get_ref()),
                };
                let entry = table.and_then(|table| table.iter().find(|(key, _)| key.get_ref() == name));
                entry.map(|(key, value)| (key.span(), value))
            }
            Step::Item(number) => {
                let array = here.and_then(|value| value.get_ref().as_array());
                let item = array.and_then(|array| array.get(*number));
                item.map(|item| (item.span(), item))
            }
        };
        let Some((name, value)) = next else { break };
        span = if value.get_ref().is_table() { name } else { value.span() };
        here = Some(value);
    }
    span
}

/// Components are asked for as `http://NAME.internal`: a name is a label of a host name (RFC 1035, 2.3.1), or nearly.
fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{EngineKind, Entrypoint};

    fn manifest(text: &str) -> (tempfile::TempDir, Result<Option<Program>, ProgramError>) {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join(NAME), text).unwrap();
        std::fs::create_dir(root.path().join("api")).unwrap();
        std::fs::write(root.path().join("api/main.py"), "app = None").unwrap();
        std::fs::write(root.path().join("page.mjs"), "").unwrap();
        let read = read(root.path());
        (root, read)
    }

    /// What is said of a manifest, with the folder that it stood in taken out.
    fn mistakes(text: &str) -> String {
        let (root, read) = manifest(text);
        let said = read.expect_err(text).to_string();
        said.replace(&format!("{}/", root.path().display()), "")
    }

    #[test]
    fn reads_components() {
        let (root, read) = manifest(
            r#"
            [components.api]
            source = "api"
            entrypoint = "main:app"
            environment = { A = "1" }
            routes = ["/api/*", { path = "/x", methods = ["GET"], host = "a.example" }]
            [components.page]
            source = "page.mjs"
            messages = true
            "#,
        );
        let components = read.unwrap().unwrap().components;
        assert_eq!(components[0].name, "api");
        assert_eq!(components[0].engine, EngineKind::Python);
        assert_eq!(components[0].root, root.path().join("api"));
        let attribute = Some("app".to_owned());
        let module = "main".to_owned();
        assert_eq!(components[0].entrypoint, Entrypoint::Module { module, attribute });
        assert_eq!(components[0].environment["A"], "1");
        let routes: Vec<String> = components[0].routes_taken(false).iter().map(Route::to_string).collect();
        assert_eq!(routes, ["/api/*", "GET a.example/x"]);
        assert_eq!(components[1].engine, EngineKind::Node);
        assert!(components[1].messages);
        assert!(components[1].routes_taken(false).is_empty());
    }

    #[test]
    fn shows_every_mistake_where_it_stands() {
        let text = "\
[components.api]
suorce = \"api\"
engine = \"pyhton\"
environment = { A = 1 }
routes = [\"/a\", { path = 1, hots = \"x\" }, 3]

[componnets.page]
";
        assert_eq!(
            mistakes(text),
            "\
polyinit.toml:2:1: unknown key `suorce`
  2 | suorce = \"api\"
    | ^^^^^^
  did you mean `source`?
error: polyinit.toml:3:10: `pyhton` is not one of `python`, `node`, `executable`, `wasm`, `static`
  3 | engine = \"pyhton\"
    |          ^^^^^^^^
  did you mean `python`?
error: polyinit.toml:4:21: this is an integer, and must be a string
  4 | environment = { A = 1 }
    |                     ^
error: polyinit.toml:5:26: this is an integer, and must be a string
  5 | routes = [\"/a\", { path = 1, hots = \"x\" }, 3]
    |                          ^
error: polyinit.toml:5:29: unknown key `hots`
  5 | routes = [\"/a\", { path = 1, hots = \"x\" }, 3]
    |                             ^^^^
  did you mean `host`?
error: polyinit.toml:5:43: this is an integer, and must be a string or a table
  5 | routes = [\"/a\", { path = 1, hots = \"x\" }, 3]
    |                                           ^
error: polyinit.toml:7:2: unknown key `componnets`
  7 | [componnets.page]
    |  ^^^^^^^^^^
  did you mean `components`?"
        );
    }

    #[test]
    fn shows_what_types_can_not_tell() {
        for (text, expected) in [
            (
                "[components.a]\nsource = \"nowhere\"\n[components.\"b c\"]",
                "polyinit.toml:2:10: there is no nowhere",
            ),
            ("[components.\"b c\"]", "polyinit.toml:1:13: not a name for a component"),
            (
                "[components.a]\nsource = \"api\"\nroutes = [\"/x\", \"api\"]",
                "polyinit.toml:3:17: the route \"api\" must begin with a slash",
            ),
            (
                "[components.a]\nsource = \"api\"\nroutes = [{ path = \"/\", methods = [\"get\"] }]",
                "polyinit.toml:3:35: \"get\" is not how a method is written: \"GET\"",
            ),
            ("[components]", "polyinit.toml:1:2: it names no component"),
            ("", "polyinit.toml:1:1: it names no component"),
            (
                "[components.a]\nsource = \"api\"\nentrypoint = \"nowhere:app\"",
                "polyinit.toml:3:14: there is no entrypoint \"nowhere:app\"",
            ),
            ("[components.a]\nsource = \"api", "polyinit.toml:2:"),
            ("[components.a]\nx = 1\nx = 2\n", "polyinit.toml:3:1: duplicate key"),
            (
                "[components.a]\nsource = \"api\"\nroutes = [\"/a\", \"/a\"]",
                "polyinit.toml:3:17: the route /a is there twice",
            ),
            (
                "[components.a]\nsource = \"api\"\n[components.b]\nsource = \"api\"",
                "polyinit.toml:3:13: the route /* is taken by [components.a]",
            ),
            (
                "[components.a]\nsource = \"api\"\nenvironment = { \"A=B\" = \"\" }",
                "polyinit.toml:3:25: not a variable",
            ),
        ] {
            let said = mistakes(text);
            assert!(said.starts_with(expected), "{text}\n{said}");
        }
    }

    #[test]
    fn no_manifest_is_no_mistake() {
        let root = tempfile::tempdir().unwrap();
        assert!(read(root.path()).unwrap().is_none());
    }

    #[test]
    fn what_the_schema_takes_is_what_the_types_take() {
        // A key that one of them knows and the other does not would be a mistake that is told of nowhere, or nowhere
        // near where it is.
        for text in [
            "[components.a]\nroutes = [{ }]\nengine = \"wasm\"\nmessages = false\nentrypoint = \"x\"",
            "[components.a]\nenvironment = {}\nroutes = []",
        ] {
            assert!(toml::from_str::<ManifestKeys>(text).is_ok(), "{text}");
            assert!(schema::check(&DeTable::parse(text).unwrap()).is_empty(), "{text}");
        }
    }
}
