//! What an image is made of, as its recipe says it: the first step of [`super::build`].
//!
//! A recipe is a folder with `image.toml` and, where the image needs files of its own, a folder `files/` whose content
//! is laid over the base. Every mistake is told with its file, line and column, and with the name that was probably meant.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::compression::Compression;
use crate::report::mistake::{Mistake, Source, did_you_mean};

/// The recipe's file inside its folder.
pub const FILE_NAME: &str = "image.toml";
/// The folder beside it that is laid over the base.
pub const FILES_FOLDER: &str = "files";
/// A recipe is a page of text: more than this is not a recipe.
const MAX_RECIPE_BYTES: u64 = 1 << 20;

/// Time stamp of every file where neither the recipe nor `SOURCE_DATE_EPOCH` says one: 1980-01-01, the first moment
/// that zip archives (and so Python's zipfile) can express.
pub const DEFAULT_EPOCH: u32 = 315_532_800;

/// A recipe, checked: what it says can be done, though nothing has been done yet.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What the image starts from.
    pub base: Base,
    /// How the image is compressed.
    #[serde(default)]
    pub compression: Compression,
    /// Time stamp of every file, seconds since 1970. None: `SOURCE_DATE_EPOCH`, else [`DEFAULT_EPOCH`].
    pub epoch: Option<u32>,
    /// Python packages over the base.
    pub python: Option<Python>,
    /// Environment that init gives to every program of the image.
    #[serde(default)]
    pub environment: BTreeMap<Spanned<String>, Spanned<String>>,
    /// Shell commands run inside the base, in order, after its packages and the recipe's files are there.
    #[serde(default)]
    pub commands: Vec<Spanned<String>>,
    /// The recipe's folder: what relative paths start from.
    #[serde(skip)]
    pub folder: PathBuf,
}

/// What an image starts from.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Base {
    /// A Debian suite with the packages named, and what they and Debian's essential packages depend on.
    Debian(Debian),
    /// The content of a folder, all of it owned by root.
    Folder(Folder),
    /// An OCI image, its layers laid over each other.
    Oci(Folder),
    /// Nothing at all.
    None,
}

/// `[base.debian]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Debian {
    /// Code name of the release, such as `bookworm`.
    pub suite: Spanned<String>,
    /// Packages, as apt names them: `name` or `name=version`.
    #[serde(default)]
    pub packages: Vec<Spanned<String>>,
    /// Whether Debian's essential packages are there, and every package set up by its scripts. Without, the packages named
    /// are unpacked and nothing else, and commands need a shell that one of them brings.
    #[serde(default = "yes")]
    pub essential: bool,
    /// Paths that packages bring and that the image goes without, as dpkg's `path-exclude` patterns.
    #[serde(default)]
    pub exclude: Vec<Spanned<String>>,
    /// What is kept of them nevertheless, as dpkg's `path-include` patterns.
    #[serde(default)]
    pub keep: Vec<Spanned<String>>,
}

/// `[python]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Python {
    /// A list of `name==version` lines as pip has them (requirements.txt), of everything that is to be there; relative to
    /// the recipe.
    pub requirements: Spanned<PathBuf>,
    /// The image's Python, such as 3.11.
    pub version: Spanned<String>,
    /// The folder of the image that they go to.
    #[serde(default = "python_target")]
    pub target: Spanned<String>,
}

/// Where the network's programs look for the packages of their image.
fn python_target() -> Spanned<String> {
    Spanned::new(0..0, "/opt/aleph/libs".to_owned())
}

fn yes() -> bool {
    true
}

/// `[base.folder]`, `[base.oci]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Folder {
    /// The folder, or for an OCI image also its archive, relative to the recipe's own folder.
    pub path: Spanned<PathBuf>,
}

/// Why a recipe can not be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file can't be read.
    #[error("can't read the recipe {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// There is no recipe at the place named.
    #[error("no recipe at {path}: name a folder that holds {FILE_NAME}, or the file itself")]
    Missing {
        /// The place.
        path: PathBuf,
    },
    /// The file is no recipe.
    #[error("{path} is longer than a recipe can be ({MAX_RECIPE_BYTES} bytes)")]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// Something in the file is wrong.
    #[error(transparent)]
    Mistake(Box<Mistake>),
}

/// The file of the recipe at `path`.
pub fn file_at(path: &Path) -> PathBuf {
    match path.is_dir() {
        true => path.join(FILE_NAME),
        false => path.to_path_buf(),
    }
}

/// Reads and checks the recipe at `path`: the folder, or the file in it.
///
/// # Errors
/// Every reason for which the recipe can not be followed that can be told before the first step is done.
pub fn read(path: &Path) -> Result<Recipe, RecipeError> {
    let file = file_at(path);
    let read_error = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => RecipeError::Missing {
            path: path.to_path_buf(),
        },
        _ => RecipeError::Read {
            path: file.clone(),
            source,
        },
    };
    if std::fs::metadata(&file).map_err(read_error)?.len() > MAX_RECIPE_BYTES {
        return Err(RecipeError::TooLong { path: file });
    }
    let text = std::fs::read_to_string(&file).map_err(read_error)?;
    let mut recipe = parse(&text, &file).map_err(RecipeError::Mistake)?;
    recipe.folder = file
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
        .to_path_buf();
    Ok(recipe)
}

impl Recipe {
    /// The folder that is laid over the base, if the recipe has one.
    pub fn files(&self) -> Option<PathBuf> {
        Some(self.folder.join(FILES_FOLDER)).filter(|folder| folder.is_dir())
    }
}

/// The recipe that `text` says; `path` is only named in errors.
fn parse(text: &str, path: &Path) -> Result<Recipe, Box<Mistake>> {
    let source = Checker(Source { text, path });
    let recipe: Recipe = toml::from_str(text).map_err(|error| {
        let hint = probably_meant(error.message());
        source.mistake(error.span().unwrap_or(0..0), error.message(), hint)
    })?;
    source.check(&recipe)?;
    Ok(recipe)
}

struct Checker<'a>(Source<'a>);

impl Checker<'_> {
    /// What TOML and types can't say.
    fn check(&self, recipe: &Recipe) -> Result<(), Box<Mistake>> {
        if let Base::Debian(debian) = &recipe.base {
            self.check_debian(debian)?;
        } else if let Some(command) = recipe.commands.first() {
            let hint = "with a folder or an OCI image, run them there before; with none, there is no shell to run them";
            return Err(self.mistake(command.span(), "commands need the base debian", Some(hint.into())));
        }
        if let Some(python) = &recipe.python {
            let (version, target) = (python.version.get_ref(), python.target.get_ref());
            let numbers: Vec<&str> = version.split('.').collect();
            if numbers.len() != 2 || !numbers.iter().all(|number| number.parse::<u8>().is_ok()) {
                let hint = "two numbers, such as \"3.11\"";
                return Err(self.mistake(python.version.span(), "not a version of Python", Some(hint.into())));
            }
            if !target.starts_with('/') || target.split('/').any(|part| part == "..") {
                let hint = "an absolute path in the image, without ..";
                return Err(self.mistake(python.target.span(), "not a folder of the image", Some(hint.into())));
            }
        }
        for (name, value) in &recipe.environment {
            if !is_variable_name(name.get_ref()) {
                let hint = "letters, digits and _, the first no digit";
                return Err(self.mistake(
                    name.span(),
                    "not the name of an environment variable",
                    Some(hint.into()),
                ));
            }
            if value.get_ref().contains(['\n', '\r', '\0']) {
                let message = "the value of an environment variable is one line here";
                return Err(self.mistake(value.span(), message, None));
            }
        }
        match recipe.commands.iter().find(|command| command.get_ref().contains('\0')) {
            Some(command) => Err(self.mistake(command.span(), "a command can't contain a zero byte", None)),
            None => Ok(()),
        }
    }

    /// Every word here ends up on the command line of mmdebstrap, apt or dpkg, which must take it for nothing else.
    fn check_debian(&self, debian: &Debian) -> Result<(), Box<Mistake>> {
        if !is_suite(debian.suite.get_ref()) {
            let hint = "the code name of a Debian release, such as bookworm";
            return Err(self.mistake(debian.suite.span(), "not the name of a suite", Some(hint.into())));
        }
        if let Some(package) = debian.packages.iter().find(|package| !is_package(package.get_ref())) {
            let hint = "name or name=version, each package a string of its own";
            return Err(self.mistake(package.span(), "not the name of a package", Some(hint.into())));
        }
        match debian
            .exclude
            .iter()
            .chain(&debian.keep)
            .find(|pattern| !is_pattern(pattern.get_ref()))
        {
            Some(pattern) => {
                let hint = "an absolute path, in which * stands for anything: /usr/share/man/*";
                Err(self.mistake(pattern.span(), "not a pattern for paths", Some(hint.into())))
            }
            None => Ok(()),
        }
    }

    fn mistake(&self, span: Range<usize>, message: &str, hint: Option<String>) -> Box<Mistake> {
        Box::new(self.0.mistake(span, message, hint))
    }
}

fn is_variable_name(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

fn is_suite(suite: &str) -> bool {
    suite
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && suite.bytes().next().is_some_and(|first| first.is_ascii_lowercase())
}

/// Debian Policy 5.6.1 (name) and 5.6.12 (version). No trailing `+` or `-`: apt would take it for an order.
fn is_package(package: &str) -> bool {
    let (name, version) = package.split_once('=').unwrap_or((package, "0"));
    let is_name_byte = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
    let is_version_byte = |byte: u8| byte.is_ascii_alphanumeric() || b".+-~:".contains(&byte);
    name.len() >= 2
        && name.bytes().all(is_name_byte)
        && !name.starts_with(['+', '-', '.'])
        && !name.ends_with('-')
        && !version.is_empty()
        && version.bytes().all(is_version_byte)
}

fn is_pattern(pattern: &str) -> bool {
    pattern.starts_with('/') && !pattern.contains(char::is_control)
}

/// The name that was probably meant, out of a message of serde: "unknown field `a`, expected one of `b`, `c`".
fn probably_meant(message: &str) -> Option<String> {
    let (unknown, expected) = message.strip_prefix("unknown ")?.split_once(", expected ")?;
    let quoted = |text: &str| {
        text.split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let written = quoted(unknown).into_iter().next()?;
    let expected = quoted(expected);
    did_you_mean(&written, expected.iter().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistake(text: &str) -> String {
        parse(text, Path::new("image.toml"))
            .expect_err("a recipe with a mistake")
            .to_string()
    }

    #[test]
    fn a_whole_recipe_is_read() {
        let text = r#"
            compression = "gzip"
            epoch = 1700000000
            commands = ["true"]
            [base.debian]
            suite = "bookworm"
            packages = ["python3", "nodejs=18.20.4+dfsg-1~deb12u3", "libstdc++6"]
            exclude = ["/usr/share/doc/*"]
            keep = ["/usr/share/doc/*/copyright"]
            [environment]
            LANG = "C.UTF-8"
        "#;
        let recipe = parse(text, Path::new("image.toml")).expect("a good recipe");
        assert_eq!(recipe.epoch, Some(1_700_000_000));
        assert_eq!(recipe.compression, Compression::Gzip);
        assert_eq!(recipe.commands.len(), 1);
        assert_eq!(recipe.environment.len(), 1);
        let Base::Debian(debian) = recipe.base else {
            panic!("another base: {:?}", recipe.base)
        };
        assert_eq!(debian.suite.get_ref(), "bookworm");
        assert_eq!(debian.packages.len(), 3);
    }

    #[test]
    fn nothing_and_folders_are_bases_too() {
        assert!(matches!(
            parse("base = \"none\"", Path::new("x")).expect("none").base,
            Base::None
        ));
        let folder = parse("[base.folder]\npath = \"root\"", Path::new("x"))
            .expect("a folder")
            .base;
        assert!(matches!(folder, Base::Folder(folder) if folder.path.get_ref() == Path::new("root")));
    }

    #[test]
    fn an_unknown_key_is_shown_where_it_stands_with_the_one_meant() {
        let text = "[base.debian]\nsuite = \"bookworm\"\npakages = [\"python3\"]\n";
        assert_eq!(
            mistake(text),
            "image.toml:3:1: unknown field `pakages`, expected one of `suite`, `packages`, `essential`, `exclude`, `keep`\n  \
             3 | pakages = [\"python3\"]\n    | ^^^^^^^\n  did you mean `packages`?"
        );
    }

    #[test]
    fn an_unknown_base_or_compression_names_the_one_meant() {
        assert!(mistake("base = \"nune\"").ends_with("did you mean `none`?"));
        assert!(mistake("base = \"none\"\ncompression = \"zst\"").ends_with("did you mean `zstd`?"));
    }

    #[test]
    fn python_packages_need_a_version_and_a_place() {
        let python = |more: &str| format!("base = \"none\"\n[python]\nrequirements = \"r.txt\"\n{more}");
        let recipe = parse(&python("version = \"3.11\""), Path::new("x")).expect("a good recipe");
        assert_eq!(recipe.python.expect("packages").target.get_ref(), "/opt/aleph/libs");
        assert!(mistake(&python("version = \"3\"")).contains("not a version of Python"));
        assert!(mistake(&python("version = \"3.11\"\ntarget = \"/a/../b\"")).contains("not a folder of the image"));
        assert!(mistake(&python("")).contains("missing field `version`"));
    }

    #[test]
    fn a_recipe_without_a_base_says_so() {
        assert!(mistake("epoch = 1").contains("missing field `base`"));
    }

    #[test]
    fn commands_need_a_base_with_a_shell() {
        let message = mistake("commands = [\"ls\"]\nbase = \"none\"");
        assert!(
            message.starts_with("image.toml:1:13: commands need the base debian"),
            "{message}"
        );
    }

    #[test]
    fn a_word_that_apt_would_take_for_an_option_or_an_order_is_refused() {
        for package in ["-y", "python3-", "a b", "a,b", "./x.deb", "~n.", "python3=", "x"] {
            let message = mistake(&format!(
                "[base.debian]\nsuite = \"bookworm\"\npackages = [\"{package}\"]"
            ));
            assert!(
                message.starts_with("image.toml:3:13: not the name of a package"),
                "{package}: {message}"
            );
        }
        for suite in ["", "-x", "book worm", "../x", "Bookworm"] {
            let message = mistake(&format!("[base.debian]\nsuite = \"{suite}\""));
            assert!(message.contains("not the name of a suite"), "{suite}: {message}");
        }
    }

    #[test]
    fn the_environment_is_lines_of_names_and_values() {
        for line in ["\"A B\" = \"\"", "1A = \"\"", "\"\" = \"\""] {
            let message = mistake(&format!("base = \"none\"\n[environment]\n{line}"));
            assert!(
                message.starts_with("image.toml:3:1: not the name of an environment variable"),
                "{line}: {message}"
            );
        }
        assert!(mistake("base = \"none\"\n[environment]\nA = \"1\\nB=2\"").contains("is one line here"));
    }

    #[test]
    fn a_mistake_in_the_middle_of_other_letters_is_shown_below_them() {
        let message = mistake("base = \"none\"\n\"é\" = 1 # ü\n");
        assert!(message.starts_with("image.toml:2:1: unknown field `é`"), "{message}");
        assert!(message.contains("\n    | ^^^"), "{message}");
    }
}
