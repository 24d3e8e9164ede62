//! Bytes of a connection -> one message of the host, however the bytes are cut into reads.

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::wire::{HALT, ScanError, Scanner};

/// How much and how long is read for one message.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The largest event, and the largest reply, in bytes.
    pub event: usize,
    /// The largest configuration, in bytes: code and input data of 10 MB each, and what goes with them.
    pub configuration: usize,
    /// The longest wait for more bytes of a message that has begun.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            event: 16 << 20,
            configuration: 32 << 20,
            patience: Duration::from_secs(30),
        }
    }
}

/// What the host may send.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    /// Without its length line.
    Configuration(Bytes),
    Event(Bytes),
    Halt,
    Shell(String),
}

/// Why there is no message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    #[error("the connection was closed before anything was sent")]
    Nothing,
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("nothing more came for {} s", .0.as_secs_f64())]
    Silence(Duration),
    #[error("the message begins with the byte {0:#04x}, with which none of the protocol does")]
    Start(u8),
    #[error("the event was cut short after {have} bytes")]
    EventEnd { have: usize },
    #[error("the configuration was cut short: {have} of {length} bytes came")]
    ConfigurationEnd { have: usize, length: usize },
    #[error("the configuration's length line is {line:?}, which is no number from 1 to {limit}")]
    Length { line: String, limit: usize },
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error("the command {0:?} is not known")]
    Command(String),
}

/// The longest length line that is waited for, in bytes.
const LENGTH_LINE: usize = 20;

/// The longest command line of the shell, in bytes.
const SHELL_LINE: usize = 64 << 10;

/// The least room that is made for a read, in bytes.
const ROOM: usize = 4 << 10;

/// Reads the message that a connection carries.
///
/// # Errors
/// [`MessageError`], which says what to answer.
pub async fn read(connection: &mut (impl AsyncRead + Unpin), limits: Limits) -> Result<Message, MessageError> {
    let mut reader = Reader {
        connection,
        buffer: BytesMut::new(),
        patience: limits.patience,
    };
    if !reader.more(ROOM).await? {
        return Err(MessageError::Nothing);
    }
    match reader.buffer[0] {
        b'0'..=b'9' => reader.configuration(limits.configuration).await,
        0x80..=0x8f | 0xde | 0xdf => reader.event(limits.event).await,
        b'h' => reader.halt().await,
        b'!' => reader.shell().await,
        other => Err(MessageError::Start(other)),
    }
}

struct Reader<'a, C> {
    connection: &'a mut C,
    buffer: BytesMut,
    patience: Duration,
}

impl<C: AsyncRead + Unpin> Reader<'_, C> {
    /// Reads once, with room for `room` bytes. False at the end of what the host sends.
    async fn more(&mut self, room: usize) -> Result<bool, MessageError> {
        self.buffer.reserve(room.max(ROOM));
        let read = self.connection.read_buf(&mut self.buffer);
        match tokio::time::timeout(self.patience, read).await {
            Ok(count) => Ok(count? > 0),
            Err(_) => Err(MessageError::Silence(self.patience)),
        }
    }

    async fn configuration(mut self, limit: usize) -> Result<Message, MessageError> {
        let end = loop {
            if let Some(end) = self.buffer.iter().take(LENGTH_LINE).position(|byte| *byte == b'\n') {
                break end;
            }
            if self.buffer.len() >= LENGTH_LINE || !self.more(ROOM).await? {
                break self.buffer.len().min(LENGTH_LINE);
            }
        };
        let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        let length = match line.parse() {
            Ok(length) if (1..=limit).contains(&length) => length,
            _ => return Err(MessageError::Length { line, limit }),
        };
        self.buffer.advance((end + 1).min(self.buffer.len()));
        while self.buffer.len() < length {
            if !self.more(length - self.buffer.len()).await? {
                let have = self.buffer.len();
                return Err(MessageError::ConfigurationEnd { have, length });
            }
        }
        Ok(Message::Configuration(self.buffer.split_to(length).freeze()))
    }

    async fn event(mut self, limit: usize) -> Result<Message, MessageError> {
        let mut scanner = Scanner::new(limit);
        loop {
            if let Some(length) = scanner.scan(&self.buffer)? {
                return Ok(Message::Event(self.buffer.split_to(length).freeze()));
            }
            let have = self.buffer.len();
            if !self.more(scanner.wanted(have)).await? {
                return Err(MessageError::EventEnd { have });
            }
        }
    }

    async fn halt(mut self) -> Result<Message, MessageError> {
        while HALT.starts_with(&self.buffer) && self.buffer.len() < HALT.len() {
            if !self.more(ROOM).await? {
                break;
            }
        }
        if self.buffer.starts_with(HALT) {
            return Ok(Message::Halt);
        }
        let start = &self.buffer[..self.buffer.len().min(LENGTH_LINE)];
        Err(MessageError::Command(String::from_utf8_lossy(start).into_owned()))
    }

    /// The command line has no end of its own, and the host does not close its side: what one write sent is what there
    /// is. A socket gives that in one read where it fits the socket's buffer.
    async fn shell(self) -> Result<Message, MessageError> {
        let line = &self.buffer[1..self.buffer.len().min(SHELL_LINE)];
        Ok(Message::Shell(String::from_utf8_lossy(line).into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    /// What is read when `bytes` come in pieces of `size`, and then the end.
    async fn read_in_pieces(bytes: &[u8], size: usize, limits: Limits) -> Result<Message, MessageError> {
        let (mut theirs, mut ours) = tokio::io::duplex(64 << 10);
        let send = async {
            for piece in bytes.chunks(size) {
                if theirs.write_all(piece).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(theirs);
        };
        // One that is told by its start is answered before the rest is sent: then the sender is left alone.
        let read = async {
            let message = read(&mut ours, limits).await;
            drop(ours);
            message
        };
        tokio::join!(send, read).1
    }

    #[tokio::test]
    async fn reads_each_kind_however_it_is_cut() {
        for size in [1, 3, 1000] {
            let read = |bytes: &'static [u8]| read_in_pieces(bytes, size, Limits::default());
            assert_eq!(
                read(b"3\n\x81\x01\x02").await.unwrap(),
                Message::Configuration("\u{1}".into()).with(b"\x81\x01\x02")
            );
            assert_eq!(
                read(b"\x81\xa1a\xa1bgarbage").await.unwrap(),
                Message::Event(Bytes::from_static(b"\x81\xa1a\xa1b"))
            );
            assert_eq!(read(b"halt").await.unwrap(), Message::Halt);
        }
        let shell = read_in_pieces(b"!echo hi", 100, Limits::default()).await.unwrap();
        assert_eq!(shell, Message::Shell("echo hi".into()));
    }

    impl Message {
        fn with(self, bytes: &'static [u8]) -> Self {
            Self::Configuration(Bytes::from_static(bytes))
        }
    }

    #[tokio::test]
    async fn says_what_is_no_message() {
        let limits = Limits {
            event: 100,
            configuration: 100,
            patience: Duration::from_secs(5),
        };
        for (bytes, expected) in [
            (&b""[..], "before anything was sent"),
            (b"\xc1\xc1", "0xc1"),
            (b"\x93\x01", "0x93"),
            (b"101\n", "no number from 1 to 100"),
            (b"12x4\n{}", "\"12x4\""),
            (b"0\n", "\"0\""),
            (b"999999999999999999999999", "no number"),
            (b"10\nabc", "3 of 10 bytes"),
            (b"\x81\xa5sco", "after 5 bytes"),
            (b"\x81\xc6\xff\xff\xff\xff", "limit of 100 bytes"),
            (b"hello", "\"hello\""),
        ] {
            for size in [1, 100] {
                let message = read_in_pieces(bytes, size, limits).await.unwrap_err().to_string();
                // A command is told by as much as has come.
                let told = message.contains(expected) || (size == 1 && message.contains("the command \"he"));
                assert!(told, "{bytes:?}: {message}");
            }
        }
    }

    #[tokio::test]
    async fn waits_for_the_rest_no_longer_than_it_has_patience() {
        let (mut theirs, mut ours) = tokio::io::duplex(64);
        theirs.write_all(b"\x81").await.unwrap();
        let limits = Limits {
            patience: Duration::from_millis(10),
            ..Limits::default()
        };
        let error = read(&mut ours, limits).await.unwrap_err();
        assert_eq!(error.to_string(), "nothing more came for 0.01 s");
    }
}
