//! What a process is kept from: whom it runs as, what it may use, and that it gains no privileges. Made ready before
//! fork(2), since after it nothing may allocate; put into force by the child itself, just before execve(2).

use std::io;

use nix::sys::resource::{self, setrlimit};
use nix::unistd::{Gid, Pid, setgid, setgroups, setuid};

use super::account::{Accounts, Identity};
use super::cgroup::Group;
use crate::engine::StartError;
use crate::engine::keeper::{self, Kept, Limits};
use crate::program::Component;
use crate::program::limits::{Resource, ResourceLimit, Size};

/// What is to be put into force.
#[derive(Debug, Clone)]
pub struct Confinement {
    identity: Identity,
    rlimits: Vec<(resource::Resource, u64)>,
    limits: Limits,
    no_new_privs: bool,
}

impl Default for Confinement {
    /// What every process is kept from, of which nothing else is said.
    fn default() -> Self {
        Self {
            identity: Identity {
                user: None,
                group: None,
                home: None,
            },
            rlimits: Vec::new(),
            limits: Limits::default(),
            no_new_privs: true,
        }
    }
}

impl Confinement {
    /// Of what is no program of a user's.
    pub fn none() -> Self {
        Self {
            no_new_privs: false,
            ..Self::default()
        }
    }

    /// As the manifest has it for `component`.
    ///
    /// # Errors
    /// There is no such user or group, or this process may not become it.
    pub fn of(component: &Component) -> Result<Self, StartError> {
        let keys = &component.keys;
        let name = &component.name;
        let identity = Accounts::here()
            .identity(keys.user.as_ref(), keys.group.as_ref())
            .map_err(|error| StartError::new(format!("{name}: {error}")))?;
        let is_other = identity.user.is_some_and(|user| user != nix::unistd::geteuid())
            || identity.group.is_some_and(|group| group != nix::unistd::getegid());
        if is_other && !nix::unistd::geteuid().is_root() {
            return Err(StartError::new(format!(
                "{name}: `user` and `group` take root: this process runs as user {} and can't become another",
                nix::unistd::geteuid()
            )));
        }
        Ok(Self {
            identity,
            rlimits: keys
                .rlimits
                .iter()
                .map(|(of, limit)| (kernels(*of), value(*limit)))
                .collect(),
            limits: Limits {
                memory: keys.memory.map(|Size(bytes)| bytes),
                processes: None,
                processors: keys.cpu,
            },
            no_new_privs: keys.no_new_privs.unwrap_or(true),
        })
    }

    /// Whether a process that was started without knowing of this will do: a control group can be joined later.
    pub fn is_usual(&self) -> bool {
        let Self {
            identity,
            rlimits,
            no_new_privs,
            ..
        } = self;
        identity.user.is_none() && identity.group.is_none() && rlimits.is_empty() && *no_new_privs
    }

    /// The place that a process of `component` is to enter: the keeper's, or else one that is made where limits ask for it.
    ///
    /// # Errors
    /// A limit that this machine can't hold anybody to.
    pub fn place(&self, component: &str) -> io::Result<Option<Box<dyn Kept>>> {
        if let Some(kept) = keeper::place_for(component) {
            self.limit(&*kept)?;
            return Ok(Some(kept));
        }
        Ok(self.group()?.map(|group| Box::new(group) as Box<dyn Kept>))
    }

    /// A place for a process that runs already, and is moved there.
    ///
    /// # Errors
    /// As [`Confinement::place`].
    pub fn place_of(&self, process: Pid) -> io::Result<Option<Box<dyn Kept>>> {
        let Some(group) = self.group()? else { return Ok(None) };
        group.admit(process).map_err(|error| self.refusal(&error))?;
        Ok(Some(Box::new(group)))
    }

    /// Sets the limits there.
    ///
    /// # Errors
    /// As [`Confinement::place`].
    pub fn limit(&self, place: &dyn Kept) -> io::Result<()> {
        place.limit(&self.limits).map_err(|error| self.refusal(&error))
    }

    /// The most memory, where it is limited.
    pub fn memory(&self) -> Option<Size> {
        self.limits.memory.map(Size)
    }

    fn group(&self) -> io::Result<Option<Group>> {
        if self.limits == Limits::default() {
            return Ok(None);
        }
        Group::new(&self.limits).map(Some).map_err(|error| self.refusal(&error))
    }

    fn refusal(&self, error: &dyn std::error::Error) -> io::Error {
        let keys = match (self.limits.memory, self.limits.processors) {
            (Some(_), Some(_)) => "`memory` and `cpu`",
            (Some(_), None) => "`memory`",
            _ => "`cpu`",
        };
        io::Error::other(format!("{keys} can't be enforced on this machine: {error}"))
    }

    /// What the child has to do, once it is in its place.
    pub fn ready(&self) -> Ready {
        Ready {
            rlimits: self.rlimits.clone(),
            user: self.identity.user,
            group: self.identity.group,
            no_new_privs: self.no_new_privs,
        }
    }
}

/// All that the child needs to confine itself.
pub struct Ready {
    rlimits: Vec<(resource::Resource, u64)>,
    user: Option<nix::unistd::Uid>,
    group: Option<Gid>,
    no_new_privs: bool,
}

impl Ready {
    /// Called between fork(2) and execve(2): makes system calls and nothing else.
    ///
    /// # Errors
    /// Those of the calls.
    pub fn enter(&self) -> io::Result<()> {
        for (resource, limit) in &self.rlimits {
            setrlimit(*resource, *limit, *limit)?;
        }
        if let Some(group) = self.group {
            setgroups(&[group])?;
            setgid(group)?;
        } else if self.user.is_some() {
            setgroups(&[])?;
        }
        if let Some(user) = self.user {
            setuid(user)?;
        }
        if self.no_new_privs {
            nix::sys::prctl::set_no_new_privs()?;
        }
        Ok(())
    }
}

fn kernels(resource: Resource) -> resource::Resource {
    use resource::Resource as Kernels;
    match resource {
        Resource::As => Kernels::RLIMIT_AS,
        Resource::Core => Kernels::RLIMIT_CORE,
        Resource::Cpu => Kernels::RLIMIT_CPU,
        Resource::Data => Kernels::RLIMIT_DATA,
        Resource::Fsize => Kernels::RLIMIT_FSIZE,
        Resource::Memlock => Kernels::RLIMIT_MEMLOCK,
        Resource::Nofile => Kernels::RLIMIT_NOFILE,
        Resource::Nproc => Kernels::RLIMIT_NPROC,
        Resource::Stack => Kernels::RLIMIT_STACK,
    }
}

fn value(limit: ResourceLimit) -> u64 {
    match limit {
        ResourceLimit::Value(value) => value,
        ResourceLimit::Unlimited(_) => resource::RLIM_INFINITY,
    }
}
