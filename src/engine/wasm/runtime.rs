//! What all Wasm guests of the process share: the `wasmtime::Engine`, made when the first Wasm program is started, the
//! slots that instances are made in, and the ticker that makes busy guests yield.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::thread::Thread;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use wasmtime::component::Linker;
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, ResourcesRequired, Store,
    UpdateDeadline, WasmBacktraceDetails,
};

use super::host::ComponentHost;
use super::limits::{Budget, HasLimits, INSTANCES, TABLE_ELEMENTS};
use super::link;
use crate::engine::{StartError, processors};
use crate::event::{Failure, FailureKind};

/// How long a guest may compute before other tasks of its thread get a turn.
const TICK: Duration = Duration::from_millis(10);
/// Ticks without a guest at work after which the ticker sleeps until the next one.
const IDLE_TICKS: u32 = 100;
/// How long an event waits for a free slot before it is turned away.
const SLOT_TIMEOUT: Duration = Duration::from_secs(10);
/// Linear memories that events may have at once, whatever the machine has.
const LEAST_SLOTS: u32 = 32;
const MOST_SLOTS: u32 = 1000;
/// The most for each processor: room for many guests that wait for somebody else, though each slot takes some
/// microseconds when the engine is made, for which the first reply waits.
const SLOTS_PER_PROCESSOR: u32 = 128;
/// Tables that one slot allows for: a component has a few (of its own module, adapters, shims).
const TABLES_PER_SLOT: u32 = 8;
/// Free slots that keep the pages of their last guest.
const WARM_SLOTS: u32 = 16;
/// When an event that was turned away is worth another try.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Events that wait for a slot at once.
const QUEUE: usize = 1024;
/// The stack of one guest, in bytes: a megabyte is what native programs have that recurse as deep.
pub(super) const STACK: usize = 1 << 20;
/// The share of the machine's memory that one warm slot may keep, one part in this many: all of them one in 128.
const KEPT_SHARE: usize = 2048;

/// The most linear memories of instances between events.
const RESERVE: u32 = 64;
/// The share of the machine's memory that one instance between events may hold, one part in this many.
const KEPT_INSTANCE_SHARE: usize = 64;

/// The Wasm side of this process.
pub(super) struct Runtime {
    pub(super) engine: Engine,
    machinery: Machinery,
    /// What components may import, made when the first one is linked.
    offered: OnceLock<Result<Linker<ComponentHost>, StartError>>,
    /// Memory of all guests together.
    pub(super) budget: &'static Budget,
    /// One permit for each linear memory that events may have at once.
    slots: Semaphore,
    slot_count: u32,
    /// Events that wait for one.
    queued: AtomicUsize,
    /// Linear memories that instances between events may have beside those, and have.
    reserve: u32,
    reserved: AtomicU32,
    ticker: Ticker,
}

/// Which version of the component model's machinery a guest needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Machinery {
    /// For WASI 0.1 and 0.2. Calls are cheaper without the other's.
    Plain,
    /// For WASI 0.3: concurrent tasks in one instance.
    Concurrent,
}

/// What tells runtimes apart: a guest can't be run on one of another kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) machinery: Machinery,
    /// Whether guests count what they do, in fuel. Without, they are faster.
    pub(super) metered: bool,
}

/// The runtime for guests of one kind, made on first use.
///
/// # Errors
/// If this machine can run no compiled Wasm at all, in which case every later call gets the same error.
pub(super) fn runtime(kind: Kind) -> Result<&'static Runtime, StartError> {
    static RUNTIMES: [OnceLock<Result<Runtime, StartError>>; 4] = [const { OnceLock::new() }; 4];
    let index = usize::from(kind.machinery == Machinery::Concurrent) + 2 * usize::from(kind.metered);
    let runtime = RUNTIMES[index].get_or_init(|| Runtime::new(kind));
    let runtime = runtime.as_ref().map_err(StartError::clone)?;
    runtime.ticker.start(&runtime.engine)?;
    Ok(runtime)
}

impl Runtime {
    fn new(kind: Kind) -> Result<Self, StartError> {
        static BUDGET: LazyLock<Budget> = LazyLock::new(|| Budget::of_machine(memory_of_machine(), open_files()));
        let memory = BUDGET.machine();
        let slot_count = slots(memory, processors());
        let reserve = (slot_count / 4).min(RESERVE);
        let places = slot_count + reserve;
        let engine = Engine::new(&pooled(kind, places, BUDGET.per_guest(), memory / KEPT_SHARE))
            .or_else(|refusal| {
                tracing::info!(
                    "no address space for {places} pooled Wasm memories ({refusal:#}); making each on demand"
                );
                Engine::new(&on_demand(kind))
            })
            .map_err(|error| StartError::new(format!("Wasm can't be run on this machine: {error:#}")))?;
        Ok(Self {
            engine,
            machinery: kind.machinery,
            offered: OnceLock::new(),
            budget: &BUDGET,
            slots: Semaphore::new(slot_count as usize),
            slot_count,
            queued: AtomicUsize::new(0),
            reserve,
            reserved: AtomicU32::new(0),
            ticker: Ticker::default(),
        })
    }

    /// What components may import, whatever they do.
    ///
    /// # Errors
    /// If interfaces are in each other's way.
    pub(super) fn offered(&self) -> Result<&Linker<ComponentHost>, StartError> {
        let concurrent = self.machinery == Machinery::Concurrent;
        let offered = self.offered.get_or_init(|| link::offered(&self.engine, concurrent));
        offered.as_ref().map_err(StartError::clone)
    }

    /// A place for an instance with `memories` linear memories, and the ticker's promise to watch over it.
    ///
    /// # Errors
    /// [`FailureKind::Unavailable`] if no place becomes free in time.
    pub(super) async fn admit(&'static self, memories: u32) -> Result<Admission, Failure> {
        if let Some(admission) = self.try_admit(memories) {
            return Ok(admission);
        }
        let slot = self.queue(memories.clamp(1, self.slot_count)).await?;
        Ok(Admission {
            _slot: slot,
            _watch: self.watch(),
        })
    }

    /// As [`Self::admit`], if there is a place now.
    pub(super) fn try_admit(&'static self, memories: u32) -> Option<Admission> {
        let slot = self.slots.try_acquire_many(memories.clamp(1, self.slot_count)).ok()?;
        Some(Admission {
            _slot: slot,
            _watch: self.watch(),
        })
    }

    /// Waits for places that others have now.
    async fn queue(&'static self, wanted: u32) -> Result<SemaphorePermit<'static>, Failure> {
        let full = |how: String| {
            let message = format!(
                "all {} places for Wasm instances are taken, {how}; try again later",
                self.slot_count
            );
            Failure {
                retry_after: Some(RETRY_AFTER),
                ..Failure::new(FailureKind::Unavailable, message)
            }
        };
        let _queued = Queued::enter(&self.queued).ok_or_else(|| full(format!("and {QUEUE} events wait for one")))?;
        let slow = || full(format!("and none became free within {} s", SLOT_TIMEOUT.as_secs()));
        tokio::time::timeout(SLOT_TIMEOUT, self.slots.acquire_many(wanted))
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or_else(slow)
    }

    /// The ticker's promise to watch over an instance that is made for no event yet.
    pub(super) fn watch(&'static self) -> Watch {
        self.ticker.watch()
    }

    /// Whether an instance that holds so many `bytes` may stand ready: not if it takes too much from those at work.
    pub(super) fn may_stand_ready(&self, bytes: usize) -> bool {
        bytes <= self.budget.machine() / KEPT_INSTANCE_SHARE
    }

    /// Room for an instance between events, with so many memories, beside that for events; `None` if there is no more.
    pub(super) fn reserve(&'static self, memories: u32) -> Option<Reserved> {
        let before = self.reserved.fetch_add(memories, Ordering::Relaxed);
        let reserved = Reserved {
            runtime: self,
            memories,
        };
        (before.saturating_add(memories) <= self.reserve).then_some(reserved)
    }

    /// Gives the guest of a store its time until it has to yield for the first time, and all that it may use of fuel.
    pub(super) fn wind_up<T>(&self, store: &mut Store<T>, fuel: Option<u64>) {
        store.set_epoch_deadline(1);
        if let Some(fuel) = fuel
            && let Err(error) = store.set_fuel(fuel)
        {
            tracing::error!("a guest's fuel can't be set: {error:#}");
        }
    }

    /// A store whose guest yields at each tick and keeps to the limits in `data`. `fuel` is for a metered runtime.
    pub(super) fn store<T: HasLimits + Send + 'static>(&self, mut data: T, fuel: Option<u64>) -> Store<T> {
        let (tasks, handles) = data.limits().entries();
        let mut store = Store::new(&self.engine, data);
        store.set_max_component_handles(handles);
        if let Some(table) = store.concurrent_resource_table() {
            table.set_max_capacity(tasks);
        }
        store.limiter(|data| data.limits());
        // `yield_now` lets the I/O driver run too, which a future that wakes itself would not.
        store.epoch_deadline_callback(|mut store| {
            store.data_mut().limits().interrupted().store(true, Ordering::Relaxed);
            Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
        });
        self.wind_up(&mut store, fuel);
        store
    }
}

/// Held while an event waits for a slot.
struct Queued<'a>(&'a AtomicUsize);

impl<'a> Queued<'a> {
    /// `None` if the queue is full.
    fn enter(queued: &'a AtomicUsize) -> Option<Self> {
        let entered = Self(queued);
        (queued.fetch_add(1, Ordering::Relaxed) < QUEUE).then_some(entered)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Held as long as an instance stands ready.
pub(super) struct Reserved {
    runtime: &'static Runtime,
    memories: u32,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.runtime.reserved.fetch_sub(self.memories, Ordering::Relaxed);
    }
}

/// Held as long as an instance exists.
pub(super) struct Admission {
    _slot: SemaphorePermit<'static>,
    _watch: Watch,
}

fn common(kind: Kind) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .concurrency_support(kind.machinery == Machinery::Concurrent)
        .consume_fuel(kind.metered)
        .max_wasm_stack(STACK)
        .parallel_compilation(true)
        .memory_init_cow(true)
        .wasm_backtrace_details(WasmBacktraceDetails::Enable);
    config
}

/// An engine that compiles for any machine of this architecture, and runs nothing.
///
/// # Errors
/// If there is no compiler for this architecture.
pub(super) fn portable_compiler(kind: Kind) -> Result<Engine, StartError> {
    let mut config = common(kind);
    // Named, the target has no more than every processor of its kind; by default it has all that this one has.
    config
        .target(&format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .and_then(|config| Engine::new(config))
        .map_err(|error| StartError::new(format!("Wasm can't be compiled on this machine: {error:#}")))
}

/// Address space for `slots` memories is reserved at once; an instance then costs a few microseconds.
fn pooled(kind: Kind, slots: u32, per_guest: usize, keep: usize) -> Config {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_memories(slots)
        .total_tables(slots.saturating_mul(TABLES_PER_SLOT))
        .total_stacks(slots)
        // A count, for which nothing is reserved.
        .total_core_instances(slots.saturating_mul(INSTANCES))
        .total_component_instances(slots)
        .max_memories_per_module(4)
        .max_tables_per_module(4)
        .table_elements(TABLE_ELEMENTS)
        // Bounds, not reservations: what is made is as large as the program's lists of functions.
        .max_core_instance_size(16 << 20)
        .max_component_instance_size(16 << 20)
        .max_memory_size(per_guest)
        // Used slots keep their pages, so that the next guest takes no page faults.
        .max_unused_warm_slots(WARM_SLOTS)
        .linear_memory_keep_resident(keep.min(4 << 20))
        .table_keep_resident(16 << 10)
        .async_stack_keep_resident(0)
        .pagemap_scan(Enabled::Auto);
    let mut config = common(kind);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}

/// Each memory is mapped when it is needed and no larger than needed, for where address space is short.
fn on_demand(kind: Kind) -> Config {
    let mut config = common(kind);
    config
        .allocation_strategy(InstanceAllocationStrategy::OnDemand)
        .memory_reservation(16 << 20)
        .memory_reservation_for_growth(16 << 20)
        .memory_guard_size(64 << 10);
    config
}

/// Slots that an instance with these resources takes.
pub(super) fn slots_for(required: &ResourcesRequired) -> u32 {
    required.num_memories.max(required.num_tables.div_ceil(TABLES_PER_SLOT))
}

/// How many linear memories events may have at once, with so many bytes of `memory` and so many `processors`.
fn slots(memory: usize, processors: usize) -> u32 {
    let most = SLOTS_PER_PROCESSOR.saturating_mul(u32::try_from(processors).unwrap_or(u32::MAX));
    let wanted = u32::try_from(memory >> 20).unwrap_or(u32::MAX).min(most);
    wanted.clamp(LEAST_SLOTS, MOST_SLOTS)
}

/// What this process may use, in bytes: the machine's memory, or less where a cgroup says so.
fn memory_of_machine() -> usize {
    let machine = nix::sys::sysinfo::sysinfo().map_or(128 << 20, |info| info.ram_total());
    let cgroup = std::fs::read_to_string("/sys/fs/cgroup/memory.max")
        .ok()
        .and_then(|limit| limit.trim().parse().ok());
    usize::try_from(cgroup.unwrap_or(u64::MAX).min(machine)).unwrap_or(usize::MAX)
}

/// How many files this process may have open.
fn open_files() -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// Advances the engine's epoch while guests are at work, and sleeps while there are none, so that an idle machine has
/// nothing to wake up for.
#[derive(Default)]
struct Ticker {
    /// Guests at work now.
    watched: AtomicUsize,
    /// Guests ever watched; tells the ticker whether there were any since it last looked.
    seen: AtomicU64,
    asleep: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

/// Held while a guest is at work.
pub(super) struct Watch(&'static Ticker);

impl Ticker {
    /// Starts the thread, unless it runs.
    fn start(&'static self, engine: &Engine) -> Result<(), StartError> {
        let mut thread = self.thread.lock();
        if thread.is_none() {
            let engine = engine.clone();
            let started = std::thread::Builder::new()
                .name("wasm-ticker".into())
                .stack_size(64 << 10)
                .spawn(move || self.run(&engine))
                .map_err(|error| StartError::new(format!("no thread for the clock of Wasm guests: {error}")))?;
            *thread = Some(started.thread().clone());
        }
        Ok(())
    }

    fn run(&self, engine: &Engine) {
        let mut idle_ticks = 0;
        let mut seen = 0;
        loop {
            std::thread::sleep(TICK);
            engine.increment_epoch();
            let seen_now = self.seen.load(Ordering::Relaxed);
            if self.watched.load(Ordering::SeqCst) > 0 || seen_now != seen {
                seen = seen_now;
                idle_ticks = 0;
                continue;
            }
            idle_ticks += 1;
            if idle_ticks < IDLE_TICKS {
                continue;
            }
            // A guest that comes now sees `asleep` or is seen here: both sides write first and then read (SeqCst).
            self.asleep.store(true, Ordering::SeqCst);
            while self.asleep.load(Ordering::SeqCst) && self.watched.load(Ordering::SeqCst) == 0 {
                std::thread::park();
            }
            self.asleep.store(false, Ordering::SeqCst);
            idle_ticks = 0;
        }
    }

    fn watch(&'static self) -> Watch {
        self.watched.fetch_add(1, Ordering::SeqCst);
        self.seen.fetch_add(1, Ordering::Relaxed);
        if self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst) {
            let thread = self.thread.lock();
            if let Some(thread) = &*thread {
                thread.unpark();
            }
        }
        Watch(self)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.watched.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_allocation_are_valid_configurations() {
        for machinery in [Machinery::Plain, Machinery::Concurrent] {
            for metered in [false, true] {
                let kind = Kind { machinery, metered };
                Engine::new(&pooled(kind, 32, 1 << 20, 64 << 10)).unwrap();
                Engine::new(&on_demand(kind)).unwrap();
            }
        }
    }

    #[test]
    fn slots_are_for_what_the_machine_has_least_of() {
        for (memory, processors, expected) in [
            (16 << 20, 1, 32),
            (128 << 20, 1, 128),
            (128 << 20, 8, 128),
            (4 << 30, 1, 128),
            (4 << 30, 2, 256),
            (4 << 30, 64, 1000),
        ] {
            assert_eq!(slots(memory, processors), expected, "{memory} {processors}");
        }
    }

    #[test]
    fn a_ticker_that_sleeps_wakes_for_the_next_guest() {
        let ticker: &'static Ticker = Box::leak(Box::default());
        let engine = Engine::default();
        ticker.start(&engine).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        let until = |condition: &dyn Fn() -> bool| {
            while !condition() {
                assert!(std::time::Instant::now() < deadline);
                std::thread::park_timeout(TICK);
            }
        };
        until(&|| ticker.asleep.load(Ordering::SeqCst));
        let watch = ticker.watch();
        until(&|| !ticker.asleep.load(Ordering::SeqCst));
        drop(watch);
        until(&|| ticker.asleep.load(Ordering::SeqCst));
    }
}
