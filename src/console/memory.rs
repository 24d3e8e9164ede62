//! How much memory processes use (proc_pid_smaps(5), proc_pid_statm(5)).

use nix::unistd::Pid;

use crate::engine::process;

/// What a program's processes use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    pub processes: usize,
    pub bytes: u64,
}

/// The processes of the session that `leader` leads.
pub fn of_session(leader: Pid) -> Used {
    let members = process::members(leader);
    Used {
        processes: members.len(),
        bytes: members.iter().map(|member| of(&member.to_string())).sum(),
    }
}

/// This process, in bytes.
pub fn of_self() -> u64 {
    of("self")
}

/// A process's proportional share of the memory that it and others use; all that it has in memory where the kernel does
/// not tell.
fn of(process: &str) -> u64 {
    let field = |file: &str, name: &str| -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{process}/{file}")).ok()?;
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    let kilobytes = field("smaps_rollup", "Pss:").or_else(|| field("status", "VmRSS:"));
    kilobytes.unwrap_or_default() << 10
}
