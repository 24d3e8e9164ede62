//! What `npm start` would run: `NAME=value node --option FILE word`. A script that is no such thing, or needs a shell, has
//! nothing to say here.

use std::mem::take;
use std::path::Path;

use serde::Serialize;

use crate::program::{Component, Entrypoint};

/// A package's description is a page or two.
const DESCRIPTION_LIMIT: u64 = 1 << 20;

/// Where no script is called `start`, or its tool compiles first (`nest start`), this one is for what was compiled.
const SCRIPTS: [&str; 2] = ["start", "start:prod"];

/// They run the words behind them.
const WRAPPERS: [&str; 4] = ["exec", "env", "cross-env", "npx"];

/// What of Node's options takes the next word for its value.
const TAKES_WORD: [&str; 40] = [
    "-C",
    "--allow-fs-read",
    "--allow-fs-write",
    "--conditions",
    "--cpu-prof-dir",
    "--cpu-prof-interval",
    "--cpu-prof-name",
    "--debug-port",
    "--diagnostic-dir",
    "--disable-proto",
    "--disable-warning",
    "--dns-result-order",
    "--experimental-default-type",
    "--experimental-loader",
    "--heap-prof-dir",
    "--heap-prof-interval",
    "--heapsnapshot-near-heap-limit",
    "--heapsnapshot-signal",
    "--icu-data-dir",
    "--inspect-port",
    "--loader",
    "--localstorage-file",
    "--max-http-header-size",
    "--network-family-autoselection-attempt-timeout",
    "--openssl-config",
    "--redirect-warnings",
    "--report-dir",
    "--report-directory",
    "--report-filename",
    "--report-signal",
    "--secure-heap",
    "--secure-heap-min",
    "--title",
    "--tls-cipher-list",
    "--tls-keylog",
    "--trace-event-categories",
    "--trace-event-file-pattern",
    "--unhandled-rejections",
    "--v8-pool-size",
    "--watch-path",
];

/// Options that are done by the worker, in the program's folder and with its environment.
const DONE_BY_WORKER: [&str; 5] = ["-r", "--require", "--import", "--env-file", "--env-file-if-exists"];

/// Variables that name files or folders for Node, or what it is made of.
const FILES: [&str; 6] = [
    "NODE_COMPILE_CACHE",
    "NODE_EXTRA_CA_CERTS",
    "NODE_V8_COVERAGE",
    "OPENSSL_CONF",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
];

/// With one of these it is no file that is run.
const RUNS_NO_FILE: [&str; 8] = ["-e", "--eval", "-p", "--print", "-c", "--check", "--test", "--run"];

/// Options of tsx itself, which Node does not know.
const OF_TSX: [&str; 2] = ["--no-cache", "--tsconfig"];

/// Options for whoever sits in front of it, and those that need to be there before the worker: left out.
const LEFT_OUT: [&str; 5] = [
    "--watch",
    "--inspect",
    "--input-type",
    "--loader",
    "--experimental-loader",
];

#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct StartScript {
    /// Relative to the package.
    pub file: String,
    pub words: Vec<String>,
    pub variables: Vec<(String, String)>,
    /// Names of [`DONE_BY_WORKER`], with their values.
    pub options: Vec<(String, String)>,
    /// Options for Node itself, which reads them when it starts.
    pub flags: Vec<String>,
}

impl StartScript {
    /// That of the package with this description.
    pub fn of(description: &serde_json::Value) -> Option<Self> {
        let scripts = &description["scripts"];
        SCRIPTS.iter().find_map(|name| Self::parse(scripts[name].as_str()?))
    }

    fn parse(script: &str) -> Option<Self> {
        if script.contains(['$', '`', '|', '&', ';', '<', '>', '(', ')', '\\', '\n']) {
            return None;
        }
        let mut words = words(script).into_iter().peekable();
        let mut start = Self::default();
        let program = loop {
            match words.next()? {
                word if is_assignment(&word) => {
                    let (name, value) = word.split_once('=')?;
                    start.variables.push((name.to_owned(), value.to_owned()));
                }
                word if !WRAPPERS.contains(&&word[..]) => break word,
                _ => {}
            }
        };
        match &program[..] {
            "node" => {}
            // Its own commands come where Node has the file.
            "tsx" if words.peek().is_some_and(|word| word != "watch") => {
                start.options.push(("--import".to_owned(), "tsx".to_owned()));
            }
            _ => return None,
        }
        while let Some(option) = words.next_if(|word| word.starts_with('-')) {
            if option == "--" {
                break;
            }
            start.take(option, &mut words)?;
        }
        start.file = words.next()?;
        start.words = words.collect();
        Some(start)
    }

    /// Takes one of Node's options; the value may be the next of `words`.
    fn take(&mut self, option: String, words: &mut impl Iterator<Item = String>) -> Option<()> {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (&option[..], None),
        };
        if RUNS_NO_FILE.contains(&name) || OF_TSX.contains(&name) {
            return None;
        }
        if DONE_BY_WORKER.contains(&name) {
            let value = value.or_else(|| words.next())?;
            self.options.push((name.to_owned(), value));
            return Some(());
        }
        let next = (value.is_none() && TAKES_WORD.contains(&name)).then(|| words.next());
        if !LEFT_OUT.iter().any(|left_out| name.starts_with(left_out)) {
            self.flags.push(option);
            self.flags.extend(next.flatten());
        }
        Some(())
    }

    /// Has the files that Node itself uses before it is in the folder of `component` be named so that they are found.
    pub fn lead_from(&mut self, component: &Component) {
        let Entrypoint::File(folder) = &component.entrypoint else {
            return;
        };
        let files = self.variables.iter_mut().filter(|(name, _)| FILES.contains(&&name[..]));
        for (_, file) in files {
            let path = component.root.join(folder).join(&file);
            *file = path.to_string_lossy().into_owned();
        }
    }

    /// Adds what its `NODE_OPTIONS` are: as a variable they would come too late for the process itself.
    pub fn take_node_options(&mut self) {
        let given = self.variables.iter().find(|(name, _)| name == "NODE_OPTIONS");
        let Some((_, given)) = given.cloned() else { return };
        // Node does these first.
        let (flags, options) = (take(&mut self.flags), take(&mut self.options));
        let mut words = words(&given).into_iter();
        while let Some(option) = words.next() {
            if self.take(option, &mut words).is_none() {
                break;
            }
        }
        self.flags.extend(flags);
        self.options.extend(options);
    }

    /// Whether something is loaded ahead of the program that may know how to load the program.
    pub fn loads_ahead(&self) -> bool {
        self.options.iter().any(|(name, _)| !name.starts_with("--env-file"))
    }
}

/// The description of the package that `component` begins with, if it begins with one.
pub fn description(component: &Component) -> Option<serde_json::Value> {
    let Entrypoint::File(file) = &component.entrypoint else {
        return None;
    };
    let folder = component.root.join(file);
    if !folder.is_dir() {
        return None;
    }
    let file = folder.join("package.json");
    let is_small = |file: &Path| std::fs::metadata(file).is_ok_and(|metadata| metadata.len() <= DESCRIPTION_LIMIT);
    is_small(&file).then(|| serde_json::from_slice(&std::fs::read(file).ok()?).ok())?
}

fn is_assignment(word: &str) -> bool {
    let is_name = |name: &str| !name.is_empty() && name.chars().all(|letter| letter.is_alphanumeric() || letter == '_');
    word.split_once('=').is_some_and(|(name, _)| is_name(name))
}

/// As a shell would divide them.
fn words(script: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = None::<String>;
    let mut quote = None;
    for letter in script.chars() {
        match quote {
            Some(open) if open == letter => quote = None,
            None if matches!(letter, '"' | '\'') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            None if letter.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|&(a, b)| (a.to_owned(), b.to_owned())).collect()
    }

    #[test]
    fn reads_what_npm_start_would_run() {
        let script = "A=1 B='x y' node --max-old-space-size=256 -C dev -r ./a.js --env-file=.env --watch-path src f.js --w 'a b' ''";
        let start = StartScript::parse(script).unwrap();
        assert_eq!(start.file, "f.js");
        assert_eq!(start.words, ["--w", "a b", ""]);
        assert_eq!(start.variables, pairs(&[("A", "1"), ("B", "x y")]));
        assert_eq!(start.options, pairs(&[("-r", "./a.js"), ("--env-file", ".env")]));
        assert_eq!(start.flags, ["--max-old-space-size=256", "-C", "dev"]);
        for (script, file) in [
            ("exec node dist", Some("dist")),
            ("env MODE=x node a.js", Some("a.js")),
            ("npx tsx src/a.ts", Some("src/a.ts")),
            ("A=1 npx tsx src/a.ts", Some("src/a.ts")),
            ("A=1 env B=2 exec node a.js", Some("a.js")),
            ("tsx watch a.ts", None),
            ("tsx --tsconfig t.json a.ts", None),
            ("tsx --no-cache a.ts", None),
            ("node --title x -- a.js --loud", Some("a.js")),
            ("node --max-http-header-size 65536 a.js", Some("a.js")),
            ("node --inspect-port 0 --heapsnapshot-signal SIGUSR2 a.js", Some("a.js")),
            ("node -e 1", None),
            ("node --test a.js", None),
            ("node", None),
            ("next start", None),
            ("npm run build && node a.js", None),
        ] {
            assert_eq!(
                StartScript::parse(script).map(|start| start.file).as_deref(),
                file,
                "{script}"
            );
        }
    }

    #[test]
    fn takes_what_runs_the_compiled_program_where_start_compiles() {
        let description = serde_json::json!({ "scripts": { "start": "nest start", "start:prod": "node dist/main" } });
        assert_eq!(StartScript::of(&description).unwrap().file, "dist/main");
    }

    #[test]
    fn options_may_stand_in_a_variable() {
        let mut start =
            StartScript::parse("NODE_OPTIONS='--expose-gc -r ./a.js' node --title=x -r ./b.js c.js").unwrap();
        start.take_node_options();
        assert_eq!(start.flags, ["--expose-gc", "--title=x"]);
        assert_eq!(start.options, pairs(&[("-r", "./a.js"), ("-r", "./b.js")]));
        assert!(start.loads_ahead());
    }
}
