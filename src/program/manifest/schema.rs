//! The manifest's JSON Schema, and the manifest held against it: finds every mistake of form, each with its place, where
//! deserialising would stop at the first. Only walked once deserialising has failed.
//!
//! Knows what of JSON Schema (2020-12) [`keys`](super::keys) can bring forth: types, properties, items, enumerations,
//! alternatives and bounds.

use std::ops::Range;

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::ManifestKeys;
use crate::report::mistake::did_you_mean;

/// Something wrong at a place of the text, in bytes.
pub struct Found {
    pub span: Range<usize>,
    pub message: String,
    pub hint: Option<String>,
}

/// The schema that `docs/polyinit.schema.json` has.
pub fn schema() -> Value {
    let settings = schemars::generate::SchemaSettings::draft2020_12();
    settings
        .into_generator()
        .into_root_schema_for::<ManifestKeys>()
        .to_value()
}

/// Everything in `document` that is not as the schema says.
pub fn check(document: &Spanned<DeTable<'_>>) -> Vec<Found> {
    let root = schema();
    let mut walk = Walk {
        root: &root,
        found: Vec::new(),
    };
    walk.table(document.get_ref(), document.span(), &root);
    walk.found
}

struct Walk<'a> {
    root: &'a Value,
    found: Vec<Found>,
}

impl<'a> Walk<'a> {
    fn say(&mut self, span: Range<usize>, message: String, hint: Option<String>) {
        self.found.push(Found { span, message, hint });
    }

    fn resolve(&self, schema: &'a Value) -> &'a Value {
        let name = schema["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/"));
        name.map_or(schema, |name| &self.root["$defs"][name])
    }

    fn value(&mut self, value: &Spanned<DeValue<'_>>, schema: &'a Value) {
        let schema = self.resolve(schema);
        let alternatives = ["anyOf", "oneOf"].iter().find_map(|key| schema[key].as_array());
        if let Some(alternatives) = alternatives {
            return self.alternatives(value, alternatives);
        }
        if let Some(words) = schema["enum"].as_array() {
            return self.word(value, &words.iter().filter_map(Value::as_str).collect::<Vec<_>>());
        }
        if !fits(value.get_ref(), schema) {
            let message = format!(
                "this is {}, and must be {}",
                article(value.get_ref().type_str()),
                wanted(schema)
            );
            return self.say(value.span(), message, None);
        }
        match value.get_ref() {
            DeValue::Table(table) => self.table(table, value.span(), schema),
            DeValue::Array(array) => array.iter().for_each(|item| self.value(item, &schema["items"])),
            DeValue::Integer(_) | DeValue::Float(_) => self.bounds(value, schema),
            _ => {}
        }
    }

    /// The one that is of the value's type, or the words that it may be.
    fn alternatives(&mut self, value: &Spanned<DeValue<'_>>, alternatives: &'a [Value]) {
        let alternatives: Vec<&Value> = alternatives
            .iter()
            .map(|alternative| self.resolve(alternative))
            .collect();
        let words: Vec<&str> = alternatives
            .iter()
            .flat_map(|alternative| {
                let list = alternative["enum"].as_array().map(Vec::as_slice).unwrap_or_default();
                list.iter().chain(alternative.get("const")).filter_map(Value::as_str)
            })
            .collect();
        if value.get_ref().as_str().is_some_and(|text| words.contains(&text)) {
            return;
        }
        let others: Vec<&'a Value> = alternatives
            .into_iter()
            .filter(|alternative| alternative["type"] != "null")
            .filter(|alternative| alternative.get("const").is_none() && alternative.get("enum").is_none())
            .collect();
        let of_type = others
            .iter()
            .find(|schema| nested(schema) || fits(value.get_ref(), schema));
        if let Some(schema) = of_type {
            return self.value(value, schema);
        }
        if others.is_empty() {
            return self.word(value, &words);
        }
        let mut wanted: Vec<String> = others.into_iter().map(wanted).collect();
        wanted.extend(words.iter().map(|word| format!("`{word}`")));
        let message = format!(
            "this is {}, and must be {}",
            article(value.get_ref().type_str()),
            wanted.join(" or ")
        );
        self.say(value.span(), message, None);
    }

    fn word(&mut self, value: &Spanned<DeValue<'_>>, words: &[&str]) {
        let list = words
            .iter()
            .map(|word| format!("`{word}`"))
            .collect::<Vec<_>>()
            .join(", ");
        match value.get_ref() {
            DeValue::String(text) if words.contains(&text.as_ref()) => {}
            DeValue::String(text) => {
                let hint = did_you_mean(text, words.iter().copied());
                self.say(value.span(), format!("`{text}` is not one of {list}"), hint);
            }
            other => {
                let message = format!("this is {}, and must be one of {list}", article(other.type_str()));
                self.say(value.span(), message, None);
            }
        }
    }

    fn table(&mut self, table: &DeTable<'_>, span: Range<usize>, schema: &'a Value) {
        let properties = schema["properties"].as_object();
        let known = || properties.into_iter().flatten().map(|(name, _)| name.as_str());
        for (key, value) in table.iter() {
            let name: &str = key.get_ref();
            if let Some(property) = properties.and_then(|properties| properties.get(name)) {
                self.value(value, property);
            } else if schema["additionalProperties"].is_object() {
                self.value(value, &schema["additionalProperties"]);
            } else {
                let elsewhere = || {
                    std::ptr::eq(schema, self.root)
                        .then(|| below_components(name, self.root))
                        .flatten()
                };
                let hint = did_you_mean(name, known()).or_else(elsewhere).or_else(|| {
                    let list = known().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
                    Some(format!("the keys here are {list}"))
                });
                self.say(key.span(), format!("unknown key `{name}`"), hint);
            }
        }
        for name in schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
        {
            if !table.contains_key(name) {
                self.say(span.clone(), format!("the key `{name}` is missing"), None);
            }
        }
    }

    fn bounds(&mut self, value: &Spanned<DeValue<'_>>, schema: &Value) {
        let number = match value.get_ref() {
            DeValue::Integer(integer) => i128::from_str_radix(&integer.as_str().replace('_', ""), integer.radix())
                .ok()
                .map(|number| number as f64),
            DeValue::Float(float) => float.as_str().replace('_', "").parse::<f64>().ok(),
            _ => None,
        };
        let bound = |key: &str| schema[key].as_f64();
        let Some(number) = number else {
            return self.say(value.span(), "this number can't be read".to_owned(), None);
        };
        let message = if let Some(least) = bound("minimum").filter(|least| number < *least) {
            format!("must be {least} or more")
        } else if let Some(least) = bound("exclusiveMinimum").filter(|least| number <= *least) {
            format!("must be more than {least}")
        } else if let Some(most) = bound("maximum").filter(|most| number > *most) {
            format!("must be {most} or less")
        } else {
            return;
        };
        self.say(value.span(), message, None);
    }
}

/// What to say of a key that is one of a component's, and stands at the top.
fn below_components(name: &str, root: &Value) -> Option<String> {
    if name == "static" {
        return Some("static files are a component: [components.NAME] with engine = \"static\"".to_owned());
    }
    let keys = root["$defs"]["ComponentKeys"]["properties"].as_object()?;
    keys.contains_key(name)
        .then(|| "it is a component's: it belongs below [components.NAME]".to_owned())
}

/// Whether a schema is made of others, so that its own type says nothing.
fn nested(schema: &Value) -> bool {
    schema.get("anyOf").is_some() || schema.get("oneOf").is_some()
}

fn types(schema: &Value) -> impl Iterator<Item = &str> {
    let one = schema["type"].as_str();
    let several = schema["type"].as_array().map(Vec::as_slice).unwrap_or_default();
    one.into_iter().chain(several.iter().filter_map(Value::as_str))
}

fn fits(value: &DeValue<'_>, schema: &Value) -> bool {
    let mut types = types(schema).peekable();
    if types.peek().is_none() {
        return true;
    }
    types.any(|name| {
        matches!(
            (name, value),
            ("string", DeValue::String(_))
                | ("integer" | "number", DeValue::Integer(_))
                | ("number", DeValue::Float(_))
                | ("boolean", DeValue::Boolean(_))
                | ("array", DeValue::Array(_))
                | ("object", DeValue::Table(_))
        )
    })
}

fn wanted(schema: &Value) -> String {
    let names: Vec<String> = types(schema)
        .filter(|name| *name != "null")
        .map(|name| match name {
            "object" => "a table".to_owned(),
            "boolean" => "true or false".to_owned(),
            name => article(name),
        })
        .collect();
    names.join(" or ")
}

fn article(noun: &str) -> String {
    let article = if noun.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {noun}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_schema_is_current() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/polyinit.schema.json");
        let current = format!("{:#}\n", schema());
        if std::env::var_os("POLYINIT_BLESS").is_some() {
            std::fs::write(&path, &current).unwrap();
        }
        let published = std::fs::read_to_string(&path).unwrap();
        assert!(published == current, "run: POLYINIT_BLESS=1 cargo test schema");
    }
}
