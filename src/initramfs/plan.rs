//! What the program of an initramfs is to do: written by `host::initramfs`, read by [`super`] in the machine.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where the initramfs keeps its [`Plan`].
pub const PLAN: &str = "/boot.plan";

/// What is to be done, in the order of its lines: `module FILE` for each, then `root DEVICE FILESYSTEM` or `stay`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Absolute paths, each after what it depends on.
    pub modules: Vec<PathBuf>,
    pub root: Root,
}

/// Where the root file system is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    Device {
        /// Below /dev: `/dev/vda`.
        device: PathBuf,
        /// As mount(2) names it: `squashfs`.
        filesystem: String,
    },
    /// In memory already, unpacked by the kernel as the rest of the initramfs.
    Here,
}

/// Why a text is no plan.
#[derive(Debug, PartialEq, Eq)]
pub enum PlanError {
    Line(String),
    NoRoot,
}

impl std::error::Error for PlanError {}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(
                f,
                "line {line:?} of {PLAN} is none of `module FILE`, `root DEVICE FILESYSTEM` and `stay`"
            ),
            Self::NoRoot => write!(f, "{PLAN} has no line `root DEVICE FILESYSTEM`, nor `stay`"),
        }
    }
}

impl FromStr for Plan {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let mut modules = Vec::new();
        let mut root = None;
        for line in text.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["module", file] => modules.push(file.into()),
                ["root", device, filesystem] => {
                    let (device, filesystem) = (device.into(), filesystem.to_owned());
                    root = Some(Root::Device { device, filesystem });
                }
                ["stay"] => root = Some(Root::Here),
                _ => return Err(PlanError::Line(line.to_owned())),
            }
        }
        let root = root.ok_or(PlanError::NoRoot)?;
        Ok(Self { modules, root })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for module in &self.modules {
            writeln!(f, "module {}", module.display())?;
        }
        match &self.root {
            Root::Device { device, filesystem } => writeln!(f, "root {} {filesystem}", device.display()),
            Root::Here => writeln!(f, "stay"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_reads_back_as_written() {
        let drive = Root::Device {
            device: "/dev/vda".into(),
            filesystem: "squashfs".into(),
        };
        for root in [drive, Root::Here] {
            let modules = vec!["/modules/virtio.ko".into(), "/modules/virtio_blk.ko".into()];
            let plan = Plan { modules, root };
            assert_eq!(plan.to_string().parse::<Plan>().unwrap(), plan);
        }
    }

    #[test]
    fn a_plan_that_is_none_is_told() {
        let error = |text: &str| text.parse::<Plan>().unwrap_err().to_string();
        assert!(error("modul /a.ko\n").contains("\"modul /a.ko\""));
        assert!(error("module /a.ko\n").contains("no line `root"));
    }
}
