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
/// may have. Guests whose language collects garbage hold many that they have done with.
const RESOURCES: (usize, usize) = (4096, 16384);
/// Memory of the guest's, in bytes, for which it may hold one.
const RESOURCE: usize = 16 << 10;
/// Resources left from earlier events with which an instance has no more: to count them takes longer than to make another.
pub(super) const CROWDED: usize = 1024;
/// What one call of the host's may add to what a guest holds outside its memory, in bytes.
const GROWTH: usize = 256 << 10;
/// Calls of the host's after which it is looked at what a guest holds, at the earliest: most events have fewer.
const LOOK_AFTER: usize = 32;
/// Open files of one guest that are not counted: its standard streams and folders, and a few more.
const FREE_FILES: usize = 8;
/// Resources that a guest may hold for each task, stream and future of WASI 0.3; a stream is three of them.
const RESOURCES_PER_TASK: usize = 2;
/// Handles, also those to resources of the guest's own, for each resource.
const HANDLES: usize = 6;
/// A Wasm page.
const PAGE: usize = 64 << 10;
/// What an element of a table takes, in bytes: a pointer, of whichever kind.
const ELEMENT: usize = size_of::<usize>();

/// What all guests of the process have together: memory, which is linear memories, tables and what is held outside them, and
/// open files.
#[derive(Debug)]
pub(super) struct Budget {
    machine: usize,
    per_guest: usize,
    total: usize,
    used: AtomicUsize,
    files: usize,
    files_used: AtomicUsize,
}

/// What a guest holds outside its memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) bytes: usize,
    pub(super) files: usize,
}

impl Budget {
    /// Half of a machine's `memory` for one guest at most, three quarters for all: a guest must not be able to make
    /// the kernel kill PID 1. `memory` is in bytes. Of the `files` that this process may open, guests have half: without any
    /// left, no client could connect.
    pub(super) fn of_machine(memory: usize, files: usize) -> Self {
        Self {
            machine: memory,
            per_guest: (memory / 2 / PAGE * PAGE).clamp(PAGE, PER_GUEST),
            total: memory / 4 * 3,
            used: AtomicUsize::new(0),
            files: files / 2,
            files_used: AtomicUsize::new(0),
        }
    }

    /// What each guest may hold outside its memory before that counts, in bytes: an eighth of the machine's memory, which
    /// is in none of the other shares, among as many guests as there may be.
    fn free(&self) -> usize {
        self.machine / 8 / 1024
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
        take(&self.used, bytes, self.total)
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn take_files(&self, files: usize) -> bool {
        take(&self.files_used, files, self.files)
    }

    fn give_back_files(&self, files: usize) {
        self.files_used.fetch_sub(files, Ordering::Relaxed);
    }
}

/// Takes `more` of `total`, if so much is left. What is refused keeps nothing from others, not even for a moment.
fn take(used: &AtomicUsize, more: usize, total: usize) -> bool {
    let with_more = |used: usize| used.checked_add(more).filter(|used| *used <= total);
    used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with_more)
        .is_ok()
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
    /// What counts of what the guest holds outside.
    outside: Held,
    /// Calls of the host's until that is looked at again.
    unseen: usize,
    overdrawn: bool,
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
    #[error(
        "it held {} MiB of headers, bodies and the like outside its memory, and may hold as much there as in it, {} MiB; it was \
         left nothing of it. Have it hold fewer at a time, or allow it more memory",
        held >> 20, limit >> 20
    )]
    OutsideOne { held: usize, limit: usize },
    #[error(
        "it held {} MiB of headers, bodies and the like outside its memory, for which the guests of this machine have no more \
         room: {} MiB for that and their memories together; it was left nothing of it. Have it hold fewer at a time, or give \
         the machine more memory",
        held >> 20, total >> 20
    )]
    Outside { held: usize, total: usize },
    #[error(
        "it had {held} files and sockets open, and the guests of this process have {total} together, half of what it may open \
         (ulimit -n); it was left none. Have it close them, or raise that limit"
    )]
    Files { held: usize, total: usize },
}

impl Limits {
    /// For a guest that may have `limit` bytes of memory, and no more than the budget has for one.
    pub(super) fn new(budget: &'static Budget, limit: usize) -> Self {
        Self {
            budget,
            limit: limit.min(budget.per_guest),
            held: 0,
            outside: Held::default(),
            unseen: LOOK_AFTER,
            overdrawn: false,
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

    /// Entries that it may have in the tables of the component model: of tasks and streams, and of handles.
    pub(super) fn entries(&self) -> (usize, usize) {
        (self.resources() / RESOURCES_PER_TASK, HANDLES * self.resources())
    }

    /// Whether it is time to look at what the guest holds outside its memory. To be asked at each call of the host's.
    pub(super) fn is_due(&mut self) -> bool {
        if let Some(less) = self.unseen.checked_sub(1) {
            self.unseen = less;
            return false;
        }
        !self.overdrawn
    }

    /// Counts what the guest was seen to hold outside its memory. False if that is more than there is: it may hold nothing
    /// any more.
    pub(super) fn hold(&mut self, held: Held) -> bool {
        let (budget, before) = (self.budget, self.outside);
        // Of a guest that holds much, a little more matters less.
        self.unseen = LOOK_AFTER.max(held.bytes / 16 / GROWTH);
        let counted = Held {
            bytes: held.bytes.saturating_sub(budget.free()),
            files: held.files.saturating_sub(FREE_FILES),
        };
        let (limit, total) = (self.limit, budget.total);
        let refused = if counted.bytes > limit {
            Refused::OutsideOne {
                held: held.bytes,
                limit,
            }
        } else if !budget.take(counted.bytes.saturating_sub(before.bytes)) {
            Refused::Outside {
                held: held.bytes,
                total,
            }
        } else {
            self.outside.bytes = counted.bytes;
            budget.give_back(before.bytes.saturating_sub(counted.bytes));
            if budget.take_files(counted.files.saturating_sub(before.files)) {
                self.outside.files = counted.files;
                budget.give_back_files(before.files.saturating_sub(counted.files));
                return true;
            }
            let (held, total) = (held.files, budget.files);
            Refused::Files { held, total }
        };
        self.refused = Some(refused);
        self.overdrawn = true;
        self.let_go();
        false
    }

    fn let_go(&mut self) {
        let Held { bytes, files } = std::mem::take(&mut self.outside);
        self.budget.give_back(bytes);
        self.budget.give_back_files(files);
    }

    /// Whether anything counts of what the guest holds outside its memory.
    pub(super) fn counts_outside(&self) -> bool {
        self.outside != Held::default()
    }

    /// Whether the guest was left nothing of what it held outside its memory.
    pub(super) fn is_overdrawn(&self) -> bool {
        self.overdrawn
    }

    /// For another event.
    pub(super) fn begin(&mut self) {
        self.refused = None;
    }

    /// What the guest holds as far as it counts, in bytes: memories, tables, and what is outside them.
    pub(super) fn held(&self) -> usize {
        self.held + self.outside.bytes
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
        self.let_go();
        self.budget.give_back(self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(memory: usize) -> &'static Budget {
        Box::leak(Box::new(Budget::of_machine(memory, 1024)))
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
    fn what_guests_hold_outside_counts_for_all_together() {
        let budget = budget(1 << 30);
        let guest = || Limits::new(budget, usize::MAX);
        let held = |bytes, files| Held { bytes, files };
        let mut first = guest();
        assert!(!first.is_due() && first.hold(held(100 << 10, FREE_FILES)));
        assert_eq!(budget.used.load(Ordering::Relaxed), 0, "a little is free");
        assert!(first.hold(held(250 << 20, 200)));
        let mut others = [guest(), guest()];
        assert!(others.iter_mut().all(|other| other.hold(held(250 << 20, 100))));
        let mut late = guest();
        assert!(!late.hold(held(250 << 20, 1)) && late.is_overdrawn());
        assert!(matches!(late.refused(), Some(Refused::Outside { .. })));
        let mut open = guest();
        assert!(!open.hold(held(0, 200)));
        assert!(matches!(open.refused(), Some(Refused::Files { .. })));
        assert!(first.hold(held(1 << 20, 1)));
        assert!(guest().hold(held(200 << 20, 200)));
        drop((first, others));
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
        assert_eq!(budget.files_used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_refused_leaves_what_was_there() {
        let budget = budget(1 << 30);
        let mut guest = Limits::new(budget, usize::MAX);
        assert!(guest.hold(Held {
            bytes: 100 << 20,
            files: 100
        }));
        let held = budget.used.load(Ordering::Relaxed);
        assert!(!budget.take(800 << 20) && !budget.take_files(500));
        assert_eq!(budget.used.load(Ordering::Relaxed), held);
        // All that is left is taken by others: it may go on with what it has.
        assert!(budget.take(budget.total - held));
        assert!(guest.hold(Held {
            bytes: 100 << 20,
            files: 100
        }));
        assert!(guest.counts_outside() && guest.held() > 99 << 20);
        assert!(guest.hold(Held::default()) && !guest.counts_outside());
    }

    #[test]
    fn a_guest_holds_no_more_outside_its_memory_than_in_it() {
        let budget = budget(64 << 30);
        let mut guest = Limits::new(budget, 64 << 20);
        let held = |bytes| Held { bytes, files: 0 };
        assert!(guest.hold(held(60 << 20)));
        assert!(!guest.hold(held(80 << 20)) && guest.is_overdrawn());
        assert!(matches!(guest.refused(), Some(Refused::OutsideOne { .. })));
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_guest_of_little_memory_holds_few_resources() {
        let budget = budget(64 << 30);
        for (limit, resources) in [(1 << 20, 4096), (128 << 20, 8192), (usize::MAX, 16384)] {
            assert_eq!(Limits::new(budget, limit).resources(), resources);
        }
    }

    #[test]
    fn a_small_machine_gives_its_guests_half() {
        assert_eq!(budget(128 << 20).per_guest(), 64 << 20);
        assert_eq!(budget(64 << 30).per_guest(), PER_GUEST);
    }
}
