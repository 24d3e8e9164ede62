//! `polyinit new`: a program to begin with.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use super::{CommandError, say};
use crate::program::manifest;

/// The file that a template's manifest names as its schema.
const SCHEMA: &str = "polyinit.schema.json";

/// Make a folder with a small program to begin with.
#[derive(Args)]
#[command(after_help = "\
Examples:
  polyinit new fastapi shop && polyinit serve shop --watch
  polyinit new go hello && polyinit build hello && polyinit serve hello
  polyinit new polyglot site")]
pub struct New {
    /// What the program is written in
    template: Template,

    /// The folder to make
    name: PathBuf,
}

/// A program to begin with.
#[derive(Clone, Copy)]
struct Template {
    name: &'static str,
    help: &'static str,
    files: &'static [File],
    /// What has to be there, or done, before it runs.
    needs: Option<&'static str>,
}

#[derive(Clone, Copy)]
struct File {
    path: &'static str,
    content: &'static str,
}

macro_rules! files {
    ($template:literal: $($path:literal),+) => {
        &[$(File { path: $path, content: include_str!(concat!("new/templates/", $template, "/", $path)) }),+]
    };
}

const TEMPLATES: &[Template] = &[
    Template {
        name: "python",
        help: "Python, nothing to install (ASGI)",
        files: files!("python": "main.py"),
        needs: None,
    },
    Template {
        name: "fastapi",
        help: "Python with FastAPI",
        files: files!("fastapi": "main.py", "requirements.txt"),
        needs: Some("python3 -m venv .venv && .venv/bin/pip install -r requirements.txt"),
    },
    Template {
        name: "flask",
        help: "Python with Flask (WSGI)",
        files: files!("flask": "main.py", "requirements.txt"),
        needs: Some("python3 -m venv .venv && .venv/bin/pip install -r requirements.txt"),
    },
    Template {
        name: "handler",
        help: "Python, a plain function for each event",
        files: files!("handler": "main.py"),
        needs: None,
    },
    Template {
        name: "node",
        help: "JavaScript, nothing to install (Fetch API)",
        files: files!("node": "index.mjs", "package.json"),
        needs: None,
    },
    Template {
        name: "go",
        help: "Go, as WebAssembly",
        files: files!("go": "main.go", "go.mod", "polyinit.toml"),
        needs: Some("polyinit build ."),
    },
    Template {
        name: "rust",
        help: "Rust, as WebAssembly",
        files: files!("rust": "Cargo.toml", "src/main.rs", "polyinit.toml", ".gitignore"),
        needs: Some("polyinit build ."),
    },
    Template {
        name: "c",
        help: "C, as WebAssembly",
        files: files!("c": "main.c", "polyinit.toml"),
        needs: Some("polyinit build ."),
    },
    Template {
        name: "executable",
        help: "any program that serves HTTP on $PORT",
        files: files!("executable": "server"),
        needs: None,
    },
    Template {
        name: "static",
        help: "files, no program",
        files: files!("static": "index.html", "style.css"),
        needs: None,
    },
    Template {
        name: "polyglot",
        help: "several of these behind one address",
        files: files!("polyglot": "polyinit.toml", "api/main.py", "page/index.mjs", "public/style.css"),
        needs: None,
    },
];

impl ValueEnum for Template {
    fn value_variants<'a>() -> &'a [Self] {
        TEMPLATES
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name).help(self.help))
    }
}

impl New {
    pub async fn run(self) -> Result<(), CommandError> {
        let folder = &self.name;
        let shown = folder.display();
        // Nobody's files are written over, and none are mixed with ours.
        if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(format!("{shown} is there already, and not empty: name another folder").into());
        }
        let mut names = Vec::new();
        for file in self.template.files {
            write(folder, file.path, file.content)?;
            names.push(file.path);
        }
        if names.contains(&manifest::NAME) {
            // What the manifest's first line names, for editors.
            write(folder, SCHEMA, &format!("{:#}\n", manifest::schema()))?;
            names.push(SCHEMA);
        }
        say(&format!("{shown}: {}", names.join(", ")));
        say("next:");
        say(&format!("  cd {}", quoted(&shown.to_string())));
        if let Some(needs) = self.template.needs {
            say(&format!("  {needs}"));
        }
        say("  polyinit serve .");
        Ok(())
    }
}

fn write(folder: &Path, name: &str, content: &str) -> Result<(), CommandError> {
    let path = folder.join(name);
    let write = || -> io::Result<()> {
        fs::create_dir_all(path.parent().unwrap_or(folder))?;
        fs::write(&path, content)?;
        if content.starts_with("#!") {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    };
    Ok(write().map_err(|error| format!("{} can't be written: {error}", path.display()))?)
}

/// A word as a shell takes it (POSIX, Shell Command Language, 2.2.2).
fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./+,:@%".contains(&byte);
    if word.bytes().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
