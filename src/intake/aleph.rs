//! The aleph.im host's intake: its protocol on vsock port 52, or on a Unix socket that speaks as the VMM does.
//!
//! ```text
//! connection -> first byte -> configuration | event | halt | shell -> Guest -> answer, close
//! ```
//!
//! Every connection carries one message and its answer. Bad ones are answered in the form that the host expects, and
//! the next connection is served.

mod listener;
mod message;
mod translate;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::http::{Around, Asked, give_to};
use super::{ACCEPT_PAUSE, Handler};
use crate::event::{Event, Failure, FailureKind, Input, Reply};
use crate::wire::{Configuration, ConfigurationAnswer, EventAnswer, STOPPED};

use listener::Incoming;
pub use listener::Listener;
pub use message::{Limits, Message, MessageError};

/// How long the rest of a refused message is read, so that the answer is not lost in a reset.
const DRAIN: Duration = Duration::from_secs(1);

/// How long the host may take to close its side once it has been told that the machine is done.
const LAST_WORD: Duration = Duration::from_millis(250);

/// How long events under way may take once the host says halt, of the 5 s that it gives for everything.
const IN_FLIGHT_GRACE: Duration = Duration::from_millis(2000);

/// What stands behind this intake: the machine and its program.
pub trait Guest: Send + Sync + 'static {
    /// Sets the machine up and starts the program.
    fn configure(&self, configuration: Configuration) -> impl Future<Output = ConfigurationAnswer> + Send;

    /// Gives an event to the program.
    fn handle(&self, event: Event) -> impl Future<Output = Result<Reply, Failure>> + Send;

    /// A zip of the data that the program has left for the host; empty where there is none.
    fn output_data(&self) -> impl Future<Output = Bytes> + Send;

    /// Takes no more events.
    fn close(&self);

    /// Returns when the program has shut down.
    fn halt(&self) -> impl Future<Output = ()> + Send;

    /// Runs a command line and returns its output.
    fn shell(&self, command: String) -> impl Future<Output = Vec<u8>> + Send;
}

/// The intake of one guest.
pub struct Intake<G> {
    guest: G,
    limits: Limits,
    /// The middleware that the program asks for.
    around: Around,
    in_flight: TaskTracker,
    /// The host has said halt and has been told that it is done.
    halted: CancellationToken,
}

impl<G: Guest> Intake<G> {
    pub fn new(guest: G, limits: Limits, around: Around) -> Arc<Self> {
        Arc::new(Self {
            guest,
            limits,
            around,
            in_flight: TaskTracker::new(),
            halted: CancellationToken::new(),
        })
    }

    /// For other intakes, whose events go to the same guest and are waited for like this one's.
    pub fn handler(self: &Arc<Self>) -> Handler {
        let intake = self.clone();
        Arc::new(move |event| {
            let intake = intake.clone();
            Box::pin(async move { intake.in_flight.track_future(intake.guest.handle(event)).await })
        })
    }

    /// Serves connections until the host says halt. When this returns, the host has been told that it is done.
    pub async fn serve(self: Arc<Self>, listener: Listener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.halted.cancelled() => return,
            };
            match accepted {
                Ok(incoming) => drop(tokio::spawn(self.clone().serve_incoming(incoming))),
                Err(error) => {
                    tracing::warn!("can't accept a connection of the host: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Takes no more events, lets those under way finish, and ends the program.
    pub async fn halt(&self) {
        self.guest.close();
        self.in_flight.close();
        if tokio::time::timeout(IN_FLIGHT_GRACE, self.in_flight.wait())
            .await
            .is_err()
        {
            tracing::warn!("{} events are cut off by the halt", self.in_flight.len());
        }
        self.guest.halt().await;
    }

    async fn serve_incoming(self: Arc<Self>, incoming: Incoming) {
        let served = async {
            let connection = incoming.connect(self.limits.patience).await?;
            self.serve_connection(connection).await
        };
        if let Err(error) = served.await {
            // Nobody is there any more to be told.
            tracing::debug!("a connection of the host ended: {error}");
        }
    }

    async fn serve_connection(&self, mut connection: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        match message::read(&mut connection, self.limits).await {
            Ok(Message::Configuration(bytes)) => {
                let answer = match Configuration::decode(&bytes) {
                    Ok(configuration) => self.guest.configure(configuration).await,
                    Err(error) => refused(&format!("the configuration is not as the protocol has it: {error}")),
                };
                finish(connection, &answer.encode()).await
            }
            Ok(Message::Event(bytes)) => {
                let answered = async {
                    let answer = self.event(&bytes).await;
                    finish(connection, &answer).await
                };
                self.in_flight.track_future(answered).await
            }
            Ok(Message::Halt) => {
                self.halt().await;
                // The machine ends whether or not anybody is there to hear of it.
                let told = tell_of_end(connection).await;
                self.halted.cancel();
                told
            }
            Ok(Message::Shell(command)) => {
                let output = self.guest.shell(command).await;
                finish(connection, &output).await
            }
            // It connected and went away: a probe.
            Err(MessageError::Nothing) => Ok(()),
            Err(MessageError::Io(error)) => Err(error),
            Err(error) => {
                let answer = match error {
                    MessageError::Length { .. } | MessageError::ConfigurationEnd { .. } => {
                        refused(&error.to_string()).encode()
                    }
                    _ => failed(Failure::new(FailureKind::BadEvent, error.to_string())).encode(b""),
                };
                connection.write_all(&answer).await?;
                connection.shutdown().await?;
                let _ = tokio::time::timeout(DRAIN, tokio::io::copy(&mut connection, &mut tokio::io::sink())).await;
                Ok(())
            }
        }
    }

    /// The encoded answer to an event.
    async fn event(&self, bytes: &Bytes) -> Vec<u8> {
        let event = match translate::event(bytes) {
            Ok(event) => event,
            Err(failure) => return failed(failure).encode(b""),
        };
        let id = event.context.id;
        let reply = match self.handle(event).await {
            Ok(reply) => translate::answer(reply, self.limits.event).await,
            Err(failure) => Err(failure),
        };
        match reply {
            Ok(answer) => answer.encode(&self.guest.output_data().await),
            Err(failure) => {
                tracing::info!(event = %id, "event failed: {failure}");
                failed(failure).encode(b"")
            }
        }
    }

    /// Gives an event to the guest, through the middleware that its program asks for.
    async fn handle(&self, event: Event) -> Result<Reply, Failure> {
        let asked = self.around.now();
        let (middleware, context, request) = match (asked.as_deref().and_then(Asked::middleware), event) {
            (
                Some(middleware),
                Event {
                    context,
                    input: Input::Http(request),
                },
            ) => (middleware, context, request),
            (_, event) => return self.guest.handle(event).await,
        };
        let id = context.id;
        let given = |request| give_to(request, context, |event| self.guest.handle(event), false);
        let mut response = middleware.around(request, id, None, given).await;
        // The host has a form of its own for failures.
        match response.extensions_mut().remove::<Failure>() {
            Some(failure) => Err(failure),
            None => Ok(Reply::Http(response)),
        }
    }
}

/// The host shows a failure's traceback: so there always is one.
fn failed(failure: Failure) -> EventAnswer {
    EventAnswer::Failure {
        traceback: failure.traceback.unwrap_or_else(|| failure.message.clone()),
        error: failure.message,
    }
}

fn refused(error: &str) -> ConfigurationAnswer {
    ConfigurationAnswer::Failure {
        error: error.to_owned(),
        traceback: error.to_owned(),
    }
}

/// Tells the host that the machine is done, and waits for it to close: the VMM ends with the machine, and what it has
/// not passed on by then is lost.
async fn tell_of_end(mut connection: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    for word in STOPPED {
        connection.write_all(word).await?;
    }
    connection.shutdown().await?;
    let mut sink = tokio::io::sink();
    let closed = tokio::io::copy(&mut connection, &mut sink);
    // A host that does not close has had time to read.
    let _ = tokio::time::timeout(LAST_WORD, closed).await;
    Ok(())
}

async fn finish(mut connection: impl AsyncRead + AsyncWrite + Unpin, answer: &[u8]) -> io::Result<()> {
    connection.write_all(answer).await?;
    connection.shutdown().await
}
