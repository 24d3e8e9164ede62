//! The body of a request or a reply: in one piece where it is there already, a stream where it is not.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;

/// Why a body ended before its end.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

type Streaming = Pin<Box<dyn HttpBody<Data = Bytes, Error = BodyError> + Send>>;

/// A body that costs no allocation where it is empty or in one piece.
pub struct Body(Inner);

enum Inner {
    Empty,
    Full(Bytes),
    Stream(Streaming),
}

/// Why [`Body::collect`] gave up.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    #[error("the body is larger than the limit of {limit} bytes")]
    TooLarge { limit: usize },
    #[error("the body broke off: {0}")]
    Broken(#[source] BodyError),
}

impl Body {
    pub const fn empty() -> Self {
        Self(Inner::Empty)
    }

    /// A body that some other type produces piece by piece.
    pub fn stream<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        if body.is_end_stream() {
            return Self::empty();
        }
        Self(Inner::Stream(Box::pin(body.map_err(Into::into))))
    }

    /// The whole body in one piece, if it is one already: nothing is waited for, nothing copied.
    pub fn try_into_bytes(self) -> Result<Bytes, Self> {
        match self.0 {
            Inner::Empty => Ok(Bytes::new()),
            Inner::Full(bytes) => Ok(bytes),
            Inner::Stream(_) => Err(self),
        }
    }

    /// The whole body in one piece, at most `limit` bytes of it. Trailers are dropped.
    ///
    /// # Errors
    /// [`CollectError::TooLarge`] as soon as the limit is passed (or announced to be), [`CollectError::Broken`] if
    /// the producer fails.
    pub async fn collect(self, limit: usize) -> Result<Bytes, CollectError> {
        let too_large = CollectError::TooLarge { limit };
        let mut stream = match self.try_into_bytes() {
            Ok(bytes) if bytes.len() <= limit => return Ok(bytes),
            Ok(_) => return Err(too_large),
            Err(stream) => stream,
        };
        if stream.size_hint().lower() > limit as u64 {
            return Err(too_large);
        }
        let mut first = Bytes::new();
        let mut rest = BytesMut::new();
        while let Some(frame) = stream.frame().await {
            let Ok(data) = frame.map_err(CollectError::Broken)?.into_data() else {
                continue;
            };
            if first.len() + rest.len() + data.len() > limit {
                return Err(too_large);
            }
            if first.is_empty() {
                first = data;
            } else {
                rest.extend_from_slice(&data);
            }
        }
        if rest.is_empty() {
            return Ok(first);
        }
        let mut whole = BytesMut::with_capacity(first.len() + rest.len());
        whole.extend_from_slice(&first);
        whole.extend_from_slice(&rest);
        Ok(whole.freeze())
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            Inner::Empty => Poll::Ready(None),
            Inner::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = Inner::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Inner::Stream(stream) => stream.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Empty => true,
            Inner::Full(_) => false,
            Inner::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Empty => SizeHint::with_exact(0),
            Inner::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Inner::Stream(stream) => stream.size_hint(),
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() {
            Self::empty()
        } else {
            Self(Inner::Full(bytes))
        }
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Inner::Empty => f.write_str("Body(empty)"),
            Inner::Full(bytes) => write!(f, "Body({} bytes)", bytes.len()),
            Inner::Stream(_) => f.write_str("Body(stream)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::StreamBody;

    fn pieces(pieces: &'static [&'static str]) -> Body {
        Body::stream(StreamBody::new(futures_util::stream::iter(pieces.iter().map(
            |piece| Ok::<_, BodyError>(Frame::data(Bytes::from_static(piece.as_bytes()))),
        ))))
    }

    #[tokio::test]
    async fn collects_pieces_in_order() {
        assert_eq!(pieces(&["a", "bc", "d"]).collect(4).await.unwrap(), "abcd");
        assert_eq!(pieces(&["whole"]).collect(5).await.unwrap(), "whole");
        assert_eq!(Body::empty().collect(0).await.unwrap(), "");
    }

    #[tokio::test]
    async fn stops_at_the_limit() {
        for body in [pieces(&["abc", "de"]), Body::from("abcde")] {
            assert!(matches!(
                body.collect(4).await,
                Err(CollectError::TooLarge { limit: 4 })
            ));
        }
    }

    #[tokio::test]
    async fn tells_of_a_body_that_breaks_off() {
        let broken = Body::stream(StreamBody::new(futures_util::stream::iter([
            Ok(Frame::data(Bytes::from_static(b"a"))),
            Err(BodyError::from("gone")),
        ])));
        assert_eq!(
            broken.collect(9).await.unwrap_err().to_string(),
            "the body broke off: gone"
        );
    }
}
