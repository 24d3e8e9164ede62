//! Who may log in as root: the SSH keys of the configuration, where sshd looks for them.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Why nobody was let in.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("authorized_keys[{index}] is not one line of text")]
    NotOneLine { index: usize },
    #[error("writing {path} failed: {source}", path = .path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Writes `home`/.ssh/authorized_keys, in place of what was there. The directory gets mode 0700 and the file 0600, both
/// of this process's user: sshd passes over files that others could have written (sshd(8), StrictModes).
///
/// # Errors
/// When a key has a line break within, which would make two of it, or a file can't be written.
pub fn authorize(home: &Path, keys: &[String]) -> Result<(), KeysError> {
    let mut text = String::new();
    for (index, key) in keys.iter().enumerate() {
        let key = key.trim();
        if key.chars().any(|c| c.is_control() && c != '\t') {
            return Err(KeysError::NotOneLine { index });
        }
        text.push_str(key);
        text.push('\n');
    }
    let directory = home.join(".ssh");
    let file = directory.join("authorized_keys");
    write(&directory, &file, text.as_bytes()).map_err(|source| KeysError::Write { path: file, source })
}

/// The file appears at once and whole, under its right mode.
fn write(directory: &Path, file: &Path, text: &[u8]) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    fs::set_permissions(directory, Permissions::from_mode(0o700))?;
    let fresh = file.with_extension("new");
    let _ = fs::remove_file(&fresh);
    let mut handle = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?;
    handle.write_all(text)?;
    fs::rename(&fresh, file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn keys_are_written_for_their_owner_alone() {
        let home = tempfile::tempdir().expect("a folder");
        let ssh = home.path().join(".ssh");
        fs::create_dir(&ssh).expect("a folder");
        fs::set_permissions(&ssh, Permissions::from_mode(0o777)).expect("a lax mode");
        fs::write(ssh.join("authorized_keys"), "ssh-rsa old\n").expect("an old file");

        let keys = ["ssh-ed25519 AAAA me@here\n".to_owned(), "ssh-rsa BBBB".to_owned()];
        authorize(home.path(), &keys).expect("written");
        let file = ssh.join("authorized_keys");
        assert_eq!(
            fs::read_to_string(&file).expect("a file"),
            "ssh-ed25519 AAAA me@here\nssh-rsa BBBB\n"
        );
        let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o7777;
        assert_eq!((mode(&ssh), mode(&file)), (0o700, 0o600));
        assert_eq!(fs::read_dir(&ssh).expect("a folder").count(), 1);
    }

    #[test]
    fn one_key_is_one_line() {
        let home = tempfile::tempdir().expect("a folder");
        let keys = ["ssh-rsa A".to_owned(), "ssh-rsa B\nssh-rsa C".to_owned()];
        let error = authorize(home.path(), &keys).expect_err("two in one").to_string();
        assert_eq!(error, "authorized_keys[1] is not one line of text");
        assert!(!home.path().join(".ssh").exists());
    }

    #[test]
    fn a_home_that_is_none_is_named() {
        let home = tempfile::NamedTempFile::new().expect("a file");
        let error = authorize(home.path(), &[]).expect_err("no folder").to_string();
        assert!(
            error.contains("/.ssh/authorized_keys failed: Not a directory"),
            "{error}"
        );
    }
}
