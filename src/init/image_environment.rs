//! The environment that the image's recipe gives to every program: lines of NAME=VALUE in a file of the image. Weaker than
//! what the protocol and the host say, so it is read first.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Where the image has it.
pub const FILE: &str = "/etc/polyinit/environment";

/// As much as a program's whole environment may be large on Linux with its smallest stack (execve(2)).
const MAX_BYTES: u64 = 128 << 10;

/// Reads the file at `path`. An image without one gives nothing; a line that is no assignment is told and left out.
pub fn read(path: &Path) -> Vec<(String, String)> {
    let mut text = String::new();
    match File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text)) {
        Ok(bytes) if bytes as u64 > MAX_BYTES => {
            tracing::warn!("{} is longer than {MAX_BYTES} bytes: not used", path.display());
            Vec::new()
        }
        Ok(_) => parse(&text, path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            tracing::warn!("{} can't be read: {error}", path.display());
            Vec::new()
        }
    }
}

fn parse(text: &str, path: &Path) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        match line.split_once('=') {
            Some((name, value)) if !name.is_empty() && !line.contains('\0') => {
                variables.push((name.to_owned(), value.to_owned()));
            }
            _ if line.is_empty() => {}
            _ => tracing::warn!("{}:{number}: not NAME=VALUE, left out", path.display()),
        }
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_assignment_is_read_and_nothing_else() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "A=1\n\nB=x = y\nC=\nnonsense\n=D\n").unwrap();
        let expected = [("A", "1"), ("B", "x = y"), ("C", "")];
        assert_eq!(
            read(file.path()),
            expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
    }

    #[test]
    fn an_image_without_the_file_or_with_a_huge_one_gives_nothing() {
        assert_eq!(read(Path::new("/no/such/file")), []);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "A=1\n".repeat(40_000)).unwrap();
        assert_eq!(read(file.path()), []);
    }
}
