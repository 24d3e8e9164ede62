//! Tells from the program itself which engine runs it, and says why.
//!
//! Hosts of today can only say "asgi" or "executable", so the program's own bytes are what decides: a Wasm module says
//! `\0asm`, an executable is ELF or begins with `#!`, and sources are told by their names.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::report::mistake::nearest;

use super::page::Page;
use super::{Component, EngineKind, Entrypoint, Hint, Interface, ProgramError};

/// Files that a Python program may begin with, best first.
const PYTHON: [&str; 5] = ["main.py", "app.py", "asgi.py", "application.py", "server.py"];

/// Where a Python program may begin besides: files that stand in programs of other languages, too, and packages. Empty ones
/// are no programs.
const PYTHON_BESIDES: [&str; 6] = [
    "wsgi.py",
    "api.py",
    "app/main.py",
    "app/app.py",
    "app/api.py",
    "app/__init__.py",
];

/// Files that a Node program may begin with, where there is no package.json, best first.
const NODE: [&str; 12] = [
    "index.mjs",
    "index.js",
    "index.cjs",
    "main.mjs",
    "main.js",
    "main.cjs",
    "server.mjs",
    "server.js",
    "server.cjs",
    "app.mjs",
    "app.js",
    "app.cjs",
];

/// The same in TypeScript: looked for behind what says how it is to be run, since Deno and Bun have such files, too.
const TYPESCRIPT: [&str; 12] = [
    "index.ts",
    "index.mts",
    "index.cts",
    "main.ts",
    "main.mts",
    "main.cts",
    "server.ts",
    "server.mts",
    "server.cts",
    "app.ts",
    "app.mts",
    "app.cts",
];

/// Files that a program of executables may begin with, best first.
const EXECUTABLE: [&str; 6] = ["run", "run.sh", "start.sh", "server", "app", "main"];

/// As much of a `manage.py` is read, in bytes: Django's own has 700.
const MANAGE_LIMIT: u64 = 64 << 10;

/// What the first bytes of a file, or its name, say it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A core module, a component, or one of these compiled ahead.
    Wasm,
    Elf,
    /// `#!`
    Script,
    Python,
    Node,
    Other,
}

impl FileKind {
    /// As a part of a sentence.
    fn name(self) -> &'static str {
        match self {
            Self::Wasm => "WebAssembly",
            Self::Elf => "an ELF executable",
            Self::Script => "a script with #!",
            Self::Python => "Python",
            Self::Node => "JavaScript or TypeScript",
            Self::Other => "none of what can be run",
        }
    }

    /// Looks at name and first bytes of a file.
    ///
    /// # Errors
    /// Those of open(2) and read(2).
    pub fn of(path: &Path) -> std::io::Result<Self> {
        let mut start = Vec::with_capacity(8);
        File::open(path)?.take(8).read_to_end(&mut start)?;
        Ok(Self::of_bytes(&start, path))
    }

    /// The same for a file that isn't there yet.
    pub fn of_bytes(bytes: &[u8], name: &Path) -> Self {
        match name.extension().and_then(|extension| extension.to_str()) {
            Some("wasm" | "cwasm") => return Self::Wasm,
            Some("py") => return Self::Python,
            Some("js" | "mjs" | "cjs" | "ts" | "mts" | "cts") => return Self::Node,
            _ => {}
        }
        match bytes {
            [0, b'a', b's', b'm', ..] => Self::Wasm,
            // The operating system that Wasmtime's machine code is for (EI_OSABI, elf(5)) is Wasmtime.
            [0x7f, b'E', b'L', b'F', _, _, _, 200, ..] => Self::Wasm,
            [0x7f, b'E', b'L', b'F', ..] => Self::Elf,
            [b'#', b'!', ..] => Self::Script,
            _ => Self::Other,
        }
    }
}

/// Finds the one component of the program at `source`, a file or a folder.
///
/// # Errors
/// [`ProgramError`], which says what is there where nothing can be run.
pub fn find(source: &Path, hint: &Hint) -> Result<Component, ProgramError> {
    let (root, file) = if source.is_dir() {
        (source.to_owned(), None)
    } else {
        let root = source
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        (root.to_owned(), source.file_name().map(PathBuf::from))
    };
    let root = std::path::absolute(&root).map_err(|error| ProgramError::read(&root, error))?;
    let finder = Finder { root: &root, hint };
    if hint.engine == Some(EngineKind::Static) {
        return finder.files(source);
    }
    match (&hint.entrypoint, file) {
        (Some(entrypoint), None) => finder.named(entrypoint),
        // `polyinit serve main.py --entrypoint app` names the object in the file.
        (Some(entrypoint), Some(file)) if FileKind::of_bytes(b"", &file) == FileKind::Python => {
            let module = module_of(&file);
            let (named, attribute) = match entrypoint.rsplit_once(':') {
                Some((named, attribute)) => (Some(named), attribute),
                None => (None, entrypoint.as_str()),
            };
            // What a host calls the module of a program that is one file need not be what the file is called.
            if hint.interface.is_none() && named.is_some_and(|named| named != module) {
                return Err(ProgramError::Misspelt {
                    entrypoint: entrypoint.clone(),
                    meant: format!("{module}:{attribute}"),
                    root,
                });
            }
            let why = format!("{} is a Python file", file.display());
            finder.python(&module, Some(attribute.to_owned()), why)
        }
        (_, Some(file)) => finder.file(&file),
        (None, None) => finder.guess(),
    }
}

struct Finder<'a> {
    root: &'a Path,
    hint: &'a Hint,
}

impl Finder<'_> {
    /// The entrypoint is named: a module with an attribute, or a file.
    fn named(&self, entrypoint: &str) -> Result<Component, ProgramError> {
        let file = Path::new(entrypoint.trim_start_matches('/'));
        let absolute = Path::new(entrypoint);
        if self.root.join(file).is_file() {
            return self.file(file);
        }
        if absolute.is_absolute() && absolute.is_file() {
            return self.file(absolute);
        }
        let (module, attribute) = match entrypoint.split_once(':') {
            Some((module, attribute)) => (module, Some(attribute.to_owned())),
            None => (entrypoint, None),
        };
        let python = module.split('.').all(is_identifier);
        if let Some(meant) = self
            .misspelt(module)
            .filter(|_| python && self.hint.interface.is_none())
        {
            return Err(ProgramError::Misspelt {
                entrypoint: entrypoint.to_owned(),
                root: self.root.to_owned(),
                meant,
            });
        }
        // What a project has installed of itself is in its virtual environment.
        let may_be_installed = attribute.is_some() && self.hint.interface.is_none();
        let installed = || may_be_installed && [".venv", "venv"].iter().any(|name| self.root.join(name).is_dir());
        if python && (self.has_module(module) || self.hint.engine == Some(EngineKind::Python) || installed()) {
            return self.python(
                module,
                attribute,
                format!("the entrypoint {entrypoint:?} is a Python module"),
            );
        }
        // The host had to say something. What is there may be of another language all the same.
        match self.guess() {
            Ok(mut other) if python && self.hint.interface.is_some() => {
                other.why = format!("there is no Python module {module:?}, but {}", other.why);
                Ok(other)
            }
            _ => Err(ProgramError::NoEntrypoint {
                entrypoint: entrypoint.to_owned(),
                root: self.root.to_owned(),
                there: listing(self.root),
            }),
        }
    }

    fn file(&self, file: &Path) -> Result<Component, ProgramError> {
        let path = self.root.join(file);
        let kind = FileKind::of(&path).map_err(|error| ProgramError::read(&path, error))?;
        let name = file.display();
        let engine = |engine, why: String| Ok(self.component(engine, Entrypoint::File(file.to_owned()), why));
        if let Some(chosen) = self.hint.engine {
            let why = "the manifest says so".to_owned();
            return match chosen {
                EngineKind::Python if kind == FileKind::Python => self.python(&module_of(file), None, why),
                EngineKind::Executable => engine(chosen, why),
                EngineKind::Node if kind == FileKind::Node => engine(chosen, why),
                EngineKind::Wasm if kind == FileKind::Wasm => engine(chosen, why),
                _ => Err(ProgramError::OtherEngine {
                    engine: chosen,
                    path,
                    is: kind.name(),
                }),
            };
        }
        let is_script = || std::fs::read(&path).is_ok_and(|content| content.starts_with(b"#!"));
        match kind {
            FileKind::Wasm => engine(EngineKind::Wasm, format!("{name} is WebAssembly")),
            FileKind::Elf => engine(EngineKind::Executable, format!("{name} is an ELF executable")),
            FileKind::Script => engine(EngineKind::Executable, format!("{name} begins with #!")),
            // The host says that it is to be executed, and it says itself by what.
            FileKind::Python | FileKind::Node if self.hint.interface == Some(Interface::Executable) && is_script() => {
                engine(
                    EngineKind::Executable,
                    format!("{name} begins with #! and is to be executed"),
                )
            }
            FileKind::Python => self.python(&module_of(file), None, format!("{name} is a Python file")),
            FileKind::Node => {
                let is_typescript = file
                    .extension()
                    .is_some_and(|extension| extension.to_string_lossy().ends_with("ts"));
                let language = if is_typescript { "TypeScript" } else { "JavaScript" };
                engine(EngineKind::Node, format!("{name} is {language}"))
            }
            FileKind::Other => Err(ProgramError::Unknown {
                path: path.clone(),
                start: start_of(&path),
            }),
        }
    }

    /// Nothing is named: looks for what programs usually begin with.
    fn guess(&self) -> Result<Component, ProgramError> {
        let first = |names: &[&str]| {
            names
                .iter()
                .map(PathBuf::from)
                .find(|name| self.root.join(name).is_file())
        };
        if let Some(file) = first(&PYTHON) {
            return self.file(&file);
        }
        if let Some(module) = django(self.root) {
            let why = format!("manage.py is a Django project's, with {module}");
            return self.python(&module, Some("application".to_owned()), why);
        }
        let package = self.root.join("package.json");
        if package.is_file() {
            let why = "package.json is there".to_owned();
            return Ok(self.component(EngineKind::Node, Entrypoint::File(PathBuf::from(".")), why));
        }
        if first(&NODE).is_some() {
            let page = Page::first_of(self.root);
            let of_the_page = |name: &str| page.as_ref().is_some_and(|page| page.loads(name));
            let of_node: Vec<&str> = NODE.into_iter().filter(|name| !of_the_page(name)).collect();
            if let Some(file) = first(&of_node) {
                return self.file(&file);
            }
        }
        let mut files = files_in(self.root);
        // What was compiled ahead stands beside what it was compiled from, whatever its name.
        let is_named_so = |file: &Path| file.extension().is_some_and(|extension| extension == "wasm");
        if files.iter().any(|file| is_named_so(file)) {
            let is_wasm = |file: &Path| FileKind::of(&self.root.join(file)).is_ok_and(|kind| kind == FileKind::Wasm);
            files.retain(|file| is_named_so(file) || !is_wasm(file));
        }
        let of_kind = |wanted: &[FileKind]| -> Vec<&PathBuf> {
            let is_one = |file: &&PathBuf| FileKind::of(&self.root.join(file)).is_ok_and(|kind| wanted.contains(&kind));
            files.iter().filter(is_one).collect()
        };
        if let [file] = of_kind(&[FileKind::Wasm])[..] {
            return self.file(file);
        }
        if let Some(file) = first(&EXECUTABLE).or_else(|| first(&TYPESCRIPT)) {
            return self.file(&file);
        }
        // Not what others load, whatever its version (`libpq.so.5`).
        let is_program = |file: &&&PathBuf| !file.to_string_lossy().split('.').skip(1).any(|part| part == "so");
        let compiled = of_kind(&[FileKind::Elf]);
        if let [file] = compiled.iter().filter(is_program).collect::<Vec<_>>()[..] {
            return self.file(file);
        }
        let is_site = self.root.join("index.html").is_file();
        // A site may have a package of that name for something else.
        let is_meant = |name: &&str| !is_site || *name != "app/__init__.py";
        let is_filled = |name: &&str| {
            self.root
                .join(name)
                .metadata()
                .is_ok_and(|file| file.is_file() && file.len() > 0)
        };
        if let Some(file) = PYTHON_BESIDES.into_iter().filter(is_meant).find(is_filled) {
            return self.file(Path::new(file));
        }
        if let [file] = of_kind(&[FileKind::Elf, FileKind::Script])[..] {
            return self.file(file);
        }
        // That one is there to be run: what runs it is another program than one that serves it.
        let is_module = |file: &&&PathBuf| file.as_path() != Path::new("__main__.py");
        if let [file] = of_kind(&[FileKind::Python])
            .iter()
            .filter(is_module)
            .collect::<Vec<_>>()[..]
        {
            return self.file(file);
        }
        if is_site {
            let why = "index.html is there".to_owned();
            return Ok(self.component(EngineKind::Static, Entrypoint::File(PathBuf::from(".")), why));
        }
        Err(ProgramError::Nothing {
            root: self.root.to_owned(),
            there: listing(self.root),
        })
    }

    /// The manifest says that these are files and nothing to run.
    fn files(&self, source: &Path) -> Result<Component, ProgramError> {
        if !source.is_dir() {
            let error = std::io::Error::from(std::io::ErrorKind::NotADirectory);
            return Err(ProgramError::read(source, error));
        }
        let why = "the manifest says so".to_owned();
        Ok(self.component(EngineKind::Static, Entrypoint::File(PathBuf::from(".")), why))
    }

    fn python(&self, module: &str, attribute: Option<String>, why: String) -> Result<Component, ProgramError> {
        let entrypoint = Entrypoint::Module {
            module: module.to_owned(),
            attribute,
        };
        Ok(self.component(EngineKind::Python, entrypoint, why))
    }

    /// The module of the program whose name is near to one that isn't there: an installed one may be meant all the same, but
    /// hardly where its name is as good as the program's own.
    fn misspelt(&self, module: &str) -> Option<String> {
        let first = module.split('.').next().unwrap_or(module);
        if self.has_module(first) {
            return None;
        }
        let own: Vec<String> = files_in(self.root)
            .into_iter()
            .filter(|file| file.extension().is_some_and(|extension| extension == "py"))
            .map(|file| module_of(&file))
            .collect();
        let meant = nearest(first, own.iter().map(String::as_str))?;
        Some(meant.to_owned())
    }

    fn has_module(&self, module: &str) -> bool {
        let path = module.replace('.', "/");
        let folders = std::iter::once(self.root).chain(self.hint.packages.iter().map(PathBuf::as_path));
        folders.into_iter().any(|folder| {
            let path = folder.join(&path);
            path.is_dir() || path.with_extension("py").is_file()
        })
    }

    fn component(&self, engine: EngineKind, entrypoint: Entrypoint, why: String) -> Component {
        let stem = match &entrypoint {
            Entrypoint::File(file) => file.file_stem(),
            Entrypoint::Module { .. } => None,
        };
        let name = match (stem, &self.hint.name) {
            (None, Some(name)) => Some(name.clone()),
            (stem, _) => stem
                .or(self.root.file_name())
                .map(|name| name.to_string_lossy().into_owned()),
        };
        let name = name.unwrap_or_else(|| "program".to_owned());
        Component {
            why,
            ..Component::new(name, self.root, engine, entrypoint)
        }
    }
}

/// The module of a Django project that a server begins with. `manage.py`, as Django writes it, names the package of the
/// settings, and beside these are `wsgi.py` and `asgi.py`. Where both are WSGI is taken: what most views are written
/// for blocks, and Django lets only one such view at once run over ASGI.
fn django(root: &Path) -> Option<String> {
    let mut manage = String::new();
    let file = File::open(root.join("manage.py")).ok()?;
    file.take(MANAGE_LIMIT).read_to_string(&mut manage).ok()?;
    let named = manage.split_once("DJANGO_SETTINGS_MODULE")?.1;
    // What stands in the next quotes behind the variable's own.
    let settings = named.split(['"', '\'']).nth(2)?;
    let package = settings.split('.').next().filter(|package| is_identifier(package))?;
    let has = |kind: &&str| root.join(package).join(kind).with_extension("py").is_file();
    let kind = ["wsgi", "asgi"].into_iter().find(has)?;
    Some(format!("{package}.{kind}"))
}

fn module_of(file: &Path) -> String {
    let module = file.with_extension("").to_string_lossy().replace('/', ".");
    module.strip_suffix(".__init__").map(str::to_owned).unwrap_or(module)
}

fn is_identifier(word: &str) -> bool {
    !word.is_empty()
        && !word.starts_with(|first: char| first.is_ascii_digit())
        && word.chars().all(|letter| letter.is_alphanumeric() || letter == '_')
}

/// The files directly in `root`, sorted, hidden ones left out.
fn files_in(root: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(root)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name();
            (entry.path().is_file() && !name.to_string_lossy().starts_with('.')).then(|| name.into())
        })
        .collect();
    files.sort();
    files
}

fn listing(root: &Path) -> String {
    let mut names: Vec<String> = std::fs::read_dir(root)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let slash = if entry.path().is_dir() { "/" } else { "" };
            Some(format!("{}{slash}", entry.file_name().to_string_lossy()))
        })
        .collect();
    names.sort();
    names.truncate(20);
    if names.is_empty() {
        "nothing".to_owned()
    } else {
        names.join(", ")
    }
}

fn start_of(path: &Path) -> String {
    let mut start = [0; 16];
    let count = File::open(path)
        .and_then(|mut file| file.read(&mut start))
        .unwrap_or_default();
    start[..count].escape_ascii().to_string()
}

#[cfg(test)]
mod tests;
