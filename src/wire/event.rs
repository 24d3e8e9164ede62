//! An event as it stands on the wire: `{"scope": {...}}`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// What the host asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    Http(HttpScope),
    /// A network message: its JSON text.
    Message(String),
}

/// An HTTP request, whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HttpScope {
    /// Already without percent-encoding where the client's had any.
    pub path: String,
    pub method: String,
    pub query_string: String,
    /// Names in lower case, in the client's order, repeated where they were.
    pub headers: Vec<(Bytes, Bytes)>,
    pub body: Bytes,
}

/// Why a message is no event.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("the event is not as the protocol has it: {0}")]
    Shape(#[from] rmp_serde::decode::Error),
    #[error("the event's scope has the unknown type {0:?}: \"http\" and \"aleph.message\" are known")]
    Type(String),
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    scope: Raw<'a>,
}

/// Everything that any scope has; which keys matter, its type says.
#[derive(Deserialize)]
struct Raw<'a> {
    r#type: &'a str,
    #[serde(default)]
    path: &'a str,
    #[serde(default)]
    method: &'a str,
    #[serde(default, borrow)]
    query_string: &'a serde_bytes::Bytes,
    #[serde(default, borrow)]
    headers: Vec<(&'a serde_bytes::Bytes, &'a serde_bytes::Bytes)>,
    /// `bin` for HTTP, `str` for a message; nil, too, is a body without content.
    #[serde(default, borrow)]
    body: Option<&'a serde_bytes::Bytes>,
}

impl Scope {
    /// Decodes an event. Headers and body are slices of `message`, not copies.
    ///
    /// # Errors
    /// [`DecodeError`] where the map is not as the protocol has it.
    pub fn decode(message: &Bytes) -> Result<Self, DecodeError> {
        let Raw {
            r#type,
            path,
            method,
            query_string,
            headers,
            body,
        } = rmp_serde::from_slice::<Envelope>(message)?.scope;
        let body = body.map_or(&[][..], |body| body);
        match r#type {
            "http" => Ok(Self::Http(HttpScope {
                path: path.to_owned(),
                method: method.to_owned(),
                query_string: String::from_utf8_lossy(query_string).into_owned(),
                headers: headers
                    .into_iter()
                    .map(|(name, value)| (message.slice_ref(name), message.slice_ref(value)))
                    .collect(),
                body: message.slice_ref(body),
            })),
            "aleph.message" => Ok(Self::Message(String::from_utf8_lossy(body).into_owned())),
            other => Err(DecodeError::Type(other.to_owned())),
        }
    }

    /// Encodes it as the host does.
    ///
    /// # Errors
    /// None that this type can cause; the signature is the encoder's.
    pub fn encode(&self) -> Result<Vec<u8>, rmp_serde::encode::Error> {
        match self {
            Self::Http(http) => rmp_serde::to_vec_named(&Out {
                scope: HttpOut {
                    r#type: "http",
                    path: &http.path,
                    method: &http.method,
                    query_string: &http.query_string,
                    headers: http
                        .headers
                        .iter()
                        .map(|(name, value)| (serde_bytes::Bytes::new(name), serde_bytes::Bytes::new(value)))
                        .collect(),
                    body: serde_bytes::Bytes::new(&http.body),
                },
            }),
            Self::Message(body) => rmp_serde::to_vec_named(&Out {
                scope: MessageOut {
                    r#type: "aleph.message",
                    body,
                },
            }),
        }
    }
}

#[derive(Serialize)]
struct Out<S> {
    scope: S,
}

#[derive(Serialize)]
struct HttpOut<'a> {
    r#type: &'static str,
    path: &'a str,
    method: &'a str,
    query_string: &'a str,
    headers: Vec<(&'a serde_bytes::Bytes, &'a serde_bytes::Bytes)>,
    body: &'a serde_bytes::Bytes,
}

#[derive(Serialize)]
struct MessageOut<'a> {
    r#type: &'static str,
    body: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        let scopes = [
            Scope::Message("{\"n\": 1}".into()),
            Scope::Http(HttpScope {
                path: "/café/a b".into(),
                method: "GET".into(),
                query_string: "x=1&y=%20".into(),
                headers: vec![("cookie".into(), "a=1".into()), ("cookie".into(), "b=2".into())],
                body: vec![0xff; 70_000].into(),
            }),
        ];
        for scope in scopes {
            let bytes = Bytes::from(scope.encode().unwrap());
            assert_eq!(Scope::decode(&bytes).unwrap(), scope);
        }
    }

    #[test]
    fn says_what_is_wrong_with_an_event() {
        let decode = |bytes: &'static [u8]| Scope::decode(&Bytes::from_static(bytes)).unwrap_err().to_string();
        assert!(decode(b"\x81\xa5scoop\x80").contains("missing field `scope`"));
        assert!(decode(b"\x81\xa5scope\x81\xa4type\xa3ftp").contains("unknown type \"ftp\""));
        assert!(decode(b"\x81\xa5scope\xc3").contains("not as the protocol has it"));
    }
}
