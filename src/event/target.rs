//! What a request is for, as people are shown it.

use std::fmt::Display;

use http::{Method, Uri};
use percent_encoding::{CONTROLS, utf8_percent_encode};

/// A path as it is to be written in a request (RFC 3986, section 2.1). Some clients write other letters than ASCII, among which
/// are those that command terminals (ECMA-48, C1).
pub fn shown(path: &str) -> impl Display {
    utf8_percent_encode(path, CONTROLS)
}

/// What one component asks another for, as the log tells of it.
pub fn call(method: &Method, uri: &Uri) -> impl Display {
    format!("{method} {}, asked by a component", shown(&uri.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_commands_no_terminal() {
        assert_eq!(
            shown("/a%20b?c=\u{e9}\u{9b}31m").to_string(),
            "/a%20b?c=%C3%A9%C2%9B31m"
        );
    }
}
