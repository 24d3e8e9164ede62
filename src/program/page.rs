//! The first page of a site, for the scripts that it loads: they are for browsers.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// As much of it is read, in bytes.
const LIMIT: u64 = 1 << 20;

/// An `index.html`.
pub struct Page(String);

impl Page {
    /// That of the site in `root`, where there is one.
    pub fn first_of(root: &Path) -> Option<Self> {
        let mut page = Vec::new();
        let file = File::open(root.join("index.html")).ok()?;
        file.take(LIMIT).read_to_end(&mut page).ok()?;
        Some(Self(String::from_utf8_lossy(&page).into_owned()))
    }

    /// Whether it loads the script of this name: `<script src="./main.js?v=2">`, or `import`.
    pub fn loads(&self, script: &str) -> bool {
        let Self(page) = self;
        page.match_indices(script).any(|(at, _)| {
            let (before, after) = (&page[..at], &page[at + script.len()..]);
            let before = before.strip_suffix('/').unwrap_or(before);
            let before = before.strip_suffix('.').unwrap_or(before);
            before.ends_with(['"', '\'', '=']) && after.starts_with(['"', '\'', '?', '>', ' '])
        })
    }
}
