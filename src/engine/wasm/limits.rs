//! How much memory guests may have: each for itself, and all of them together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use wasmtime::ResourceLimiter;

/// The most that one guest's linear memories may hold, in bytes, on a machine that has the memory.
const PER_GUEST: usize = 256 << 20;
/// The most elements of one table; a large program has some ten thousand functions.
pub(super) const TABLE_ELEMENTS: usize = 1 << 18;
/// Core instances that one component may be made of, and tables; Python's standard library is some forty.
pub(super) const INSTANCES: u32 = 256;
/// The most random bytes that one call may ask for: they take about as long as a guest's turn, and are not interrupted.
pub(super) const RANDOM: u64 = 4 << 20;
/// Linear memories of one component.
const MEMORIES: usize = 16;
/// Resources (streams, bodies, headers, open files) that a guest may hold at once, however little and however much memory it
/// may have; some hold descriptors of this process.
const RESOURCES: (usize, usize) = (512, 2048);
/// What a resource may hold outside the guest's memory, in bytes: the headers of a message, or the writes of a body that
/// wait.
const RESOURCE: usize = 128 << 10;
/// A Wasm page.
const PAGE: usize = 64 << 10;
/// What an element of a table takes, in bytes: a pointer, of whichever kind.
const ELEMENT: usize = size_of::<usize>();

/// Memory of all guests of the process together: linear memories and tables.
#[derive(Debug)]
pub(super) struct Budget {
    machine: usize,
    per_guest: usize,
    total: usize,
    used: AtomicUsize,
}

impl Budget {
    /// Half of a machine's `memory` for one guest at most, three quarters for all: a guest must not be able to make
    /// the kernel kill PID 1. `memory` is in bytes.
    pub(super) fn of_machine(memory: usize) -> Self {
        Self {
            machine: memory,
            per_guest: (memory / 2 / PAGE * PAGE).clamp(PAGE, PER_GUEST),
            total: memory / 4 * 3,
            used: AtomicUsize::new(0),
        }
    }

    /// The machine's memory, in bytes.
    pub(super) fn machine(&self) -> usize {
        self.machine
    }

    /// The most that one guest may have, in bytes; a multiple of a Wasm page.
    pub(super) fn per_guest(&self) -> usize {
        self.per_guest
    }

    fn take(&self, bytes: usize) -> bool {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let fits = before.checked_add(bytes).is_some_and(|used| used <= self.total);
        if !fits {
            self.give_back(bytes);
        }
        fits
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The part of a store's data that keeps its guest within its limits.
pub(super) trait HasLimits {
    fn limits(&mut self) -> &mut Limits;
}

/// The memory of one guest.
#[derive(Debug)]
pub(super) struct Limits {
    budget: &'static Budget,
    limit: usize,
    held: usize,
    last_growth: usize,
    refused: Option<Refused>,
    interrupted: Arc<AtomicBool>,
}

/// Why a guest got no more memory; it is not told, so this may explain why it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("it asked for {} MiB of memory; a guest may have {} MiB", asked >> 20, limit >> 20)]
    Guest { asked: usize, limit: usize },
    #[error("it asked for {} MiB of memory, and the guests of this machine have all that they may have, {} MiB", asked >> 20, total >> 20)]
    Machine { asked: usize, total: usize },
}

impl Limits {
    /// For a guest that may have `limit` bytes of memory, and no more than the budget has for one.
    pub(super) fn new(budget: &'static Budget, limit: usize) -> Self {
        Self {
            budget,
            limit: limit.min(budget.per_guest),
            held: 0,
            last_growth: 0,
            refused: None,
            interrupted: Arc::default(),
        }
    }

    /// Set when the guest is interrupted while it computes, for others to have their turn.
    pub(super) fn interrupted(&self) -> &Arc<AtomicBool> {
        &self.interrupted
    }

    /// Resources that the guest may hold at once: no more than take as much memory as it may have itself, unless that is
    /// too few to work with.
    pub(super) fn resources(&self) -> usize {
        (self.limit / RESOURCE).clamp(RESOURCES.0, RESOURCES.1)
    }

    /// For another event.
    pub(super) fn begin(&mut self) {
        self.refused = None;
    }

    /// What the guest's memories and tables hold, in bytes.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// The last request for memory that was refused.
    pub(super) fn refused(&self) -> Option<Refused> {
        self.refused
    }

    /// Whether the guest gets so many bytes more.
    fn grow(&mut self, growth: usize) -> bool {
        self.last_growth = 0;
        let asked = self.held.saturating_add(growth);
        let limit = self.limit;
        if asked > limit {
            self.refused = Some(Refused::Guest { asked, limit });
            return false;
        }
        if !self.budget.take(growth) {
            let total = self.budget.total;
            self.refused = Some(Refused::Machine { asked, total });
            return false;
        }
        self.held = asked;
        self.last_growth = growth;
        true
    }

    /// Growing came to nothing. Also called when it was refused: then there is nothing to give back.
    fn take_back(&mut self) {
        let growth = std::mem::take(&mut self.last_growth);
        self.held -= growth;
        self.budget.give_back(growth);
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(self.grow(desired.saturating_sub(current)))
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.take_back();
        Ok(())
    }

    fn instances(&self) -> usize {
        INSTANCES as usize
    }

    fn tables(&self) -> usize {
        INSTANCES as usize
    }

    fn memories(&self) -> usize {
        MEMORIES
    }

    fn table_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.last_growth = 0;
        let growth = desired.saturating_sub(current).saturating_mul(ELEMENT);
        Ok(desired <= TABLE_ELEMENTS && self.grow(growth))
    }

    fn table_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.take_back();
        Ok(())
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        self.budget.give_back(self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(memory: usize) -> &'static Budget {
        Box::leak(Box::new(Budget::of_machine(memory)))
    }

    #[test]
    fn a_guest_gets_no_more_than_its_limit() {
        let budget = budget(1 << 20);
        let mut limits = Limits::new(budget, usize::MAX);
        assert!(limits.memory_growing(0, 448 << 10, None).unwrap());
        assert!(!limits.memory_growing(448 << 10, 576 << 10, None).unwrap());
        let refused = limits.refused().unwrap();
        assert_eq!(
            refused,
            Refused::Guest {
                asked: 576 << 10,
                limit: 512 << 10
            }
        );
    }

    #[test]
    fn tables_count_as_memory() {
        let budget = budget(16 << 20);
        let mut limits = Limits::new(budget, 3 << 20);
        assert!(limits.memory_growing(0, 1 << 20, None).unwrap());
        assert!(limits.table_growing(0, TABLE_ELEMENTS, None).unwrap());
        assert!(!limits.table_growing(0, 1, None).unwrap());
        assert!(limits.refused().is_some());
        limits.table_grow_failed(wasmtime::format_err!("refused")).unwrap();
        assert_eq!(limits.held(), 3 << 20);
        drop(limits);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn all_guests_share_the_machines_memory_and_give_it_back() {
        let budget = budget(1 << 20);
        let mut first = Limits::new(budget, usize::MAX);
        let mut second = Limits::new(budget, usize::MAX);
        assert!(first.memory_growing(0, 512 << 10, None).unwrap());
        assert!(!second.memory_growing(0, 512 << 10, None).unwrap());
        assert!(matches!(second.refused(), Some(Refused::Machine { .. })));
        drop(first);
        assert!(second.memory_growing(0, 512 << 10, None).unwrap());
        second.memory_grow_failed(wasmtime::format_err!("no room")).unwrap();
        drop(second);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_guest_of_little_memory_holds_few_resources() {
        let budget = budget(64 << 30);
        for (limit, resources) in [(1 << 20, 512), (128 << 20, 1024), (usize::MAX, 2048)] {
            assert_eq!(Limits::new(budget, limit).resources(), resources);
        }
    }

    #[test]
    fn a_small_machine_gives_its_guests_half() {
        assert_eq!(budget(128 << 20).per_guest(), 64 << 20);
        assert_eq!(budget(64 << 30).per_guest(), PER_GUEST);
    }
}
