//! Components for `wasi:http/service` 0.3, whose `handle` is asynchronous: tasks of the guest go on after it has
//! returned a response, to write the body among others. An instance has many requests in its life, and may have
//! several at once (`sharing` is when).

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, ready};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::header::HOST;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use wasmtime::component::Accessor;
use wasmtime_wasi_http::p3::Request;
use wasmtime_wasi_http::p3::bindings::{Service, ServicePre};
use wasmtime_wasi_http::{Error as HttpError, WasiBody, WasiHttpView as _};

use super::Shared;
use super::exchange;
use super::host::ComponentHost;
use super::instances::Instances;
use super::run::Run;
use super::runtime::Admission;
use super::sharing::{Attendance, Control, Entering, Member, Sharing, Worker};
use crate::event::{Body, Context, Failure, Reply};

/// Tells the guest how the request's body ended.
type Sent = Pin<Box<dyn Future<Output = Result<(), HttpError>> + Send>>;

/// How a program takes requests.
pub(super) struct Handler {
    pub(super) instances: Arc<Instances<ServicePre<ComponentHost>>>,
    sharing: Arc<Sharing>,
}

impl Handler {
    pub(super) fn new(instances: Arc<Instances<ServicePre<ComponentHost>>>) -> Self {
        let sharing = Arc::default();
        Self { instances, sharing }
    }

    /// Gives the event to an instance that has no other, and the `admission` with it.
    fn alone(
        &self,
        shared: &Arc<Shared>,
        context: &Context,
        first: Entering,
        admission: Admission,
    ) -> Result<Attendance, Failure> {
        let mut place = self.instances.place(shared, context)?;
        let (shared, instances, member) = (shared.clone(), self.instances.clone(), first.member.clone());
        // Of fuel there is one tank for an instance, which only one event can have.
        let limit = if shared.fuel.is_some() {
            1
        } else {
            instances.left(&place)
        };
        let interrupted = place.store.data().limits.interrupted().clone();
        let control = Control::new(&member, limit, interrupted, place.logs());
        let guest = Box::pin({
            let (shared, control) = (shared.clone(), control.clone());
            async move {
                let _admission = admission;
                let handled = async {
                    let (guest, store) = place.guest(&instances.template).await?;
                    store
                        .run_concurrent(async |accessor| serve(accessor, guest, &control, first).await)
                        .await?
                };
                match handled.await {
                    Ok(()) => {
                        instances.give_back(&shared, place, control.events());
                        Ok(())
                    }
                    Err(error) => {
                        let ended = place.ended(&shared, &error);
                        control.end(&ended);
                        ended
                    }
                }
            }
        });
        Ok(Worker::alone(shared, self.sharing.clone(), control, member, guest))
    }
}

/// Gives `request` to an instance.
pub(super) async fn http(
    shared: &Arc<Shared>,
    handler: &Handler,
    request: http::Request<Body>,
    context: &Context,
) -> Result<Reply, Failure> {
    let method = request.method().clone();
    let terms = shared.terms_without_place(context)?;
    let member = Member::new(terms.deadline());
    let entering = Entering {
        request: absolute(exchange::request(request, context), context),
        member: member.clone(),
    };
    let ready = handler.instances.any_ready();
    let admission = ready.then(|| shared.runtime.try_admit(shared.memories)).flatten();
    let joined = match &admission {
        // An event of the program's own may be waited for by the very instance that it would join.
        None if context.depth == 0 => handler.sharing.join(entering),
        _ => Err(entering),
    };
    let attendance = match joined {
        Ok(attendance) => attendance,
        Err(entering) => {
            let admission = match admission {
                Some(admission) => admission,
                None => shared.runtime.admit(shared.memories).await?,
            };
            handler.alone(shared, context, entering, admission)?
        }
    };
    let log = attendance.log().clone();
    exchange::reply(&method, Run::shared(terms, attendance), &member.slot, &log).await
}

/// Has the guest handle `first` and what comes in meanwhile, until it has nothing left to do.
async fn serve(
    accessor: &Accessor<ComponentHost>,
    guest: &Service,
    control: &Control,
    first: Entering,
) -> wasmtime::Result<()> {
    let handle = *guest.wasi_http_handler().func_handle().func();
    let mut first = pin!(answer(accessor, guest, first));
    let mut first_answered = false;
    let mut others = None;
    std::future::poll_fn(|cx| {
        loop {
            if !first_answered {
                match first.as_mut().poll(cx) {
                    Poll::Ready(Ok(())) => first_answered = true,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {}
                }
            }
            while let Some(entering) = control.next() {
                accessor.with(|mut store| store.data_mut().share());
                others
                    .get_or_insert_with(FuturesUnordered::new)
                    .push(answer(accessor, guest, entering));
            }
            if let Some(others) = &mut others {
                while let Poll::Ready(Some(answered)) = others.poll_next_unpin(cx) {
                    if let Err(error) = answered {
                        return Poll::Ready(Err(error));
                    }
                }
            }
            control.set_open(accessor.poll_ready_for_concurrent_call(handle, cx).is_ready());
            if !first_answered || others.as_ref().is_some_and(|others| !others.is_empty()) {
                return Poll::Pending;
            }
            ready!(accessor.poll_no_interesting_tasks(cx));
            if control.close() {
                return Poll::Ready(Ok(()));
            }
        }
    })
    .await
}

/// Has the guest answer one request.
async fn answer(accessor: &Accessor<ComponentHost>, guest: &Service, entering: Entering) -> wasmtime::Result<()> {
    let Entering { request, member } = entering;
    let (request, sent) = accessor.with(|mut store| {
        let (request, sent) = Request::from_http(store.data_mut().http().hooks, request);
        (request, Box::pin(sent) as Sent)
    });
    member.answer(match guest.handle(accessor, request).await? {
        Ok(response) => Ok(accessor.with(|store| response.into_http(store, sent))?),
        Err(code) => Err(code.to_string()),
    });
    Ok(())
}

/// Version 0.3 looks for scheme and authority in the URI alone.
fn absolute(mut request: http::Request<WasiBody>, context: &Context) -> http::Request<WasiBody> {
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(if context.scheme == "https" {
        Scheme::HTTPS
    } else {
        Scheme::HTTP
    });
    parts.authority = parts.authority.or_else(|| {
        let host = request.headers().get(HOST)?;
        Authority::try_from(host.as_bytes()).ok()
    });
    parts.authority.get_or_insert(Authority::from_static("localhost"));
    parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    request
}
