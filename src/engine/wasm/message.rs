//! Network messages for components that export `polyinit:event/message` (wasm-examples/wit says what that is).

use std::sync::Arc;

use wasmtime::Store;
use wasmtime::component::{Component, ComponentExportIndex, ComponentType, InstancePre, Lower, TypedFunc};

use super::host::ComponentHost;
use super::instances::{Instances, Template};
use super::run::Run;
use super::{Shared, failure};
use crate::event::{Context, Failure, FailureKind, Reply};

/// The interface, with the version that is spoken here.
pub(super) const INTERFACE: &str = "polyinit:event/message@0.1.0";
/// The part of its name that says what it is, whichever version.
pub(super) const INTERFACE_NAME: &str = "polyinit:event/message";
const FUNCTION: &str = "handle";

/// `record message`.
#[derive(ComponentType, Lower)]
#[component(record)]
struct WitMessage {
    body: String,
}

type Handle = TypedFunc<(WitMessage,), (Result<Vec<u8>, String>,)>;

/// A component with the interface, linked already.
pub(super) struct MessagePre {
    pre: InstancePre<ComponentHost>,
    handle: ComponentExportIndex,
}

impl MessagePre {
    /// # Errors
    /// What the component exports under the interface's name in place of its function.
    pub(super) fn new(pre: InstancePre<ComponentHost>, component: &Component) -> wasmtime::Result<Self> {
        let handle = component
            .get_export_index(None, INTERFACE)
            .and_then(|interface| component.get_export_index(Some(&interface), FUNCTION))
            .ok_or_else(|| wasmtime::format_err!("`{INTERFACE}` has no function `{FUNCTION}`"))?;
        Ok(Self { pre, handle })
    }
}

/// An instance of such a component.
pub(super) struct MessageGuest(Handle);

impl Template for MessagePre {
    type Guest = MessageGuest;

    async fn instantiate(&self, store: &mut Store<ComponentHost>) -> wasmtime::Result<MessageGuest> {
        let instance = self.pre.instantiate_async(&mut *store).await?;
        let handle = instance.get_typed_func(&mut *store, self.handle)?;
        Ok(MessageGuest(handle))
    }
}

/// Gives a message to an instance; what its function returns is the answer.
pub(super) async fn message(
    shared: &Arc<Shared>,
    instances: &Arc<Instances<MessagePre>>,
    body: String,
    context: &Context,
) -> Result<Reply, Failure> {
    let terms = shared.terms(context).await?;
    let mut place = instances.place(shared, context)?;
    let log = place.log.clone();
    let (answer_sender, mut answer) = tokio::sync::oneshot::channel();
    let (shared, instances) = (shared.clone(), instances.clone());
    let body_limit = shared.body_limit;
    let guest = Box::pin(async move {
        let handled = async {
            let (guest, store) = place.guest(&instances.template).await?;
            let (answer,) = guest.0.call_async(store, (WitMessage { body },)).await?;
            wasmtime::error::Ok(answer)
        };
        // Nobody to take it: the run was given up.
        let handled = handled.await.map(|answer| drop(answer_sender.send(answer)));
        instances.settle(&shared, place, handled)
    });
    Run::new(terms, guest).await?;
    match answer.try_recv() {
        Ok(Ok(answer)) if answer.len() > body_limit => Err(Failure::new(
            FailureKind::Program,
            format!("the guest's answer is larger than the limit of {body_limit} bytes"),
        )),
        Ok(Ok(answer)) => Ok(Reply::Value(answer.into())),
        Ok(Err(error)) => Err(failure::broke_interface(
            format!("the guest could not handle the message: {error}"),
            &log,
        )),
        Err(_) => Err(failure::broke_interface("the guest exited without an answer", &log)),
    }
}
