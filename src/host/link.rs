//! The host's part of the protocol, over the Unix socket by which a VMM offers the guest's vsock: waits for the ready
//! signal, configures, hands over events, halts.
//!
//! ```text
//! connect V -> "CONNECT 52\n" -> "OK <port>\n" -> one exchange -> close        (each exchange on its own connection)
//! guest -> V_52: the ready signal
//! ```
//!
//! A guest that runs without a machine can stand behind such a socket as well: nothing here knows of VMMs.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::wire::{
    CONFIGURATION_ANSWER_LIMIT, Configuration, ConfigurationAnswer, EventAnswer, HALT, PORT, STOPPED, Scanner, Scope,
};

/// How long the VMM and the guest may take to accept a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// How long the host waits for the answer to a configuration.
pub const CONFIGURE_DEADLINE: Duration = Duration::from_secs(60);

/// How long the host gives the guest to end, from the command to its last word.
pub const HALT_DEADLINE: Duration = Duration::from_secs(5);

/// The longest answer to an event that is believed to be one, in bytes.
const ANSWER_LIMIT: usize = 256 << 20;

/// The longest line with which a VMM answers `CONNECT`, in bytes.
const OK_LIMIT: usize = 64;

/// The longest ready signal, in bytes.
const READY_LIMIT: usize = 4096;

/// Where a guest can be reached. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Link {
    socket: PathBuf,
}

/// Takes the ready signals of a guest.
#[derive(Debug)]
pub struct Ready {
    listener: UnixListener,
}

/// What went wrong between host and guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't listen on {}: {source}", socket.display())]
    Listen { socket: PathBuf, source: io::Error },
    #[error("can't connect to the machine's socket {}: {source}", socket.display())]
    Connect { socket: PathBuf, source: io::Error },
    #[error("nobody listens on port {PORT} of the machine{}", answered(answer))]
    Refused { answer: String },
    #[error("the connection to the machine broke while {act}: {source}")]
    Broken { act: &'static str, source: io::Error },
    #[error("the machine took longer than {} s for {act}", after.as_secs_f32())]
    Late { act: &'static str, after: Duration },
    #[error("the machine closed the connection without an answer to {act}")]
    Silent { act: &'static str },
    #[error("the machine's answer to {act} is larger than {limit} bytes")]
    TooLarge { act: &'static str, limit: usize },
    #[error("the machine's answer to {act} is not as the protocol has it: {source}")]
    Answer {
        act: &'static str,
        source: rmp_serde::decode::Error,
    },
    #[error("can't encode {act}: {source}")]
    Encode {
        act: &'static str,
        source: rmp_serde::encode::Error,
    },
}

fn answered(answer: &str) -> String {
    match answer {
        "" => String::new(),
        answer => format!("; the VMM answered {answer:?}"),
    }
}

impl Ready {
    /// Listens on `socket`, where the VMM will connect for the guest. To be done before the guest runs.
    ///
    /// # Errors
    /// [`Error::Listen`].
    pub fn bind(socket: &Path) -> Result<Self, Error> {
        let listener = UnixListener::bind(socket).map_err(|source| Error::Listen {
            socket: socket.to_owned(),
            source,
        })?;
        Ok(Self { listener })
    }

    /// Waits for the next signal and returns the version of the protocol that the guest speaks. A guest that sends
    /// nothing is one of version 1.0.0.
    ///
    /// # Errors
    /// Those of the connection, and what is no signal.
    pub async fn signal(&self) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Signal {
            version: String,
        }
        const ACT: &str = "the ready signal";
        let broken = |source| Error::Broken {
            act: "it sent the ready signal",
            source,
        };
        let (mut stream, _) = self.listener.accept().await.map_err(broken)?;
        let bytes = read_to_end(&mut stream, READY_LIMIT, ACT).await?;
        if bytes.is_empty() {
            return Ok("1.0.0".to_owned());
        }
        let signal: Signal = rmp_serde::from_slice(&bytes).map_err(|source| Error::Answer { act: ACT, source })?;
        Ok(signal.version)
    }
}

impl Link {
    /// To the guest behind the VMM's `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Configures the guest.
    ///
    /// # Errors
    /// Those of the connection. That the guest fails to start the program is an answer.
    pub async fn configure(&self, configuration: &Configuration) -> Result<ConfigurationAnswer, Error> {
        const ACT: &str = "the configuration";
        let payload = configuration
            .encode()
            .map_err(|source| Error::Encode { act: ACT, source })?;
        let mut message = format!("{}\n", payload.len()).into_bytes();
        message.extend(payload);
        let exchange = async {
            let mut stream = self.send(&message, ACT).await?;
            let answer = read_value(&mut stream, CONFIGURATION_ANSWER_LIMIT, ACT).await?;
            ConfigurationAnswer::decode(&answer).map_err(|source| Error::Answer { act: ACT, source })
        };
        within(CONFIGURE_DEADLINE, ACT, exchange).await
    }

    /// Hands over one event and waits for the answer, and for what the program has left in /data (a zip, or nothing), for
    /// `patience` at most.
    ///
    /// # Errors
    /// Those of the connection. A program's failure is an answer.
    pub async fn event(&self, scope: &Scope, patience: Duration) -> Result<(EventAnswer, Bytes), Error> {
        const ACT: &str = "an event";
        let message = scope.encode().map_err(|source| Error::Encode { act: ACT, source })?;
        let exchange = async {
            let mut stream = self.send(&message, ACT).await?;
            let answer = read_to_end(&mut stream, ANSWER_LIMIT, ACT).await?;
            if answer.is_empty() {
                return Err(Error::Silent { act: ACT });
            }
            EventAnswer::decode_with_data(&answer).map_err(|source| Error::Answer { act: ACT, source })
        };
        within(patience, ACT, exchange).await
    }

    /// Tells the guest to end and waits for its last word, after which it unmounts and reboots.
    ///
    /// # Errors
    /// Those of the connection, and [`Error::Late`] after [`HALT_DEADLINE`].
    pub async fn halt(&self) -> Result<(), Error> {
        const ACT: &str = "halt";
        let exchange = async {
            let mut stream = self.send(HALT, ACT).await?;
            let mut words = Vec::new();
            // Closing upon the last word, not upon the guest's closing: it waits for that before it ends.
            while !words.ends_with(STOPPED[1]) && words.len() < READY_LIMIT {
                let read = stream.read_buf(&mut words).await;
                if read.map_err(|source| Error::Broken { act: ACT, source })? == 0 {
                    return Err(Error::Silent { act: ACT });
                }
            }
            Ok(())
        };
        within(HALT_DEADLINE, ACT, exchange).await
    }

    /// A connection to the guest's port with `message` on its way.
    async fn send(&self, message: &[u8], act: &'static str) -> Result<UnixStream, Error> {
        let mut stream = within(CONNECT_DEADLINE, "a new connection", self.connect()).await?;
        stream
            .write_all(message)
            .await
            .map_err(|source| Error::Broken { act, source })?;
        Ok(stream)
    }

    async fn connect(&self) -> Result<UnixStream, Error> {
        let mut stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| Error::Connect {
                socket: self.socket.clone(),
                source,
            })?;
        let act = "the VMM connected to it";
        stream
            .write_all(format!("CONNECT {PORT}\n").as_bytes())
            .await
            .map_err(|source| Error::Broken { act, source })?;
        // Nothing follows the line before we have spoken, so that a read can't take too much.
        let mut line = Vec::new();
        while !line.ends_with(b"\n") && line.len() < OK_LIMIT {
            let read = stream.read_buf(&mut line).await;
            if read.map_err(|source| Error::Broken { act, source })? == 0 {
                break;
            }
        }
        if line.starts_with(b"OK ") && line.ends_with(b"\n") {
            return Ok(stream);
        }
        Err(Error::Refused {
            answer: String::from_utf8_lossy(&line).trim_end().to_owned(),
        })
    }
}

async fn within<T>(
    after: Duration,
    act: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    timeout(after, work).await.unwrap_or(Err(Error::Late { act, after }))
}

async fn read_to_end(stream: impl AsyncRead + Unpin, limit: usize, act: &'static str) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    stream
        .take(limit as u64 + 1)
        .read_to_end(&mut bytes)
        .await
        .map_err(|source| Error::Broken { act, source })?;
    match bytes.len() > limit {
        true => Err(Error::TooLarge { act, limit }),
        false => Ok(bytes),
    }
}

/// Reads to the end of one msgpack value: a guest need not close after its answer to a configuration.
async fn read_value(stream: &mut UnixStream, limit: usize, act: &'static str) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(4096);
    let mut scanner = Scanner::new(limit);
    loop {
        let read = stream.read_buf(&mut bytes).await;
        if read.map_err(|source| Error::Broken { act, source })? == 0 {
            return Err(Error::Silent { act });
        }
        match scanner.scan(&bytes) {
            Ok(None) => {}
            // What the bytes are wrong in, their decoder says better.
            Ok(Some(_)) | Err(crate::wire::ScanError::Reserved { .. }) => return Ok(bytes),
            Err(crate::wire::ScanError::TooLarge { limit }) => return Err(Error::TooLarge { act, limit }),
        }
    }
}
