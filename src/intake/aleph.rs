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

use crate::event::{Event, Failure, FailureKind, Reply};
use crate::wire::{Configuration, ConfigurationAnswer, EventAnswer, STOPPED};

pub use listener::Listener;
pub use message::{Limits, Message, MessageError};

/// How long the rest of a message that was refused is read on, so that the answer is not lost in a reset.
const DRAIN: Duration = Duration::from_secs(1);

/// The pause after accept(2) failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What stands behind this intake: the machine and its program.
pub trait Guest: Send + Sync + 'static {
    /// Sets the machine up and starts the program.
    fn configure(&self, configuration: Configuration) -> impl Future<Output = ConfigurationAnswer> + Send;

    /// Gives an event to the program.
    fn handle(&self, event: Event) -> impl Future<Output = Result<Reply, Failure>> + Send;

    /// Takes no more events, and returns when the program has shut down.
    fn halt(&self) -> impl Future<Output = ()> + Send;

    /// Runs a command line and returns its output.
    fn shell(&self, command: String) -> impl Future<Output = Vec<u8>> + Send;
}

/// Serves connections until the host says halt or `shutdown` is asked for. When this returns after a halt, the host
/// has been told.
pub async fn serve<G: Guest>(listener: Listener, guest: Arc<G>, limits: Limits, shutdown: CancellationToken) {
    loop {
        let connection = tokio::select! {
            connection = listener.accept() => connection,
            () = shutdown.cancelled() => return,
        };
        match connection {
            Ok(connection) => {
                let (guest, shutdown) = (guest.clone(), shutdown.clone());
                tokio::spawn(async move {
                    let served = async {
                        let connection = connection.connect(limits.patience).await?;
                        serve_connection(connection, &*guest, limits, &shutdown).await
                    };
                    if let Err(error) = served.await {
                        // Nobody is there any more to be told.
                        tracing::debug!("a connection of the host ended: {error}");
                    }
                });
            }
            Err(error) => {
                tracing::warn!("can't accept a connection of the host: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection<G, C>(
    mut connection: C,
    guest: &G,
    limits: Limits,
    shutdown: &CancellationToken,
) -> io::Result<()>
where
    G: Guest,
    C: AsyncRead + AsyncWrite + Unpin,
{
    match message::read(&mut connection, limits).await {
        Ok(Message::Configuration(bytes)) => {
            let answer = match Configuration::decode(&bytes) {
                Ok(configuration) => guest.configure(configuration).await,
                Err(error) => refused(&format!("the configuration is not as the protocol has it: {error}")),
            };
            finish(connection, &answer.encode()).await
        }
        Ok(Message::Event(bytes)) => {
            let answer = event(guest, &bytes, limits).await;
            finish(connection, &answer.encode()).await
        }
        Ok(Message::Halt) => {
            guest.halt().await;
            for word in STOPPED {
                connection.write_all(word).await?;
            }
            connection.shutdown().await?;
            shutdown.cancel();
            Ok(())
        }
        Ok(Message::Shell(command)) => {
            let output = guest.shell(command).await;
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
                _ => failed(Failure::new(FailureKind::BadEvent, error.to_string())).encode(),
            };
            connection.write_all(&answer).await?;
            connection.shutdown().await?;
            let _ = tokio::time::timeout(DRAIN, tokio::io::copy(&mut connection, &mut tokio::io::sink())).await;
            Ok(())
        }
    }
}

async fn event<G: Guest>(guest: &G, bytes: &Bytes, limits: Limits) -> EventAnswer {
    let event = match translate::event(bytes) {
        Ok(event) => event,
        Err(failure) => return failed(failure),
    };
    let id = event.context.id;
    let reply = match guest.handle(event).await {
        Ok(reply) => translate::answer(reply, limits.event).await,
        Err(failure) => Err(failure),
    };
    reply.unwrap_or_else(|failure| {
        tracing::info!(event = %id, "event failed: {failure}");
        failed(failure)
    })
}

/// What the host shows of a failure is its traceback, so that one there is, always.
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

async fn finish(mut connection: impl AsyncRead + AsyncWrite + Unpin, answer: &[u8]) -> io::Result<()> {
    connection.write_all(answer).await?;
    connection.shutdown().await
}
