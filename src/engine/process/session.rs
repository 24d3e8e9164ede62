//! Who belongs to a program: the session that its first process leads, and what has left that session, as /proc shows
//! them. Between a program's end and what it leaves behind.

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// Kills what is in the session that `leader` leads or led, and what those started in sessions of their own.
pub fn kill_session(leader: Pid) {
    // Who belongs to it can only be told while the parents live.
    let kin = kin(leader);
    // One system call for the usual case; then those that have process groups of their own.
    let _ = killpg(leader, Signal::SIGKILL);
    kin.iter().for_each(Kin::kill);
}

/// The living processes of the session that `leader` leads or led, and what those started in sessions of their own.
/// One that is dead and not yet reaped is none; one that left the session and whose parent has ended can't be told.
pub fn members(leader: Pid) -> Vec<Pid> {
    kin(leader).into_iter().map(|member| Pid::from_raw(member.id)).collect()
}

/// As [`members`], with what is known of each.
pub fn kin(leader: Pid) -> Vec<Kin> {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let (mut members, mut others): (Vec<_>, Vec<_>) = processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Kin::of)
        .partition(|process| process.session == leader.as_raw());
    let mut seen = 0;
    while let Some(parent) = members.get(seen).map(|member| member.id) {
        members.extend(others.extract_if(.., |other| other.parent == parent));
        seen += 1;
    }
    members
}

/// Whom a living process belongs to, by `/proc/<pid>/stat` (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
pub struct Kin {
    id: i32,
    parent: i32,
    pub session: i32,
}

impl Kin {
    fn of(id: i32) -> Option<Self> {
        Self::parse(id, &std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?)
    }

    /// Whether the process still lives, rather than another one that got its id.
    pub fn is_alive(&self) -> bool {
        Self::of(self.id).is_some_and(|now| now.session == self.session)
    }

    /// Kills it, if it still lives.
    pub fn kill(&self) {
        if self.is_alive() {
            // ESRCH: it has ended between the look and the call.
            let _ = kill(Pid::from_raw(self.id), Signal::SIGKILL);
        }
    }

    fn parse(id: i32, stat: &str) -> Option<Self> {
        // "12 (a name) of (any kind)) S 1 12 12 ...": state, parent, process group, session.
        let (_, fields) = stat.rsplit_once(") ")?;
        let mut fields = fields.split(' ');
        if matches!(fields.next()?, "Z" | "X") {
            return None;
        }
        Some(Self {
            id,
            parent: fields.next()?.parse().ok()?,
            session: fields.nth(1)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_session() {
        let kin = Kin {
            id: 7,
            parent: 1,
            session: 6,
        };
        assert_eq!(Kin::parse(7, "7 (a) b) S) S 1 5 6 0 -1"), Some(kin));
        assert_eq!(Kin::parse(7, "7 (sh) Z 1 5 6 0 -1"), None);
        assert_eq!(Kin::parse(7, ""), None);
    }
}
