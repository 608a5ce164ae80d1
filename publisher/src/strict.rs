//! JSON that is read strictly, with errors that name the field.

use std::{collections::BTreeMap, fmt, marker::PhantomData, str::FromStr};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, MapAccess, Visitor},
};

use crate::{invalid_event::InvalidEvent, sanitised::sanitised};

/// Parses one JSON object; in an error the field's path starts with `at`.
pub(crate) fn from_str<'de, T: Deserialize<'de>>(at: &str, raw: &'de str) -> Result<T, InvalidEvent> {
    // serde would also read the fields from an array, in their order.
    if raw.trim_start().starts_with('[') {
        return Err(InvalidEvent::new(field(at, "."), "must be an object, not an array"));
    }
    let mut json = serde_json::Deserializer::from_str(raw);
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        invalid(at, &path, &error.into_inner())
    })?;
    json.end().map_err(|error| invalid(at, ".", &error))?;
    Ok(parsed)
}

/// serde's message in our form: the field first, then the rule, and little of the text that was sent.
fn invalid(at: &str, path: &str, error: &serde_json::Error) -> InvalidEvent {
    let message = error.to_string();
    // serde_json ends its messages with the position in the text. The path is more useful.
    let message = match message.rsplit_once(" at line ") {
        Some((text, _)) if error.line() > 0 => text,
        _ => &message,
    };
    if error.is_syntax() || error.is_eof() {
        return InvalidEvent::new(field(at, "."), format!("is not valid JSON: {}", sanitised(message)));
    }
    for (prefix, rule) in [
        ("missing field `", "is missing"),
        ("duplicate field `", "is given twice"),
        ("unknown field `", "is not a field here"),
    ] {
        if let Some(rest) = message.strip_prefix(prefix) {
            let name = rest.split("`, expected").next().unwrap_or(rest);
            let name = sanitised(name.trim_end_matches('`'));
            let parent = path.strip_suffix(&name).unwrap_or(path).trim_end_matches('.');
            return InvalidEvent::new(field(at, &join(parent, &name)), rule);
        }
    }
    InvalidEvent::new(field(at, path), rule(message))
}

/// `invalid type: string "x", expected u64` becomes `must be a whole number from 0, not string "x"`.
fn rule(message: &str) -> String {
    let found = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    let Some((found, expected)) = found.and_then(|rest| rest.rsplit_once(", expected ")) else {
        // The message comes from one of our own types.
        return message.to_owned();
    };
    let expected = match expected {
        "u32" | "u64" => "a whole number from 0",
        other if other.starts_with("struct ") || other == "a map" => "an object",
        other => other,
    };
    format!("must be {expected}, not {}", sanitised(found))
}

fn field(at: &str, path: &str) -> String {
    match (at, path) {
        ("", "." | "") => "event".to_owned(),
        (at, "." | "") => at.to_owned(),
        (at, path) => sanitised(&join(at, path)),
    }
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") }
}

/// A value that is written as a string and has a `FromStr` whose error is the rule.
pub(crate) fn parsed<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
}

/// The same, for a field that may be absent (but not null).
pub(crate) fn optional_parsed<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    parsed(deserializer).map(Some)
}

/// A map in which a key given twice is an error, where serde would take the last.
pub(crate) fn map_without_duplicates<'de, D, K>(deserializer: D) -> Result<BTreeMap<K, u64>, D::Error>
where
    D: Deserializer<'de>,
    K: DeserializeOwned + Ord,
{
    struct Unique<K>(PhantomData<K>);

    impl<'de, K: DeserializeOwned + Ord> Visitor<'de> for Unique<K> {
        type Value = BTreeMap<K, u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of counts")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut unique = BTreeMap::new();
            while let Some((key, count)) = map.next_entry()? {
                if unique.insert(key, count).is_some() {
                    return Err(de::Error::custom("must not have a key twice"));
                }
            }
            Ok(unique)
        }
    }

    deserializer.deserialize_map(Unique(PhantomData))
}

/// The same, for a field that may be absent.
pub(crate) fn optional_map_without_duplicates<'de, D, K>(deserializer: D) -> Result<Option<BTreeMap<K, u64>>, D::Error>
where
    D: Deserializer<'de>,
    K: DeserializeOwned + Ord,
{
    map_without_duplicates(deserializer).map(Some)
}
