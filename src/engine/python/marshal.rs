//! Python's own marshal format, as far as heads of requests and replies need it.
//!
//! The interpreter decodes it in C in one call, where any format of ours would cost it a loop of bytecode. Only type
//! codes that every CPython since 3.4 reads are written, and only those that version 2 of the format has are read
//! back. Format: CPython's `Python/marshal.c`.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde_json::Value;

pub fn none(out: &mut BytesMut) {
    out.put_u8(b'N');
}

pub fn number(out: &mut BytesMut, value: u16) {
    out.put_u8(b'i');
    out.put_i32_le(value.into());
}

pub fn binary(out: &mut BytesMut, value: &[u8]) {
    out.put_u8(b's');
    out.put_u32_le(value.len() as u32);
    out.put_slice(value);
}

pub fn text(out: &mut BytesMut, value: &str) {
    if value.len() < 256 && value.is_ascii() {
        out.put_u8(b'z');
        out.put_u8(value.len() as u8);
    } else {
        out.put_u8(b'u');
        out.put_u32_le(value.len() as u32);
    }
    out.put_slice(value.as_bytes());
}

/// What JSON has, which an interpreter that has just begun reads in a quarter of the time in this form.
pub fn value(out: &mut BytesMut, value: &Value) {
    match value {
        Value::Null => none(out),
        Value::Bool(value) => out.put_u8(if *value { b'T' } else { b'F' }),
        Value::Number(value) => match (value.as_u64(), value.as_i64()) {
            (Some(value), _) => whole(out, value, 1),
            (None, Some(value)) => whole(out, value.unsigned_abs(), -1),
            (None, None) => {
                out.put_u8(b'g');
                out.put_f64_le(value.as_f64().unwrap_or(f64::NAN));
            }
        },
        Value::String(value) => text(out, value),
        Value::Array(values) => {
            list(out, values.len());
            values.iter().for_each(|element| self::value(out, element));
        }
        Value::Object(pairs) => {
            out.put_u8(b'{');
            for (key, element) in pairs {
                text(out, key);
                self::value(out, element);
            }
            out.put_u8(b'0');
        }
    }
}

/// A whole number of any size, in digits of 15 bits; their count has its `sign`.
fn whole(out: &mut BytesMut, mut value: u64, sign: i32) {
    out.put_u8(b'l');
    let digits = (u64::BITS - value.leading_zeros()).div_ceil(15);
    out.put_i32_le(sign * digits as i32);
    for _ in 0..digits {
        out.put_u16_le((value & 0x7fff) as u16);
        value >>= 15;
    }
}

/// Text as bytes: for what is shorter displayed than described.
pub fn displayed(out: &mut BytesMut, value: impl std::fmt::Display) {
    use std::fmt::Write;
    out.put_u8(b's');
    let length = out.len();
    out.put_u32_le(0);
    // A buffer that grows takes everything.
    let _ = write!(out, "{value}");
    let written = (out.len() - length - 4) as u32;
    out[length..length + 4].copy_from_slice(&written.to_le_bytes());
}

/// Begins a tuple; its elements follow.
pub fn tuple(out: &mut BytesMut, length: u8) {
    out.put_u8(b')');
    out.put_u8(length);
}

/// Begins a list; its elements follow.
pub fn list(out: &mut BytesMut, length: usize) {
    out.put_u8(b'[');
    out.put_u32_le(length as u32);
}

/// Reads what a worker wrote. Nothing is copied: binaries are slices of the frame.
pub struct Reader(Bytes);

/// What was expected, and what stands there.
pub type Unexpected = String;

impl Reader {
    pub fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// A tuple's or a list's length.
    pub fn sequence(&mut self) -> Result<usize, Unexpected> {
        match self.code()? {
            b'(' | b'[' => self.length(),
            other => Err(expected("a list or tuple", other)),
        }
    }

    pub fn number(&mut self) -> Result<i32, Unexpected> {
        match self.code()? {
            b'i' if self.0.len() >= 4 => Ok(self.0.get_i32_le()),
            other => Err(expected("an int", other)),
        }
    }

    pub fn binary(&mut self) -> Result<Bytes, Unexpected> {
        match self.code()? {
            b's' => {
                let length = self.length()?;
                Ok(self.0.split_to(length))
            }
            other => Err(expected("bytes", other)),
        }
    }

    fn code(&mut self) -> Result<u8, Unexpected> {
        if self.0.is_empty() {
            return Err("the value ends too early".to_owned());
        }
        Ok(self.0.get_u8())
    }

    /// A length that the bytes left can hold: each element has one byte at least.
    fn length(&mut self) -> Result<usize, Unexpected> {
        if self.0.len() < 4 {
            return Err("the value ends too early".to_owned());
        }
        let length = self.0.get_u32_le() as usize;
        if length > self.0.len() {
            return Err(format!("a length of {length}, where {} bytes are left", self.0.len()));
        }
        Ok(length)
    }
}

fn expected(what: &str, code: u8) -> Unexpected {
    let found = match code {
        b's' => "bytes",
        b'u' | b't' | b'z' | b'a' => "a str",
        b'i' | b'l' => "an int",
        b'(' | b'[' | b')' => "a sequence",
        b'N' => "None",
        b'T' | b'F' => "a bool",
        _ => "another object",
    };
    format!("{found} where {what} belongs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_version_2_writes() {
        // marshal.dumps((200, [[b"a", b"b"]], b"body"), 2)
        let bytes = b"(\x03\0\0\0i\xc8\0\0\0[\x01\0\0\0[\x02\0\0\0s\x01\0\0\0as\x01\0\0\0bs\x04\0\0\0body";
        let mut reader = Reader::new(Bytes::from_static(bytes));
        assert_eq!(reader.sequence(), Ok(3));
        assert_eq!(reader.number(), Ok(200));
        assert_eq!((reader.sequence(), reader.sequence()), (Ok(1), Ok(2)));
        assert_eq!(
            (reader.binary().unwrap(), reader.binary().unwrap()),
            ("a".into(), "b".into())
        );
        assert_eq!(reader.binary().unwrap(), "body");
        assert!(reader.number().is_err());
    }

    #[test]
    fn writes_what_json_has() {
        let mut out = BytesMut::new();
        let object = serde_json::json!({"a": [null, true, 1.5], "b": 1u64 << 32, "c": 0, "d": {}, "e": -3});
        value(&mut out, &object);
        // marshal.loads(...) == {"a": [None, True, 1.5], "b": 1 << 32, "c": 0, "d": {}, "e": -3}
        let expected = b"{z\x01a[\x03\0\0\0NTg\0\0\0\0\0\0\xf8?z\x01bl\x03\0\0\0\0\0\0\0\x04\0z\x01cl\0\0\0\0z\x01d{0z\x01el\xff\xff\xff\xff\x03\x000";
        assert_eq!(&out[..], expected);
    }

    #[test]
    fn says_what_stands_where_something_else_belongs() {
        let mut reader = Reader::new(Bytes::from_static(b"u\x01\0\0\0a"));
        assert_eq!(reader.binary(), Err("a str where bytes belongs".to_owned()));
        let mut reader = Reader::new(Bytes::from_static(b"s\xff\xff\xff\x7fa"));
        assert_eq!(
            reader.binary(),
            Err("a length of 2147483647, where 1 bytes are left".to_owned())
        );
    }
}
