//! Instances between events: made ahead while nobody waits, and kept for the next event where the program allows it.
//!
//! ```text
//! event -> place (one that stands ready, or an empty one) -> proxy, service, message -> settle -> ready again, or
//!                                                                                dropped, and another made ahead
//! ```
//!
//! Most of what a fresh instance costs (memory brought back to its first state, the store, the component's start) then
//! comes after the reply, not before it.

use std::sync::Arc;
use std::thread::{self, ThreadId};

use parking_lot::Mutex;
use wasmtime::Store;
use wasmtime_wasi_http::p2::bindings::{Proxy, ProxyPre};
use wasmtime_wasi_http::p3::bindings::{Service, ServicePre};

use super::host::{ComponentHost, Folders};
use super::limits::CROWDED;
use super::log::Log;
use super::runtime::Reserved;
use super::{Shared, failure};
use crate::event::{Context, EventId, Failure};

/// The most instances of one program that are kept for more events.
const REUSED_READY: usize = 16;

/// What instances are made from, linked already.
pub(super) trait Template: Send + Sync + 'static {
    type Guest: Send;

    /// Makes one, which runs its start functions.
    fn instantiate(
        &self,
        store: &mut Store<ComponentHost>,
    ) -> impl Future<Output = wasmtime::Result<Self::Guest>> + Send;
}

impl Template for ProxyPre<ComponentHost> {
    type Guest = Proxy;

    async fn instantiate(&self, store: &mut Store<ComponentHost>) -> wasmtime::Result<Proxy> {
        self.instantiate_async(store).await
    }
}

impl Template for ServicePre<ComponentHost> {
    type Guest = Service;

    async fn instantiate(&self, store: &mut Store<ComponentHost>) -> wasmtime::Result<Service> {
        self.instantiate_async(store).await
    }
}

/// A store for one event, with an instance in it or a place for one.
pub(super) struct Place<G> {
    pub(super) store: Store<ComponentHost>,
    /// The guest's standard error.
    pub(super) log: Log,
    stdout: Log,
    /// Those that it has open.
    folders: Folders,
    guest: Option<G>,
    /// Events that the instance has had.
    events: u32,
}

impl<G: Send> Place<G> {
    fn new(shared: &Shared, event: EventId) -> Result<Self, Failure> {
        let log = Log::new(&shared.component, event, "stderr");
        let stdout = Log::new(&shared.component, event, "stdout");
        let grants = &shared.grants;
        let folders = grants.folders();
        let wasi = grants.wasi(&grants.environment, None, stdout.clone(), log.clone())?;
        let host = grants.component(wasi, &log, shared.limits());
        Ok(Self {
            store: shared.store(host),
            log,
            stdout,
            folders,
            guest: None,
            events: 0,
        })
    }

    /// The instance, made now if it wasn't there, and its store.
    ///
    /// # Errors
    /// If it can't be made: its start trapped, or there is no place for it.
    pub(super) async fn guest<T: Template<Guest = G>>(
        &mut self,
        template: &T,
    ) -> wasmtime::Result<(&G, &mut Store<ComponentHost>)> {
        if self.guest.is_none() {
            self.guest = Some(template.instantiate(&mut self.store).await?);
        }
        match &self.guest {
            Some(guest) => Ok((guest, &mut self.store)),
            None => Err(wasmtime::format_err!("the instance is gone")),
        }
    }

    /// What is wrong with a guest that ended this way, if anything is.
    ///
    /// # Errors
    /// As [`failure::ended`].
    pub(super) fn ended(&self, shared: &Shared, error: &wasmtime::Error) -> Result<(), Failure> {
        failure::ended(error, &self.log, self.store.data().limits.refused(), shared.fuel)
    }

    /// What the guest writes to.
    pub(super) fn logs(&self) -> [Log; 2] {
        [self.log.clone(), self.stdout.clone()]
    }

    /// Whether so much is left from earlier events that the next may not find room for its own.
    fn is_crowded(&mut self) -> bool {
        let tasks = self.store.concurrent_resource_table();
        tasks.is_some_and(|tasks| tasks.iter_mut().count() > CROWDED) || self.store.data_mut().is_crowded()
    }

    /// For another event.
    fn begin(&mut self, shared: &Shared, context: &Context) {
        self.log.begin(context.id);
        self.stdout.begin(context.id);
        self.store.data_mut().begin(context);
        shared.wind_up(&mut self.store);
    }
}

/// The instances of one program that nobody uses at the moment.
pub(super) struct Instances<T: Template> {
    pub(super) template: T,
    ready: Mutex<Vec<Ready<T::Guest>>>,
    /// The most that stand ready.
    limit: usize,
    /// The most events that one instance has.
    reuse: u32,
}

struct Ready<G> {
    place: Place<G>,
    /// The thread that used it last, or made it, whose processor may still have its memory at hand.
    thread: ThreadId,
    /// Room in the runtime beside that of the events under way.
    _reserved: Reserved,
}

impl<T: Template> Instances<T> {
    /// No instances yet. Each that is made has `reuse` events at most, on a machine with this many `cores`.
    pub(super) fn new(template: T, reuse: u32, cores: usize) -> Arc<Self> {
        // A thread that uses one up makes another as soon as it has nothing else to do. One that is used again may
        // have waited for something meanwhile, and others beside it.
        let limit = if reuse > 1 { cores.max(REUSED_READY) } else { cores + 1 };
        Arc::new(Self {
            template,
            ready: Mutex::default(),
            limit,
            reuse: reuse.max(1),
        })
    }

    /// A place for an event, with an instance where one stands ready.
    ///
    /// # Errors
    /// If what the guest is granted can't be had any more.
    pub(super) fn place(&self, shared: &Shared, context: &Context) -> Result<Place<T::Guest>, Failure> {
        let ready = self.take_ready();
        let mut place = match ready {
            Some(Ready { place, .. }) if place.folders == shared.grants.folders() => place,
            _ => Place::new(shared, context.id)?,
        };
        place.begin(shared, context);
        Ok(place)
    }

    /// The one that this thread used last, if it stands ready, or else any.
    fn take_ready(&self) -> Option<Ready<T::Guest>> {
        let here = thread::current().id();
        let mut ready = self.ready.lock();
        match ready.iter().rposition(|ready| ready.thread == here) {
            Some(at) => Some(ready.remove(at)),
            None => ready.pop(),
        }
    }

    /// Takes back the place of an event that ended well; says what was wrong with one that did not.
    ///
    /// # Errors
    /// As [`failure::ended`].
    pub(super) fn settle(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        place: Place<T::Guest>,
        handled: wasmtime::Result<()>,
    ) -> Result<(), Failure> {
        match handled {
            Ok(()) => {
                self.give_back(shared, place, 1);
                Ok(())
            }
            Err(error) => place.ended(shared, &error),
        }
    }

    /// Whether an instance stands ready.
    pub(super) fn any_ready(&self) -> bool {
        !self.ready.lock().is_empty()
    }

    /// Events that the instance in `place` may have yet.
    pub(super) fn left(&self, place: &Place<T::Guest>) -> u32 {
        self.reuse.saturating_sub(place.events)
    }

    /// Takes back the place of `events` that ended well.
    pub(super) fn give_back(self: &Arc<Self>, shared: &Arc<Shared>, mut place: Place<T::Guest>, events: u32) {
        place.events = place.events.saturating_add(events);
        let is_used_up = place.events >= self.reuse || place.is_crowded();
        if !is_used_up && !shared.is_stopped() {
            if let Some(reserved) = shared.runtime.reserve(shared.memories) {
                self.keep(shared, place, reserved);
            }
            return;
        }
        self.make_ahead(shared, Some(place));
    }

    /// Makes an instance for the next event, once everybody who has something to do now has done it. What is `used`
    /// up is dropped then, too.
    pub(super) fn make_ahead(self: &Arc<Self>, shared: &Arc<Shared>, used: Option<Place<T::Guest>>) {
        let Ok(tokio) = tokio::runtime::Handle::try_current() else {
            return;
        };
        // For what is used up, as long as it is there, and then for what is made.
        let Some(reserved) = shared.runtime.reserve(shared.memories) else {
            return;
        };
        let (instances, shared) = (self.clone(), shared.clone());
        tokio.spawn(async move {
            drop(used);
            if instances.ready.lock().len() >= instances.limit || shared.is_stopped() {
                return;
            }
            // What goes wrong here goes wrong again for the next event, which then is told of it.
            let Ok(mut place) = Place::new(&shared, EventId::NONE) else {
                return;
            };
            let _watch = shared.runtime.watch();
            let made = tokio::time::timeout(shared.timeout, instances.template.instantiate(&mut place.store)).await;
            if let Ok(Ok(guest)) = made {
                place.guest = Some(guest);
                instances.keep(&shared, place, reserved);
            }
        });
    }

    /// Has `place` stand ready, if there is room for it.
    fn keep(&self, shared: &Shared, place: Place<T::Guest>, reserved: Reserved) {
        if !shared.runtime.may_stand_ready(place.store.data().limits.held()) {
            return;
        }
        let mut ready = self.ready.lock();
        if ready.len() < self.limit {
            ready.push(Ready {
                place,
                thread: thread::current().id(),
                _reserved: reserved,
            });
        }
    }

    /// Drops those that stand ready.
    pub(super) fn clear(&self) {
        let ready = std::mem::take(&mut *self.ready.lock());
        drop(ready);
    }
}
