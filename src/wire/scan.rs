//! Finds where a msgpack value ends, while its bytes still arrive.
//!
//! The host does not frame its events and does not close its side: only the value itself says where it ends. The
//! [`Scanner`] walks the value's structure once, however the bytes are cut, skips over strings and binaries without
//! looking at them, and believes no length that would pass its limit.

/// Finds the end of one msgpack value. Format: <https://github.com/msgpack/msgpack/blob/master/spec.md>.
#[derive(Debug)]
pub struct Scanner {
    /// Where the next marker stands, from the beginning of the value.
    position: usize,
    /// How many values are still to come, nested ones included.
    pending: u64,
    limit: usize,
}

/// Why a value can't be read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    #[error("byte {position} of the message is 0xc1, which msgpack never uses")]
    Reserved { position: usize },
    #[error("the message is larger than the limit of {limit} bytes")]
    TooLarge { limit: usize },
}

/// A marker with what stands behind it: its length with its length field, bytes to skip, values to follow.
struct Head {
    length: usize,
    payload: u64,
    children: u64,
}

impl Scanner {
    /// A scanner for one value of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            position: 0,
            pending: 1,
            limit,
        }
    }

    /// Looks at `bytes`, all that has arrived of the value so far, and returns its length once the end is known.
    /// What was looked at before is not looked at again.
    ///
    /// # Errors
    /// [`ScanError`] as soon as the bytes can't be such a value, or announce one beyond the limit.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Option<usize>, ScanError> {
        let too_large = ScanError::TooLarge { limit: self.limit };
        while self.pending > 0 {
            let Some(head) = self.head(bytes)? else {
                return Ok(None);
            };
            let end = (self.position + head.length) as u64 + head.payload;
            self.pending = self.pending - 1 + head.children;
            // Each value to come has one byte at least.
            if end.saturating_add(self.pending) > self.limit as u64 {
                return Err(too_large);
            }
            self.position = end as usize;
        }
        Ok((bytes.len() >= self.position).then_some(self.position))
    }

    /// How many more bytes than `have` are known to come: what a reader can make room for.
    pub fn wanted(&self, have: usize) -> usize {
        (self.position + self.pending as usize).saturating_sub(have)
    }

    fn head(&self, bytes: &[u8]) -> Result<Option<Head>, ScanError> {
        let Some(rest) = bytes.get(self.position..).filter(|rest| !rest.is_empty()) else {
            return Ok(None);
        };
        let fixed = |length, payload, children| {
            Some(Head {
                length,
                payload,
                children,
            })
        };
        // A length field of 1, 2 or 4 bytes behind the marker; `None` while it has not arrived.
        let field = |width: usize| -> Option<u64> {
            let field = rest.get(1..1 + width)?;
            Some(field.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
        };
        Ok(match rest[0] {
            0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => fixed(1, 0, 0),
            marker @ 0x80..=0x8f => fixed(1, 0, u64::from(marker & 0x0f) * 2),
            marker @ 0x90..=0x9f => fixed(1, 0, u64::from(marker & 0x0f)),
            marker @ 0xa0..=0xbf => fixed(1, u64::from(marker & 0x1f), 0),
            0xc1 => {
                return Err(ScanError::Reserved {
                    position: self.position,
                });
            }
            0xcc | 0xd0 => fixed(1, 1, 0),
            0xcd | 0xd1 => fixed(1, 2, 0),
            0xca | 0xce | 0xd2 => fixed(1, 4, 0),
            0xcb | 0xcf | 0xd3 => fixed(1, 8, 0),
            // fixext: a type byte and 1, 2, 4, 8 or 16 bytes.
            marker @ 0xd4..=0xd8 => fixed(2, 1 << (marker - 0xd4), 0),
            0xc4 | 0xd9 => field(1).and_then(|n| fixed(2, n, 0)),
            0xc5 | 0xda => field(2).and_then(|n| fixed(3, n, 0)),
            0xc6 | 0xdb => field(4).and_then(|n| fixed(5, n, 0)),
            0xc7 => field(1).and_then(|n| fixed(2, n + 1, 0)),
            0xc8 => field(2).and_then(|n| fixed(3, n + 1, 0)),
            0xc9 => field(4).and_then(|n| fixed(5, n + 1, 0)),
            0xdc => field(2).and_then(|n| fixed(3, 0, n)),
            0xdd => field(4).and_then(|n| fixed(5, 0, n)),
            0xde => field(2).and_then(|n| fixed(3, 0, n * 2)),
            0xdf => field(4).and_then(|n| fixed(5, 0, n * 2)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `bytes` one more byte at a time.
    fn trickle(bytes: &[u8], limit: usize) -> Result<Option<usize>, ScanError> {
        let mut scanner = Scanner::new(limit);
        for end in 0..=bytes.len() {
            if let Some(length) = scanner.scan(&bytes[..end])? {
                return Ok(Some(length));
            }
        }
        Ok(None)
    }

    #[test]
    fn finds_the_end_of_every_kind_of_value() {
        let mut nested = vec![0xdc, 0x00, 0x03, 0xc4, 0x02, 1, 2, 0xcb, 0, 0, 0, 0, 0, 0, 0, 0];
        nested.extend([0x81, 0xa1, b'k', 0xd8, 5]);
        nested.extend([7; 16]);
        let values: [&[u8]; 9] = [
            &[0x05],
            &[0xc0],
            &[0xff],
            b"\xa5hello",
            &[0xcd, 1, 2],
            &[0xc7, 2, 9, 1, 2],
            &[0x80],
            &[0xdf, 0, 0, 0, 1, 0xa1, b'a', 0x92, 1, 2],
            &nested,
        ];
        for value in values {
            let mut followed = value.to_vec();
            followed.extend(b"more");
            assert_eq!(trickle(&followed, 1000), Ok(Some(value.len())), "{value:x?}");
            assert_eq!(Scanner::new(1000).scan(&followed), Ok(Some(value.len())));
            assert_eq!(trickle(&value[..value.len() - 1], 1000), Ok(None));
        }
    }

    #[test]
    fn believes_no_length_beyond_the_limit() {
        let too_large = Err(ScanError::TooLarge { limit: 100 });
        assert_eq!(trickle(&[0xc6, 0xff, 0xff, 0xff, 0xff], 100), too_large);
        assert_eq!(trickle(&[0xdd, 0xff, 0xff, 0xff, 0xff], 100), too_large);
        assert_eq!(trickle(&[0xdf, 0xff, 0xff, 0xff, 0xff], 100), too_large);
        assert_eq!(trickle(&[0x91; 500], 100), too_large);
        assert_eq!(trickle(&[0xc4, 98], 100), Ok(None));
        assert_eq!(trickle(&[0xc4, 99], 100), too_large);
    }

    #[test]
    fn tells_what_is_no_msgpack() {
        assert_eq!(
            trickle(&[0x92, 0x01, 0xc1], 9),
            Err(ScanError::Reserved { position: 2 })
        );
    }

    #[test]
    fn says_how_much_is_still_to_come() {
        let mut scanner = Scanner::new(1 << 20);
        assert_eq!(scanner.scan(&[0x92, 0xc5, 0x10, 0x00, 1]), Ok(None));
        // 4096 bytes of binary, of which one is here, and one byte at least for the second element.
        assert_eq!(scanner.wanted(5), 4096);
    }
}
