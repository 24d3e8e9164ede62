//! Flags that say for every WebAssembly component what `[components.NAME.wasm]` says for one.

use std::num::{NonZeroU32, NonZeroU64};

use clap::Args;

use super::CommandError;
use crate::program::limits::Size;
use crate::program::sandbox::{Directory, HostRule, Sandbox};
use crate::program::{Component, EngineKind};

#[derive(Args, Clone)]
#[command(next_help_heading = "WebAssembly")]
pub struct SandboxArgs {
    /// A folder that guests see, read-only unless :rw says otherwise; may be repeated
    #[arg(long = "allow-dir", value_name = "HOST::GUEST[:rw]")]
    directories: Vec<Directory>,

    /// Where guests may connect to: https://api.example.org, *.example.org, tcp://10.0.0.7:5432, self (the program's other
    /// components), aleph (the guest API); may be repeated
    #[arg(long = "allow-host", value_name = "HOST")]
    hosts: Vec<HostRule>,

    /// An argument for guests that are commands; may be repeated
    #[arg(long = "arg", value_name = "ARGUMENT", allow_hyphen_values = true)]
    arguments: Vec<String>,

    /// Events that one instance handles before it is replaced [default: 1, and 128 for WASI 0.3]
    #[arg(long, value_name = "EVENTS")]
    reuse: Option<NonZeroU32>,

    /// The most memory of one instance, in MiB [default: 256, or half of a smaller machine's]
    #[arg(long, value_name = "MIB")]
    memory: Option<NonZeroU32>,

    /// The most work on one event, in units of about one instruction [default: limited only by --timeout]
    #[arg(long, value_name = "UNITS")]
    fuel: Option<NonZeroU64>,
}

impl SandboxArgs {
    /// Grants what the flags say to the program's WebAssembly components.
    ///
    /// # Errors
    /// If there is none that they could be for.
    pub fn apply(&self, components: &mut [Component]) -> Result<(), CommandError> {
        let said = Sandbox {
            directories: self.directories.clone(),
            hosts: self.hosts.clone(),
            arguments: self.arguments.clone(),
            reuse: self.reuse,
            fuel: self.fuel,
        };
        if said == Sandbox::default() && self.memory.is_none() {
            return Ok(());
        }
        let mut any = false;
        for component in components
            .iter_mut()
            .filter(|component| component.engine == EngineKind::Wasm)
        {
            component.keys.wasm.extend(&said);
            if let Some(mebibytes) = self.memory {
                component.keys.memory = Some(Size(u64::from(mebibytes.get()) << 20));
            }
            any = true;
        }
        if any {
            return Ok(());
        }
        let whys: Vec<&str> = components.iter().map(|component| component.why.as_str()).collect();
        Err(format!(
            "--allow-dir, --allow-host, --arg, --reuse, --memory and --fuel are for WebAssembly, and there is none here: {}",
            whys.join("; ")
        )
        .into())
    }
}
