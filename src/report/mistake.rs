//! A mistake in a file that somebody wrote, shown as a compiler shows it: file, line, column, the line itself with the
//! place marked, and what was probably meant. For recipes of images and manifests of programs.

use std::ops::Range;
use std::path::{Path, PathBuf};

/// The text of a file, for mistakes that point into it.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    pub path: &'a Path,
    pub text: &'a str,
}

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Serialize)]
#[error("{path}:{line}:{column}: {message}\n  {line} | {text}\n  {blank} | {marker}{hint}",
    path = path.display(), blank = " ".repeat(line.to_string().len()),
    hint = hint.as_ref().map(|hint| format!("\n  {hint}")).unwrap_or_default())]
pub struct Mistake {
    pub path: PathBuf,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    pub message: String,
    /// The line of the file.
    pub text: String,
    /// Spaces, then `^` below what is meant.
    #[serde(skip)]
    marker: String,
    /// What to do.
    pub hint: Option<String>,
}

impl Source<'_> {
    /// The mistake at the bytes `span` of the text.
    pub fn mistake(&self, span: Range<usize>, message: impl Into<String>, hint: Option<String>) -> Mistake {
        let start = self.text.floor_char_boundary(span.start);
        let line_start = self.text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let text = self.text[line_start..].lines().next().unwrap_or_default();
        let before = self.text[line_start..start].chars().count();
        // What is meant may go on over many lines; the first shows enough.
        let end = self
            .text
            .floor_char_boundary(span.end)
            .clamp(start, (line_start + text.len()).max(start));
        let marked = self.text[start..end].chars().count().max(1);
        Mistake {
            path: self.path.to_path_buf(),
            line: self.text[..start].matches('\n').count() + 1,
            column: before + 1,
            message: message.into(),
            text: text.to_owned(),
            marker: " ".repeat(before) + &"^".repeat(marked),
            hint,
        }
    }
}

/// The one of the `known` names that was probably meant by `written`, if any is near enough.
pub fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |name: &str| strsim::damerau_levenshtein(written, name);
    let nearest = known.into_iter().min_by_key(|name| distance(name))?;
    (distance(nearest) <= nearest.len().div_ceil(2)).then_some(nearest)
}

/// [`nearest`] as a sentence.
pub fn did_you_mean<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(written, known).map(|name| format!("did you mean `{name}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_what_is_meant_below_its_line() {
        let source = Source {
            path: Path::new("a.toml"),
            text: "one = 1\n\"é\" = two # ü\n",
        };
        let mistake = source.mistake(15..18, "no number", Some("write 2".to_owned()));
        let expected = "a.toml:2:7: no number\n  2 | \"é\" = two # ü\n    |       ^^^\n  write 2";
        assert_eq!(mistake.to_string(), expected);
        // A span that is past the end is shown at the end.
        assert_eq!(source.mistake(900..901, "x", None).line, 3);
    }

    #[test]
    fn suggests_only_what_is_near() {
        assert_eq!(nearest("suorce", ["source", "routes"]), Some("source"));
        assert_eq!(nearest("frobnicate", ["source", "routes"]), None);
        assert_eq!(nearest("x", []), None);
    }
}
