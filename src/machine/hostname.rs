//! The machine's host name, made from the hash that names it on its network.

use data_encoding::{BASE32_NOPAD, HEXLOWER_PERMISSIVE};
use nix::errno::Errno;
use nix::unistd::sethostname;

/// Why the machine keeps its old name.
#[derive(Debug, thiserror::Error)]
pub enum HostNameError {
    #[error("`{0}` is no machine hash: 64 hexadecimal digits are expected")]
    NotAHash(String),
    #[error("naming the machine `{name}` failed: sethostname: {errno}")]
    Refused { name: String, errno: Errno },
}

/// Bytes in a machine's hash (SHA-256).
const HASH_LENGTH: usize = 32;

/// The host name that belongs to `hash`: its bytes in base32 (RFC 4648, section 6), in lower case and without padding,
/// 52 characters. A label of a domain name has 63 at most (RFC 1035, section 2.3.4), so hexadecimal would not fit.
///
/// # Errors
/// When `hash` is anything but 64 hexadecimal digits.
pub fn from_hash(hash: &str) -> Result<String, HostNameError> {
    // A long text is no hash, and would make a long sentence.
    let wrong = || HostNameError::NotAHash(hash.chars().take(80).collect());
    let bytes = HEXLOWER_PERMISSIVE.decode(hash.as_bytes()).map_err(|_| wrong())?;
    if bytes.len() != HASH_LENGTH {
        return Err(wrong());
    }
    Ok(BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
}

/// Names the machine (sethostname(2)).
///
/// # Errors
/// When this process may not.
pub fn set(name: &str) -> Result<(), HostNameError> {
    sethostname(name).map_err(|errno| HostNameError::Refused {
        name: name.to_owned(),
        errno,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::isolation::{Namespace, isolated};

    // What Python's base64.b32encode(bytes.fromhex(...)).strip(b"=").lower() gives.
    const HASH: &str = "cafecafecafecafecafecafecafecafecafecafecafecafecafecafecafecafe";
    const NAME: &str = "zl7mv7wk73fp5sx6zl7mv7wk73fp5sx6zl7mv7wk73fp5sx6zl7a";

    #[test]
    fn the_name_is_the_hash_in_base32() {
        assert_eq!(from_hash(HASH).expect("a hash"), NAME);
        assert_eq!(from_hash(&HASH.to_uppercase()).expect("a hash"), NAME);
    }

    #[test]
    fn anything_else_is_refused_in_a_short_sentence() {
        for wrong in [
            "",
            "cafe",
            &HASH[1..],
            &format!("{HASH}00"),
            &"g".repeat(64),
            &"x".repeat(100_000),
        ] {
            let error = from_hash(wrong).expect_err(wrong).to_string();
            assert!(error.contains("64 hexadecimal digits"), "{error}");
            assert!(error.len() < 200, "{error}");
        }
    }

    #[test]
    fn the_machine_takes_the_name() {
        isolated(
            "machine::hostname::tests::the_machine_takes_the_name",
            &[Namespace::HostName],
            || {
                set(NAME).expect("a name");
                assert_eq!(nix::unistd::gethostname().expect("a name"), NAME);
            },
        );
    }
}
