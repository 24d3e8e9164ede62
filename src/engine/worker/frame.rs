//! The channel's bytes: frames on a socketpair between this process and a worker.
//!
//! ```text
//! u32 payload length | u32 stream | u8 kind | payload          (little endian)
//! ```
//!
//! Stream 0 is the worker itself; each event has a stream of its own. What stands in the payload of a head is the
//! language's own (what its interpreter decodes fastest); everything else is the same for all.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Length of what stands before each payload, in bytes.
pub const HEADER: usize = 9;

/// The largest payload that either side may send, in bytes: the answer to a message, which goes as a whole. Bodies travel
/// in pieces of [`PIECE`] at most; a head or a traceback beyond this is a worker gone mad.
pub const PAYLOAD_LIMIT: usize = 16 << 20;

/// The largest piece of a body that is sent as one frame, in bytes.
pub const PIECE: usize = 128 << 10;

/// How many bytes of a body may be on their way before the other side has said that it took them.
pub const WINDOW: usize = 512 << 10;

/// So many bytes are taken before the other side is told of it: few frames, and never so many that it has to wait.
pub const TELL: usize = WINDOW / 4;

/// The stream that means the worker itself.
pub const WORKER: u32 = 0;

/// What a frame says. The numbers are known to the workers, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    // To the worker.
    /// Import the program. JSON.
    Load = 1,
    /// An HTTP request; its body, where it is whole, is in the head.
    Request = 2,
    /// A network message.
    Message = 3,
    /// Nobody waits for this event's reply any more. Empty.
    Cancel = 4,
    /// End: let the program shut down, then exit. How long its events may go on, in milliseconds: u32, little endian.
    Stop = 5,
    /// Say that you are there. Empty.
    Ping = 6,
    /// A client asks for a WebSocket. As [`Kind::Request`], with no body.
    Connect = 7,

    // Both ways.
    /// A piece of a body.
    Piece = 16,
    /// The body's end. Empty, or from the worker a head whose headers are the trailers.
    End = 17,
    /// So many bytes of the body have been taken: u32, little endian.
    Taken = 18,
    /// The last or only piece of a WebSocket's text message; the others were [`Kind::Piece`]s.
    Text = 19,
    /// The same of a binary message.
    Binary = 20,
    /// A WebSocket's end: u16 code, little endian, and the reason. Empty where no code was given.
    Close = 21,

    // From the worker.
    /// The program can take events. JSON: what was found.
    Ready = 32,
    /// The program can't be started. JSON: [`super::Fault`].
    Refused = 33,
    /// A reply with its whole body.
    Reply = 34,
    /// A reply's head; pieces follow.
    Head = 35,
    /// The answer to a message. The payload is the value.
    Value = 36,
    /// The program failed on this event. JSON: [`super::Fault`].
    Failed = 37,
    /// I am here. Empty.
    Pong = 38,
    /// The program accepts the WebSocket: a head whose headers belong into the handshake's.
    Accept = 39,
}

/// One frame as it was read.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    pub stream: u32,
    pub payload: Bytes,
}

/// Why what a worker sends is no frame. After this nothing more can be made of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {length} bytes, where {PAYLOAD_LIMIT} is the limit")]
    TooLarge { length: usize },
    #[error("a frame of the unknown kind {kind}")]
    Kind { kind: u8 },
}

impl Kind {
    fn from_byte(kind: u8) -> Option<Self> {
        [
            Self::Load,
            Self::Request,
            Self::Message,
            Self::Cancel,
            Self::Stop,
            Self::Ping,
            Self::Connect,
            Self::Piece,
            Self::End,
            Self::Taken,
            Self::Text,
            Self::Binary,
            Self::Close,
            Self::Ready,
            Self::Refused,
            Self::Reply,
            Self::Head,
            Self::Value,
            Self::Failed,
            Self::Pong,
            Self::Accept,
        ]
        .into_iter()
        .find(|known| *known as u8 == kind)
    }
}

/// Appends a frame whose payload `write` appends.
pub fn put_with(out: &mut BytesMut, kind: Kind, stream: u32, write: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32_le(0);
    out.put_u32_le(stream);
    out.put_u8(kind as u8);
    write(out);
    let length = (out.len() - start - HEADER) as u32;
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// Appends a frame.
pub fn put(out: &mut BytesMut, kind: Kind, stream: u32, payload: &[u8]) {
    put_with(out, kind, stream, |out| out.put_slice(payload));
}

/// Takes the next frame off `buffer`, once it has all arrived.
///
/// # Errors
/// [`FrameError`] where the bytes can't be a frame, before its payload is waited for.
pub fn take(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    if buffer.len() < HEADER {
        return Ok(None);
    }
    let mut header = &buffer[..HEADER];
    let (length, stream, kind) = (header.get_u32_le() as usize, header.get_u32_le(), header.get_u8());
    if length > PAYLOAD_LIMIT {
        return Err(FrameError::TooLarge { length });
    }
    let kind = Kind::from_byte(kind).ok_or(FrameError::Kind { kind })?;
    if buffer.len() < HEADER + length {
        buffer.reserve(HEADER + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(HEADER);
    let payload = buffer.split_to(length).freeze();
    Ok(Some(Frame { kind, stream, payload }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let mut bytes = BytesMut::new();
        put(&mut bytes, Kind::Request, 7, b"head");
        put(&mut bytes, Kind::End, 7, b"");
        let mut buffer = BytesMut::new();
        let mut frames = Vec::new();
        for byte in bytes {
            buffer.put_u8(byte);
            while let Some(frame) = take(&mut buffer).unwrap() {
                frames.push((frame.kind, frame.stream, frame.payload));
            }
        }
        let expected = [(Kind::Request, 7, "head".into()), (Kind::End, 7, Bytes::new())];
        assert_eq!(frames, expected);
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_frame_that_can_not_be_is_told_by_its_header() {
        let mut huge = BytesMut::from(&b"\xff\xff\xff\xff\x01\0\0\0\x10"[..]);
        assert_eq!(take(&mut huge), Err(FrameError::TooLarge { length: 0xffff_ffff }));
        let mut unknown = BytesMut::from(&b"\x01\0\0\0\x01\0\0\0\xee"[..]);
        assert_eq!(take(&mut unknown), Err(FrameError::Kind { kind: 0xee }));
    }
}
