//! The machine's control groups as the engines' keeper of programs: the piece between the two, which don't know each
//! other.

use std::fs::File;
use std::io;

use crate::engine::keeper::{Keeper, Kept, Limits, keep_programs_with};
use crate::machine::cgroup::{self, CgroupError, Group, Programs};

/// From now on every program of the machine has a control group, and all together leave `reserve` bytes of memory to
/// init.
pub fn keep_programs(reserve: Option<u64>) {
    match Programs::prepare(reserve) {
        Ok(programs) => keep_programs_with(Box::new(MachineKeeper(programs))),
        Err(error) => tracing::warn!("{error}: programs run without limits"),
    }
}

#[derive(Debug)]
struct MachineKeeper(Programs);

#[derive(Debug)]
struct InGroup {
    component: String,
    group: Group,
}

impl Keeper for MachineKeeper {
    fn keep(&self, component: &str) -> io::Result<Box<dyn Kept>> {
        let group = self.0.group(component, &cgroup::Limits::default()).map_err(told)?;
        let component = component.to_owned();
        Ok(Box::new(InGroup { component, group }))
    }
}

impl Kept for InGroup {
    fn entrance(&self) -> io::Result<File> {
        self.group.entrance().map_err(told)
    }

    fn limit(&self, limits: &Limits) -> io::Result<()> {
        let limits = cgroup::Limits {
            memory: limits.memory,
            processes: limits.processes,
            processors: limits.processors,
        };
        self.group.limit(&self.component, &limits).map_err(told)
    }

    fn kill(&self) {
        if let Err(error) = self.group.kill() {
            tracing::debug!("{error}");
        }
    }

    fn ran_out_of_memory(&self) -> bool {
        self.group.out_of_memory() > 0
    }
}

fn told(error: CgroupError) -> io::Error {
    io::Error::other(error)
}
