//! What the machine's owner can choose: words `polyinit.KEY=VALUE` of the kernel's command line, and the image's
//! `/etc/polyinit.toml`, which know the same keys. The command line wins.
//!
//! Read before the root is made writable. A mistake is a warning, told once there is a log, and never keeps a machine
//! from coming up.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};

/// The image's options.
pub const FILE: &str = "/etc/polyinit.toml";

/// More than this, in bytes, is no page of options.
const FILE_LIMIT: u64 = 64 << 10;

/// What a word of the kernel's command line begins with to be for us.
const PREFIX: &str = "polyinit.";

/// Every key, for who mistypes one. `service` and `sysctl` have a name behind them.
const KEYS: [&str; 13] = [
    "console",
    "event_limit",
    "http",
    "log",
    "login",
    "modules",
    "mtu",
    "reserve",
    "root_size",
    "service",
    "shell",
    "sysctl",
    "vsock_port",
];

/// What was chosen; what wasn't is as it is without options.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// What is logged, as `POLYINIT_LOG` has it.
    pub log: Option<String>,
    /// The terminal that init's log goes to, below /dev.
    pub console: Option<PathBuf>,
    /// The largest event and reply of the host's protocol, in bytes.
    pub event_limit: Option<usize>,
    /// The vsock port on which the host's protocol is spoken.
    pub vsock_port: Option<u32>,
    /// Where the program is served by HTTP as well.
    pub http: Vec<SocketAddr>,
    /// Kernel modules to load, with what they depend on.
    pub modules: Vec<String>,
    /// The largest packet of the Ethernet device, in bytes.
    pub mtu: Option<u32>,
    /// Kernel parameters: `net.core.somaxconn` and its value.
    pub sysctl: BTreeMap<String, String>,
    /// Commands that run beside the program, by name, each in its words.
    pub services: BTreeMap<String, Vec<String>>,
    /// The terminal on which root has a shell, below /dev.
    pub login: Option<PathBuf>,
    /// Size of the writable root over a read-only image, as tmpfs(5) has it.
    pub root_size: Option<String>,
    /// Memory that is kept from programs, in bytes.
    pub reserve: Option<u64>,
    /// Whether the host may run commands (the protocol's `!`). Only the image's file turns it on.
    pub shell: bool,
}

/// Where an option was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    File,
    CommandLine,
}

/// What of an option can't be followed, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OptionError {
    #[error("{place}: there is no option {key:?}{}", .nearest.map(|key| format!("; did you mean {key:?}?")).unwrap_or_default())]
    Unknown {
        place: &'static str,
        key: String,
        nearest: Option<&'static str>,
    },
    #[error("{place}: {key} = {value:?} is not used: {expected} is expected")]
    Value {
        place: &'static str,
        key: String,
        value: String,
        expected: &'static str,
    },
    #[error("{place}: shell = true is not used: only the image's {FILE} lets the host run commands")]
    Shell { place: &'static str },
    #[error("{FILE} is not used: {0}")]
    Toml(String),
    #[error("{FILE} can't be read: {0}")]
    Read(io::Error),
    #[error("{FILE} is longer than {FILE_LIMIT} bytes: not used")]
    TooLong,
}

impl Source {
    fn place(self) -> &'static str {
        match self {
            Self::File => FILE,
            Self::CommandLine => "the kernel's command line",
        }
    }
}

/// The machine's options, and what of them can't be followed.
pub fn read() -> (Options, Vec<OptionError>) {
    let mut options = Options::default();
    let mut mistakes = Vec::new();
    match text_of(Path::new(FILE)) {
        Ok(Some(text)) => options.take_file(&text, &mut mistakes),
        Ok(None) => {}
        Err(error) => mistakes.push(error),
    }
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    options.take_command_line(&command_line, &mut mistakes);
    (options, mistakes)
}

fn text_of(path: &Path) -> Result<Option<String>, OptionError> {
    let mut text = String::new();
    match File::open(path).and_then(|file| file.take(FILE_LIMIT + 1).read_to_string(&mut text)) {
        Ok(bytes) if bytes as u64 > FILE_LIMIT => Err(OptionError::TooLong),
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(OptionError::Read(error)),
    }
}

impl Options {
    fn take_file(&mut self, text: &str, mistakes: &mut Vec<OptionError>) {
        let table: toml::Table = match toml::from_str(text) {
            Ok(table) => table,
            Err(error) => return mistakes.push(OptionError::Toml(error.to_string().trim_end().to_owned())),
        };
        for (key, value) in table {
            match value {
                // [sysctl] and [service]: a name, or several with dots between them, and a value.
                toml::Value::Table(table) => {
                    for (name, value) in flattened(table) {
                        self.take(&format!("{key}.{name}"), &texts(value), Source::File, mistakes);
                    }
                }
                value => self.take(&key, &texts(value), Source::File, mistakes),
            }
        }
    }

    fn take_command_line(&mut self, command_line: &str, mistakes: &mut Vec<OptionError>) {
        for word in words(command_line) {
            let Some(option) = word.strip_prefix(PREFIX) else {
                continue;
            };
            // A word without a value turns something on, as with the kernel's own.
            let (key, value) = option.split_once('=').unwrap_or((option, "true"));
            let values: Vec<String> = match key {
                "modules" | "http" => value
                    .split(',')
                    .filter(|one| !one.is_empty())
                    .map(str::to_owned)
                    .collect(),
                key if key.starts_with("service.") => words(value),
                _ => vec![value.to_owned()],
            };
            self.take(key, &values, Source::CommandLine, mistakes);
        }
    }

    fn take(&mut self, key: &str, values: &[String], source: Source, mistakes: &mut Vec<OptionError>) {
        let place = source.place();
        if let Err(expected) = self.set(key, values, source) {
            mistakes.push(match expected {
                Refusal::Unknown => OptionError::Unknown {
                    place,
                    key: key.to_owned(),
                    nearest: nearest(key),
                },
                Refusal::Shell => OptionError::Shell { place },
                Refusal::Expected(expected) => OptionError::Value {
                    place,
                    key: key.to_owned(),
                    value: values.join(" ").chars().take(60).collect(),
                    expected,
                },
            });
        }
    }

    fn set(&mut self, key: &str, values: &[String], source: Source) -> Result<(), Refusal> {
        if let Some((kind @ ("sysctl" | "service"), name)) = key.split_once('.') {
            return self.set_named(kind, name, values);
        }
        match key {
            "modules" => self.modules = all(values, "a list of names such as [\"nfs\"]", module_name)?,
            "http" => {
                self.http = all(values, "a list of ADDRESS:PORT such as 0.0.0.0:8080", |text| {
                    text.parse().ok()
                })?
            }
            "log" => self.log = Some(one(values, "levels such as debug or warn,program=off", filter)?),
            "console" => self.console = Some(one(values, "the name of a terminal such as ttyS0", terminal)?),
            "login" => self.login = Some(one(values, "the name of a terminal such as ttyS0", terminal)?),
            "event_limit" => {
                let bytes = one(values, "a number of bytes such as 16M", bytes)?;
                self.event_limit = Some(usize::try_from(bytes).unwrap_or(usize::MAX));
            }
            "reserve" => self.reserve = Some(one(values, "a number of bytes such as 16M", bytes)?),
            "vsock_port" => {
                self.vsock_port = Some(one(values, "a port from 1 to 4294967294", |text| {
                    text.parse().ok().filter(|port| (1..u32::MAX).contains(port))
                })?);
            }
            "mtu" => {
                // What IPv6 asks for (RFC 8200, section 5) to what an IP packet can be.
                let expected = "a number of bytes from 1280 to 65535";
                let read = |text: &str| text.parse().ok().filter(|bytes| (1280..=65_535).contains(bytes));
                self.mtu = Some(one(values, expected, read)?);
            }
            "root_size" => self.root_size = Some(one(values, "a size such as 64M or 50%", size)?),
            "shell" => match one(values, "true or false", |text| text.parse().ok())? {
                true if source != Source::File => return Err(Refusal::Shell),
                on => self.shell = on,
            },
            _ => return Err(Refusal::Unknown),
        }
        Ok(())
    }

    fn set_named(&mut self, kind: &str, name: &str, values: &[String]) -> Result<(), Refusal> {
        match kind {
            "sysctl" => {
                let value = one(values, "one value", |text| Some(text.to_owned()))?;
                let safe = !name.is_empty() && name.split(['.', '/']).all(|part| !part.is_empty() && part != "..");
                if !safe {
                    return Err(Refusal::Expected("a name such as sysctl.net.core.somaxconn"));
                }
                self.sysctl.insert(name.to_owned(), value);
            }
            _ => {
                let command = match values {
                    [line] => words(line),
                    several => several.to_vec(),
                };
                if name.is_empty() || !command.first().is_some_and(|program| program.starts_with('/')) {
                    return Err(Refusal::Expected(
                        "a command that begins with the whole path of its program",
                    ));
                }
                self.services.insert(name.to_owned(), command);
            }
        }
        Ok(())
    }
}

/// Why an option is not used.
enum Refusal {
    Unknown,
    Shell,
    Expected(&'static str),
}

fn one<T>(values: &[String], expected: &'static str, read: impl Fn(&str) -> Option<T>) -> Result<T, Refusal> {
    match values {
        [value] => read(value).ok_or(Refusal::Expected(expected)),
        _ => Err(Refusal::Expected(expected)),
    }
}

fn all<T>(values: &[String], expected: &'static str, read: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, Refusal> {
    let read: Option<Vec<T>> = values.iter().map(|value| read(value)).collect();
    read.ok_or(Refusal::Expected(expected))
}

fn filter(text: &str) -> Option<String> {
    crate::report::log::is_filter(text).then(|| text.to_owned())
}

fn module_name(text: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    (!text.is_empty() && text.chars().all(plain)).then(|| text.to_owned())
}

/// `ttyS0` or `/dev/ttyS0`.
fn terminal(text: &str) -> Option<PathBuf> {
    let name = Path::new(text.strip_prefix("/dev/").unwrap_or(text));
    let plain = name.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && !name.as_os_str().is_empty()).then(|| Path::new("/dev").join(name))
}

/// `16777216`, `16384K`, `16M` or `1G`; not nothing.
fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().last()? {
        (at, 'k' | 'K') => (&text[..at], 10),
        (at, 'm' | 'M') => (&text[..at], 20),
        (at, 'g' | 'G') => (&text[..at], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().ok()?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0)
}

/// As the option `size` of a tmpfs has it.
fn size(text: &str) -> Option<String> {
    let percent = text.strip_suffix('%').and_then(|number| number.parse::<u8>().ok());
    let valid = percent.is_some_and(|percent| (1..=100).contains(&percent)) || bytes(text).is_some();
    valid.then(|| text.to_owned())
}

fn nearest(key: &str) -> Option<&'static str> {
    // `sysctls.net.x`: what is before the name.
    let key = key.split('.').next().unwrap_or(key);
    let distance = |known: &'static str| strsim::damerau_levenshtein(key, known);
    let found = KEYS.into_iter().min_by_key(|known| distance(known))?;
    (distance(found) <= found.len().div_ceil(2)).then_some(found)
}

/// A TOML value as the command line would have it.
fn texts(value: toml::Value) -> Vec<String> {
    match value {
        toml::Value::Array(values) => values.into_iter().flat_map(texts).collect(),
        toml::Value::String(text) => vec![text],
        other => vec![other.to_string()],
    }
}

/// `a.b = 1` of a TOML table is a table in a table.
fn flattened(table: toml::Table) -> Vec<(String, toml::Value)> {
    let mut flat = Vec::new();
    for (name, value) in table {
        match value {
            toml::Value::Table(inner) => {
                flat.extend(
                    flattened(inner)
                        .into_iter()
                        .map(|(rest, value)| (format!("{name}.{rest}"), value)),
                );
            }
            value => flat.push((name, value)),
        }
    }
    flat
}

/// The words of a line, as the kernel splits its command line: blanks between double quotes belong to the word.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quoted, mut begun) = (String::new(), false, false);
    for c in line.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                begun = true;
            }
            c if c.is_whitespace() && !quoted => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            c => {
                word.push(c);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(file: &str, command_line: &str) -> (Options, Vec<String>) {
        let mut options = Options::default();
        let mut mistakes = Vec::new();
        options.take_file(file, &mut mistakes);
        options.take_command_line(command_line, &mut mistakes);
        (options, mistakes.iter().map(ToString::to_string).collect())
    }

    const FILE_WITH_ALL: &str = r#"
        log = "debug"
        console = "hvc0"
        event_limit = "1M"
        vsock_port = 52
        http = ["0.0.0.0:8080", "[::]:80"]
        modules = ["nfs", "fuse"]
        mtu = 1400
        login = "/dev/ttyS0"
        root_size = "25%"
        reserve = 16777216
        shell = true
        [sysctl]
        net.core.somaxconn = 4096
        "vm/swappiness" = "10"
        [service]
        ntp = ["/usr/sbin/ntpd", "-n"]
        cron = "/usr/sbin/cron -f"
    "#;

    #[test]
    fn the_file_and_the_command_line_know_the_same_keys() {
        let (from_file, mistakes) = of(FILE_WITH_ALL, "");
        assert_eq!(mistakes, [""; 0]);
        assert_eq!(from_file.event_limit, Some(1 << 20));
        assert_eq!(from_file.reserve, Some(16 << 20));
        assert_eq!(from_file.sysctl["net.core.somaxconn"], "4096");
        assert_eq!(from_file.services["cron"], ["/usr/sbin/cron", "-f"]);
        assert!(from_file.shell);
        let line = "ro polyinit.log=debug polyinit.console=hvc0 polyinit.event_limit=1048576 polyinit.vsock_port=52 \
                    polyinit.http=0.0.0.0:8080,[::]:80 polyinit.modules=nfs,fuse polyinit.mtu=1400 polyinit.login=ttyS0 \
                    polyinit.root_size=25% polyinit.reserve=16M polyinit.sysctl.net.core.somaxconn=4096 \
                    polyinit.sysctl.vm/swappiness=10 polyinit.service.ntp=\"/usr/sbin/ntpd -n\" \
                    \"polyinit.service.cron=/usr/sbin/cron -f\" quiet\n";
        let (from_line, mistakes) = of("", line);
        assert_eq!(mistakes, [""; 0]);
        assert_eq!(
            from_line,
            Options {
                shell: false,
                ..from_file
            }
        );
    }

    #[test]
    fn the_command_line_wins() {
        let (options, _) = of(
            FILE_WITH_ALL,
            "polyinit.log=warn polyinit.http= polyinit.shell=false polyinit.log=error",
        );
        assert_eq!(options.log.as_deref(), Some("error"));
        assert_eq!(options.http, []);
        assert!(!options.shell);
        assert_eq!(options.event_limit, Some(1 << 20));
    }

    #[test]
    fn only_the_image_lets_the_host_run_commands() {
        let (options, mistakes) = of("", "polyinit.shell");
        assert!(!options.shell);
        assert!(
            mistakes[0].contains("only the image's /etc/polyinit.toml"),
            "{mistakes:?}"
        );
    }

    #[test]
    fn a_mistake_is_told_with_the_name_that_was_meant_and_the_rest_is_used() {
        let (options, mistakes) = of(
            "evnt_limit = 1\nlog = \"debug\"\n[sysctls]\na = 1\n",
            "polyinit.modulse=nfs polyinit.xyzzyxyzzy=1 polyinit.vsock_port=0 polyinit.event_limit=16Q polyinit.reserve=1M",
        );
        assert_eq!(options.log.as_deref(), Some("debug"));
        assert_eq!(options.reserve, Some(1 << 20));
        assert_eq!(
            mistakes,
            [
                "/etc/polyinit.toml: there is no option \"evnt_limit\"; did you mean \"event_limit\"?",
                "/etc/polyinit.toml: there is no option \"sysctls.a\"; did you mean \"sysctl\"?",
                "the kernel's command line: there is no option \"modulse\"; did you mean \"modules\"?",
                "the kernel's command line: there is no option \"xyzzyxyzzy\"",
                "the kernel's command line: vsock_port = \"0\" is not used: a port from 1 to 4294967294 is expected",
                "the kernel's command line: event_limit = \"16Q\" is not used: a number of bytes such as 16M is expected",
            ]
        );
    }

    #[test]
    fn values_that_lead_elsewhere_are_refused() {
        for word in [
            "console=../etc/passwd",
            "login=",
            "modules=../x",
            "sysctl.a..b=1",
            "sysctl.../../etc/passwd=1",
            "service.x=relative",
            "service.x=",
            "root_size=0%",
            "root_size=1M,mode=0777",
            "http=8080",
            "mtu=100",
            "log=nonsense=nonsense=nonsense",
        ] {
            let (options, mistakes) = of("", &format!("polyinit.{word}"));
            assert_eq!(options, Options::default(), "{word}");
            assert_eq!(mistakes.len(), 1, "{word}: {mistakes:?}");
        }
    }

    #[test]
    fn a_file_that_is_no_toml_is_told_by_its_line() {
        let (options, mistakes) = of("log = \n", "");
        assert_eq!(options, Options::default());
        assert!(mistakes[0].contains("line 1"), "{mistakes:?}");
    }

    #[test]
    fn words_are_split_as_the_kernel_does() {
        assert_eq!(words("a \"b c\" d=\"e f\"g \"\"\n"), ["a", "b c", "d=e fg", ""]);
    }
}
