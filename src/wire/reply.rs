//! What the guest answers, to a configuration and to an event.

use bytes::Bytes;
use serde::Deserialize;
use serde_bytes::ByteBuf;

use super::CONFIGURATION_ANSWER_LIMIT;

/// The answer to a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigurationAnswer {
    Success,
    Failure { error: String, traceback: String },
}

impl ConfigurationAnswer {
    /// Encodes it: three keys at most, since the host refuses a fourth, and shorter than
    /// [`CONFIGURATION_ANSWER_LIMIT`], since the host reads once. The end of a long traceback says most: that stays.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Success => {
                map(&mut out, 1);
                text(&mut out, "success");
                out.push(0xc3);
            }
            Self::Failure { error, traceback } => {
                let half = CONFIGURATION_ANSWER_LIMIT / 2 - 100;
                map(&mut out, 3);
                text(&mut out, "success");
                out.push(0xc2);
                text(&mut out, "error");
                text(&mut out, &error[..error.floor_char_boundary(half)]);
                text(&mut out, "traceback");
                let from = traceback.len().saturating_sub(half);
                text(&mut out, &traceback[traceback.ceil_char_boundary(from)..]);
            }
        }
        out
    }

    /// Decodes what a guest answered.
    ///
    /// # Errors
    /// Where the map is not as the protocol has it.
    pub fn decode(bytes: &[u8]) -> Result<Self, rmp_serde::decode::Error> {
        #[derive(Deserialize)]
        struct Raw {
            success: bool,
            #[serde(default)]
            error: String,
            #[serde(default)]
            traceback: String,
        }
        let raw: Raw = rmp_serde::from_slice(bytes)?;
        Ok(if raw.success {
            Self::Success
        } else {
            Self::Failure {
                error: raw.error,
                traceback: raw.traceback,
            }
        })
    }
}

/// The answer to an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventAnswer {
    /// To an HTTP request.
    Http(HttpAnswer),
    /// To a message: what the program gave back.
    Value(Bytes),
    /// The program raised, or there is none.
    Failure { error: String, traceback: String },
}

/// An HTTP response, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpAnswer {
    pub status: u16,
    pub headers: Vec<(Bytes, Bytes)>,
    pub body: Bytes,
}

impl EventAnswer {
    /// Encodes it in the one form that the host takes for each, with a zip of what the program has left in /data.
    pub fn encode(&self, output_data: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.body_length() + output_data.len());
        match self {
            Self::Http(http) => {
                map(&mut out, 4);
                text(&mut out, "headers");
                map(&mut out, 3);
                text(&mut out, "type");
                text(&mut out, "http.response.start");
                text(&mut out, "status");
                number(&mut out, http.status);
                text(&mut out, "headers");
                array(&mut out, http.headers.len());
                for (name, value) in &http.headers {
                    array(&mut out, 2);
                    binary(&mut out, name);
                    binary(&mut out, value);
                }
                body(&mut out, &http.body);
                rest(&mut out, output_data);
            }
            Self::Value(value) => {
                map(&mut out, 4);
                text(&mut out, "headers");
                map(&mut out, 0);
                body(&mut out, value);
                rest(&mut out, output_data);
            }
            Self::Failure { error, traceback } => {
                map(&mut out, 3);
                text(&mut out, "error");
                text(&mut out, error);
                text(&mut out, "traceback");
                text(&mut out, traceback);
                text(&mut out, "output");
                out.push(0xc0);
            }
        }
        out
    }

    /// Decodes what a guest answered.
    ///
    /// # Errors
    /// Where the map is not as the protocol has it.
    pub fn decode(bytes: &[u8]) -> Result<Self, rmp_serde::decode::Error> {
        Self::decode_with_data(bytes).map(|(answer, _)| answer)
    }

    /// Decodes what a guest answered, and the zip of what the program has left in /data, which is empty if nothing there has
    /// changed.
    ///
    /// # Errors
    /// Where the map is not as the protocol has it.
    pub fn decode_with_data(bytes: &[u8]) -> Result<(Self, Bytes), rmp_serde::decode::Error> {
        let raw: Raw = rmp_serde::from_slice(bytes)?;
        let data = Bytes::from(raw.output_data.unwrap_or_default().into_vec());
        let body = raw.body.and_then(|body| body.body).unwrap_or_default();
        let body = Bytes::from(body.into_vec());
        let start = raw.headers.and_then(|start| Some((start.status?, start.headers)));
        let answer = match (raw.traceback, start) {
            (Some(traceback), _) => Self::Failure {
                error: raw.error.unwrap_or_default(),
                traceback,
            },
            (None, Some((status, headers))) => Self::Http(HttpAnswer {
                status,
                headers: headers
                    .into_iter()
                    .map(|(name, value)| (name.into_vec().into(), value.into_vec().into()))
                    .collect(),
                body,
            }),
            (None, None) => Self::Value(body),
        };
        Ok((answer, data))
    }

    fn body_length(&self) -> usize {
        match self {
            Self::Http(http) => {
                http.body.len() + http.headers.iter().map(|(n, v)| n.len() + v.len() + 8).sum::<usize>()
            }
            Self::Value(value) => value.len(),
            Self::Failure { error, traceback } => error.len() + traceback.len(),
        }
    }
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    headers: Option<RawStart>,
    #[serde(default)]
    body: Option<RawBody>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    traceback: Option<String>,
    #[serde(default)]
    output_data: Option<ByteBuf>,
}

#[derive(Deserialize)]
struct RawStart {
    /// Absent in the answer to a message.
    #[serde(default)]
    status: Option<u16>,
    #[serde(default)]
    headers: Vec<(ByteBuf, ByteBuf)>,
}

#[derive(Deserialize)]
struct RawBody {
    #[serde(default)]
    body: Option<ByteBuf>,
}

fn body(out: &mut Vec<u8>, bytes: &[u8]) {
    text(out, "body");
    map(out, 2);
    text(out, "type");
    text(out, "http.response.body");
    text(out, "body");
    binary(out, bytes);
}

fn rest(out: &mut Vec<u8>, output_data: &[u8]) {
    text(out, "output");
    out.push(0xc0);
    text(out, "output_data");
    binary(out, output_data);
}

// Writing to a `Vec` can't fail: there is nothing to tell the caller.

fn map(out: &mut Vec<u8>, entries: u32) {
    let _ = rmp::encode::write_map_len(out, entries);
}

fn array(out: &mut Vec<u8>, elements: usize) {
    let _ = rmp::encode::write_array_len(out, elements as u32);
}

fn text(out: &mut Vec<u8>, value: &str) {
    let _ = rmp::encode::write_str(out, value);
}

fn binary(out: &mut Vec<u8>, value: &[u8]) {
    let _ = rmp::encode::write_bin(out, value);
}

fn number(out: &mut Vec<u8>, value: u16) {
    let _ = rmp::encode::write_uint(out, value.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_decode_to_what_was_encoded() {
        let answers = [
            EventAnswer::Http(HttpAnswer {
                status: 200,
                headers: vec![("set-cookie".into(), "a=1".into()), ("set-cookie".into(), "b=2".into())],
                body: "Hello".into(),
            }),
            EventAnswer::Value("{\"ok\": true}".into()),
            EventAnswer::Failure {
                error: "boom".into(),
                traceback: "Traceback".into(),
            },
        ];
        for answer in answers {
            let data = match answer {
                EventAnswer::Failure { .. } => "",
                _ => "zip",
            };
            let decoded = EventAnswer::decode_with_data(&answer.encode(b"zip")).unwrap();
            assert_eq!(decoded, (answer, data.into()));
        }
    }

    #[test]
    fn a_configurations_answer_fits_the_hosts_one_read() {
        let answer = ConfigurationAnswer::Failure {
            error: "é".repeat(2_000_000),
            traceback: format!("{}the end", "é".repeat(2_000_000)),
        };
        let bytes = answer.encode();
        assert!(bytes.len() < CONFIGURATION_ANSWER_LIMIT);
        let ConfigurationAnswer::Failure { traceback, .. } = ConfigurationAnswer::decode(&bytes).unwrap() else {
            panic!("a failure decoded as a success");
        };
        assert!(traceback.ends_with("the end"));
        assert_eq!(ConfigurationAnswer::Success.encode(), b"\x81\xa7success\xc3");
    }
}
