//! Kernel parameters (sysctl(8)) as files of /proc/sys (proc_sys(5)).

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Why a parameter keeps its value.
#[derive(Debug, thiserror::Error)]
#[error("the kernel parameter {name} can't be set to {value:?}: {source}")]
pub struct SysctlError {
    name: String,
    value: String,
    source: io::Error,
}

/// Sets each parameter. Gives back those that could not be set.
pub fn set_all(parameters: &BTreeMap<String, String>) -> Vec<SysctlError> {
    let set = |(name, value): (&String, &String)| {
        let written = OpenOptions::new()
            .write(true)
            .open(path_of(name))
            // One write: the kernel takes each for a value of its own.
            .and_then(|mut file| file.write_all(format!("{value}\n").as_bytes()));
        written.err().map(|source| SysctlError {
            name: name.clone(),
            value: value.clone(),
            source,
        })
    };
    parameters.iter().filter_map(set).collect()
}

/// As sysctl(8) has it: dots stand for slashes, unless a slash comes first, after which dots are themselves.
fn path_of(name: &str) -> PathBuf {
    let separator = name.find(['.', '/']).and_then(|at| name[at..].chars().next());
    let path = match separator {
        Some('/') => name.to_owned(),
        _ => name.replace('.', "/"),
    };
    Path::new("/proc/sys").join(path.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_paths_below_proc_sys() {
        assert_eq!(path_of("net.core.somaxconn"), Path::new("/proc/sys/net/core/somaxconn"));
        let interface = "net/ipv4/conf/eth0.1/forwarding";
        assert_eq!(path_of(interface), Path::new("/proc/sys").join(interface));
        assert_eq!(path_of("/vm/swappiness"), Path::new("/proc/sys/vm/swappiness"));
    }

    #[test]
    fn one_that_is_not_there_is_named() {
        let parameters = BTreeMap::from([("no.such.thing".to_owned(), "1".to_owned())]);
        let errors = set_all(&parameters);
        assert!(
            errors[0]
                .to_string()
                .starts_with("the kernel parameter no.such.thing can't be set to \"1\": No such")
        );
    }
}
