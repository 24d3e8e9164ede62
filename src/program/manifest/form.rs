//! Mistakes of form: what TOML's grammar, the schema and the types tell of a text, all of them, and what of the text is
//! left when they are taken out.

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::keys::ManifestKeys;
use super::schema::{self, schema};
use crate::report::mistake::{Mistake, Source};

/// Mistakes that only show once others are taken out: so many at most.
const MOST: usize = 64;

/// Keys of a component without which what is said of it means something else.
const BEARING: [&str; 4] = ["source", "engine", "entrypoint", "routes"];

/// Every mistake of form in `source`, at least the `first` one, which stopped deserialising; and the keys that are left
/// without those, if they are worth looking at.
pub fn mistakes(source: Source<'_>, first: &toml::de::Error) -> (Vec<Mistake>, Option<ManifestKeys>) {
    let of = |error: &toml::de::Error| source.mistake(error.span().unwrap_or(0..0), error.message(), None);
    let (document, errors) = DeTable::parse_recoverable(source.text);
    // What is left of a broken document would be full of mistakes that nobody made.
    if !errors.is_empty() {
        let mut mistakes: Vec<Mistake> = errors.iter().map(of).collect();
        mistakes.sort_by_key(|mistake| (mistake.line, mistake.column));
        return (mistakes, None);
    }
    let found = schema::check(&document);
    let mut spans: Vec<Range<usize>> = found.iter().map(|found| found.span.clone()).collect();
    let mut mistakes: Vec<Mistake> = found
        .into_iter()
        .map(|found| source.mistake(found.span, found.message, found.hint))
        .collect();
    if mistakes.is_empty() {
        mistakes.push(of(first));
        spans.extend(first.span());
    }
    let mut left = None;
    while spans.len() < MOST {
        match ManifestKeys::deserialize(toml::Deserializer::from(without(source.text, &spans))) {
            Ok(keys) => {
                left = Some(keys).filter(|keys| !keys.components.is_empty());
                break;
            }
            Err(error) => {
                // One that stays where it is, or is nowhere, can't be taken out.
                let Some(span) = error.span().filter(|span| !spans.contains(span)) else {
                    break;
                };
                mistakes.push(of(&error));
                spans.push(span);
            }
        }
    }
    mistakes.sort_by_key(|mistake| (mistake.line, mistake.column));
    (mistakes, left)
}

/// The document of `text` without what is wrong: that key alone, or its whole component where it says what that is.
fn without<'a>(text: &'a str, spans: &[Range<usize>]) -> Spanned<DeTable<'a>> {
    let (mut document, _) = DeTable::parse_recoverable(text);
    let schema = schema();
    let known = |name: &str| !schema["$defs"]["ComponentKeys"]["properties"][name].is_null();
    let is_wrong = |key: &Spanned<DeString<'_>>, value: &Spanned<DeValue<'_>>| {
        let holds = |outer: Range<usize>, span: &Range<usize>| outer.start <= span.start && span.end <= outer.end;
        spans
            .iter()
            .any(|span| holds(key.span(), span) || holds(value.span(), span))
    };
    let top = document.get_mut();
    *top = kept(std::mem::take(top), |key, value| {
        let was_wrong = is_wrong(key, value);
        match (key.get_ref().as_ref(), value.get_mut()) {
            ("components", DeValue::Table(components)) => {
                *components = kept(std::mem::take(components), |key, component| {
                    let was_wrong = is_wrong(key, component);
                    let DeValue::Table(keys) = component.get_mut() else {
                        return !was_wrong;
                    };
                    let bears = |key: &str| !known(key) || BEARING.contains(&key);
                    if keys
                        .iter()
                        .any(|(key, value)| is_wrong(key, value) && bears(key.get_ref()))
                    {
                        return false;
                    }
                    *keys = kept(std::mem::take(keys), |key, value| !is_wrong(key, value));
                    true
                });
            }
            ("http", DeValue::Table(keys)) => *keys = kept(std::mem::take(keys), |key, value| !is_wrong(key, value)),
            _ => return !was_wrong,
        }
        true
    });
    document
}

/// What of the table is to be kept.
fn kept<'a>(
    table: DeTable<'a>,
    mut keep: impl FnMut(&Spanned<DeString<'a>>, &mut Spanned<DeValue<'a>>) -> bool,
) -> DeTable<'a> {
    let entries = table.into_iter();
    entries
        .filter_map(|(key, mut value)| keep(&key, &mut value).then_some((key, value)))
        .collect()
}
