//! Which network messages a component wants: between the manifest, which says it, and the router, which asks.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether, or which, network messages go to a component.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Messages {
    /// All that no other component wants more, or none.
    All(bool),
    /// Those that match one of these.
    Some(Vec<Subscription>),
}

/// What a message must be like: each key here must be the message's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Subscription {
    /// Its type: `POST`, `AGGREGATE`, `STORE`, …
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Its channel.
    pub channel: Option<String>,
    /// Its sender's address.
    pub sender: Option<String>,
}

/// What subscriptions ask of a message.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Subject {
    #[serde(rename = "type")]
    kind: Option<String>,
    channel: Option<String>,
    sender: Option<String>,
}

impl Default for Messages {
    fn default() -> Self {
        Self::All(false)
    }
}

impl Messages {
    /// Whether any message is wanted.
    pub fn any(&self) -> bool {
        match self {
            Self::All(all) => *all,
            Self::Some(subscriptions) => !subscriptions.is_empty(),
        }
    }

    /// Whether that depends on the message.
    pub fn asks(&self) -> bool {
        matches!(self, Self::Some(_))
    }

    /// How much a message of this subject is wanted: the number of keys that the best subscription names; `None` if not
    /// at all.
    pub fn wants(&self, subject: &Subject) -> Option<usize> {
        match self {
            Self::All(all) => all.then_some(0),
            Self::Some(subscriptions) => subscriptions.iter().filter_map(|one| one.wants(subject)).max(),
        }
    }
}

impl Subscription {
    fn wants(&self, subject: &Subject) -> Option<usize> {
        let pairs = [
            (&self.kind, &subject.kind),
            (&self.channel, &subject.channel),
            (&self.sender, &subject.sender),
        ];
        let fits = pairs.iter().all(|(wanted, is)| wanted.is_none() || wanted == is);
        fits.then(|| pairs.iter().filter(|(wanted, _)| wanted.is_some()).count())
    }
}

/// `type=POST channel=shop`; nothing where it asks for nothing.
impl fmt::Display for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = [
            ("type", &self.kind),
            ("channel", &self.channel),
            ("sender", &self.sender),
        ];
        let asked = keys
            .iter()
            .filter_map(|(key, value)| Some(format!("{key}={}", value.as_ref()?)));
        f.write_str(&asked.collect::<Vec<_>>().join(" "))
    }
}

impl Subject {
    /// The subject of the message with this text; it is empty if that is no JSON object.
    pub fn of(message: &str) -> Self {
        serde_json::from_str(message).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subscription_that_says_most_counts() {
        let wants = |messages: &str, message: &str| {
            serde_json::from_str::<Messages>(messages)
                .unwrap()
                .wants(&Subject::of(message))
        };
        let message = r#"{"type": "POST", "channel": "shop", "sender": "0x1", "content": {}}"#;
        assert_eq!(wants("true", message), Some(0));
        assert_eq!(wants("false", message), None);
        assert_eq!(
            wants(r#"[{"channel": "shop"}, {"channel": "shop", "type": "POST"}]"#, message),
            Some(2)
        );
        assert_eq!(wants(r#"[{"channel": "other"}]"#, message), None);
        assert_eq!(wants(r#"[{}]"#, message), Some(0));
        assert_eq!(wants(r#"[{"channel": "shop"}]"#, "no JSON"), None);
        assert_eq!(wants(r#"[]"#, message), None);
    }
}
