//! Bounds that the machine sets to programs, as the engines know them: `init` puts the machine's control groups behind
//! these traits, and [`super::process`] has every program that it starts enter one.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::sync::OnceLock;

/// What one program may use at most; `None` for as much as all programs together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Limits {
    /// In bytes, page cache and files in a tmpfs included.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub processes: Option<u64>,
    /// Processors: 0.5 is half of one.
    pub processors: Option<f64>,
}

/// Makes a place for each program.
pub trait Keeper: Debug + Send + Sync {
    /// A place for a process of `component`, without limits of its own yet.
    ///
    /// # Errors
    /// A sentence that says why there is none.
    fn keep(&self, component: &str) -> io::Result<Box<dyn Kept>>;
}

/// The place of one program and all that it starts, however they detach themselves. Dropped once it has ended.
pub trait Kept: Debug + Send + Sync {
    /// The file through which a process enters: it writes `0` there.
    ///
    /// # Errors
    /// When the place is gone.
    fn entrance(&self) -> io::Result<File>;

    /// Sets limits, or changes them while the program runs.
    ///
    /// # Errors
    /// Where the kernel refuses one.
    fn limit(&self, limits: &Limits) -> io::Result<()>;

    /// Kills all that is there.
    fn kill(&self);

    /// Whether the kernel has killed something there for want of memory.
    fn ran_out_of_memory(&self) -> bool;
}

static KEEPER: OnceLock<Box<dyn Keeper>> = OnceLock::new();

/// Has `keeper` keep every program that this process starts from now on: once, by PID 1 of a machine.
pub fn keep_programs_with(keeper: Box<dyn Keeper>) {
    let _ = KEEPER.set(keeper);
}

/// A place for a process of `component`, where this process has a keeper. That none can be made is told, and no reason
/// not to run the program.
pub(super) fn place_for(component: &str) -> Option<Box<dyn Kept>> {
    match KEEPER.get()?.keep(component) {
        Ok(kept) => Some(kept),
        Err(error) => {
            tracing::warn!(component, "runs without limits: {error}");
            None
        }
    }
}
