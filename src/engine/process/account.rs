//! Users and groups by /etc/passwd and /etc/group (passwd(5), group(5)). Read here rather than asked of the C library: a
//! static one can't load what that may need, and a machine for programs has no other source.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid};

use crate::program::limits::Account;

/// Whom a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub user: Option<Uid>,
    pub group: Option<Gid>,
    /// The user's home, where it has an entry.
    pub home: Option<PathBuf>,
}

/// Why there is no such identity.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AccountError {
    #[error("there is no user {name:?} in {file}", file = .file.display())]
    User { name: String, file: PathBuf },
    #[error("there is no group {name:?} in {file}", file = .file.display())]
    Group { name: String, file: PathBuf },
}

/// The accounts of one machine.
pub struct Accounts<'a> {
    pub passwd: &'a Path,
    pub group: &'a Path,
}

impl Accounts<'static> {
    /// Those of this machine.
    pub fn here() -> Self {
        Self {
            passwd: Path::new("/etc/passwd"),
            group: Path::new("/etc/group"),
        }
    }
}

impl Accounts<'_> {
    /// The identity that `user` and `group` name; a user's own group where none is named.
    ///
    /// # Errors
    /// A name that the machine doesn't know.
    pub fn identity(&self, user: Option<&Account>, group: Option<&Account>) -> Result<Identity, AccountError> {
        let entry = user.and_then(|user| self.user(user));
        let number = match (user, &entry) {
            (None, _) => None,
            (_, Some(entry)) => Some(entry.id),
            (Some(Account::Id(id)), None) => Some(*id),
            (Some(Account::Name(name)), None) => {
                return Err(AccountError::User {
                    name: name.clone(),
                    file: self.passwd.to_owned(),
                });
            }
        };
        let group = match group {
            None => entry.as_ref().map(|entry| entry.group).or(number),
            Some(Account::Id(id)) => Some(*id),
            Some(Account::Name(name)) => Some(self.group_named(name).ok_or_else(|| AccountError::Group {
                name: name.clone(),
                file: self.group.to_owned(),
            })?),
        };
        Ok(Identity {
            user: number.map(Uid::from_raw),
            group: group.map(Gid::from_raw),
            home: entry.map(|entry| entry.home),
        })
    }

    fn user(&self, wanted: &Account) -> Option<Entry> {
        let text = fs::read_to_string(self.passwd).ok()?;
        text.lines().filter_map(Entry::parse).find(|entry| match wanted {
            Account::Id(id) => entry.id == *id,
            Account::Name(name) => entry.name == *name,
        })
    }

    /// `name:password:id:members`
    fn group_named(&self, name: &str) -> Option<u32> {
        let text = fs::read_to_string(self.group).ok()?;
        text.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
        })
    }
}

struct Entry {
    name: String,
    id: u32,
    group: u32,
    home: PathBuf,
}

impl Entry {
    /// `name:password:id:group:comment:home:shell`
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(':').collect();
        Some(Self {
            name: (*fields.first()?).to_owned(),
            id: fields.get(2)?.parse().ok()?,
            group: fields.get(3)?.parse().ok()?,
            home: fields.get(5)?.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let (passwd, group) = (folder.path().join("passwd"), folder.path().join("group"));
        fs::write(
            &passwd,
            "root:x:0:0:root:/root:/bin/sh\nweb:x:33:44::/var/www:/bin/false\nbroken\n",
        )
        .unwrap();
        fs::write(&group, "root:x:0:\nstaff:x:50:web\n").unwrap();
        let accounts = Accounts {
            passwd: &passwd,
            group: &group,
        };
        let name = |name: &str| Account::Name(name.to_owned());
        let identity = |user: Option<Account>, group: Option<Account>| {
            let identity = accounts.identity(user.as_ref(), group.as_ref())?;
            Ok((identity.user.map(Uid::as_raw), identity.group.map(Gid::as_raw)))
        };
        assert_eq!(identity(None, None), Ok((None, None)));
        assert_eq!(identity(Some(name("web")), None), Ok((Some(33), Some(44))));
        assert_eq!(identity(Some(Account::Id(33)), None), Ok((Some(33), Some(44))));
        assert_eq!(identity(Some(Account::Id(99)), None), Ok((Some(99), Some(99))));
        assert_eq!(
            identity(Some(name("web")), Some(name("staff"))),
            Ok((Some(33), Some(50)))
        );
        assert_eq!(identity(None, Some(Account::Id(7))), Ok((None, Some(7))));
        assert!(matches!(
            identity(Some(name("nobody")), None),
            Err(AccountError::User { .. })
        ));
        assert!(matches!(
            identity(None, Some(name("none"))),
            Err(AccountError::Group { .. })
        ));
        let home = accounts.identity(Some(&name("web")), None).unwrap().home;
        assert_eq!(home.unwrap(), Path::new("/var/www"));
    }
}
