//! Does a JSON value have the structure of a desired state of schema 1?
//!
//! In: any JSON value. Out: refusals with their places, and separately the fields that schema 1
//! does not have, because a typo must not pass when an order is written while an agent must
//! tolerate the fields of a newer fleet. Judged by the schema that is generated from the protocol's
//! types, of which only the few keywords are read that such a schema has: a general validator would
//! more than double the memory that an idle agent holds (docs/adr/0005). Deliberately not here:
//! rules about contents, texts among them (`desired`).

use coracle_protocol::desired::{JSON_SCHEMA, SCHEMA};
use coracle_protocol::{Code, Refusal};
use serde_json::{Map, Value};

use crate::words::{found_word, wanted_word};

/// Longest path of an unknown field that is kept, in characters.
const MAX_PATH: usize = 200;

/// What is wrong with a document's structure.
#[derive(Debug, Default)]
pub(crate) struct Structure {
    pub(crate) refusals: Vec<Refusal>,
    /// JSON Pointers.
    pub(crate) unknown_fields: Vec<String>,
}

/// Finds everything that is wrong with the structure.
pub(crate) fn check(document: &Value) -> Structure {
    if let Some(refusal) = other_schema(document) {
        return Structure { refusals: vec![refusal], ..Structure::default() };
    }
    let schema: Value = serde_json::from_str(JSON_SCHEMA).expect("it is checked in as JSON");
    let mut walk = Walk { schema: &schema, found: Structure::default() };
    walk.value(&schema, document, "");
    walk.found
}

/// A document of another major version is judged by nothing but that.
fn other_schema(document: &Value) -> Option<Refusal> {
    let version = document.get("schema")?;
    if !version.is_u64() || version.as_u64() == Some(u64::from(SCHEMA)) {
        return None;
    }
    let message =
        format!("schema {version} is not known to this version; it reads schema {SCHEMA}");
    Some(Refusal::new("/schema", Code::UNKNOWN_SCHEMA, message))
}

struct Walk<'a> {
    schema: &'a Value,
    found: Structure,
}

impl<'a> Walk<'a> {
    /// Judges one value. `rule` is the part of the schema that it must fit.
    fn value(&mut self, rule: &'a Value, value: &Value, place: &str) {
        let rule = match optional(rule) {
            Some(_) if value.is_null() => return,
            Some(inner) => self.resolve(inner),
            None => self.resolve(rule),
        };
        let wanted = types(rule);
        if !wanted.is_empty() && !wanted.iter().any(|wanted| fits(wanted, value)) {
            let wanted: Vec<_> =
                wanted.into_iter().filter(|wanted| *wanted != "null").map(wanted_word).collect();
            let message = format!("is {}; must be {}", found_word(value), wanted.join(" or "));
            return self.refuse(place, Code::WRONG_TYPE, message);
        }
        if let Some(wanted) = rule.get("const").filter(|wanted| *wanted != value) {
            let message = format!("is {}; must be {wanted}", shown(value));
            return self.refuse(place, Code::INVALID_VALUE, message);
        }
        if let Some(message) = outside(rule, value) {
            return self.refuse(place, Code::INVALID_VALUE, message);
        }
        match value {
            Value::Object(fields) => self.object(rule, fields, place),
            Value::Array(items) => self.array(rule, items, place),
            _ => {}
        }
    }

    fn object(&mut self, rule: &'a Value, fields: &Map<String, Value>, place: &str) {
        for field in rule.get("required").and_then(Value::as_array).into_iter().flatten() {
            let field = field.as_str().unwrap_or_default();
            if !fields.contains_key(field) {
                let path = format!("{place}/{}", escape(field));
                self.refuse(&path, Code::MISSING_FIELD, format!("{field} is missing"));
            }
        }
        for (field, value) in fields {
            let path = format!("{place}/{}", escape(field));
            let known = rule.get("properties").and_then(|known| known.get(field));
            match known.or_else(|| rule.get("additionalProperties")) {
                Some(Value::Bool(false)) => {
                    self.found.unknown_fields.push(path.chars().take(MAX_PATH).collect());
                }
                Some(rule) => self.value(rule, value, &path),
                None => {}
            }
        }
    }

    fn array(&mut self, rule: &'a Value, items: &[Value], place: &str) {
        let limit = |keyword| rule.get(keyword).and_then(Value::as_u64);
        if limit("minItems").is_some_and(|least| (items.len() as u64) < least) {
            return self.refuse(place, Code::INVALID_VALUE, "must not be empty".into());
        }
        if let Some(most) = limit("maxItems").filter(|most| items.len() as u64 > *most) {
            return self.refuse(place, Code::TOO_MANY, format!("more than {most} entries"));
        }
        if let Some(rule) = rule.get("items") {
            for (i, item) in items.iter().enumerate() {
                self.value(rule, item, &format!("{place}/{i}"));
            }
        }
    }

    /// Follows `#/$defs/NAME`.
    fn resolve(&self, rule: &'a Value) -> &'a Value {
        let target = rule.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#'));
        target.and_then(|pointer| self.schema.pointer(pointer)).unwrap_or(rule)
    }

    #[cfg_attr(test, track_caller)]
    fn refuse(&mut self, path: &str, code: Code, message: String) {
        #[cfg(test)]
        crate::refused::record();
        self.found.refusals.push(Refusal::new(path, code, message));
    }
}

/// The rule for a value that may also be null, which is how a schema says that a part can be left
/// out.
fn optional(rule: &Value) -> Option<&Value> {
    let alternatives = rule.get("anyOf")?.as_array()?;
    alternatives.iter().find(|alternative| alternative.get("type") != Some(&"null".into()))
}

/// The JSON types that a rule allows; none if it allows all.
fn types(rule: &Value) -> Vec<&str> {
    match rule.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn fits(wanted: &str, value: &Value) -> bool {
    match wanted {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    }
}

/// Why a value is not one of those allowed.
fn outside(rule: &Value, value: &Value) -> Option<String> {
    if let Some(options) = choices(rule).filter(|options| !options.contains(&value)) {
        let options: Vec<_> = options.into_iter().map(ToString::to_string).collect();
        return Some(format!("is {}; must be {}", shown(value), options.join(" or ")));
    }
    let number = value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from))?;
    let limit = |keyword| rule.get(keyword).and_then(Value::as_u64).map(i128::from);
    if let Some(least) = limit("minimum").filter(|least| number < *least) {
        return Some(format!("is {number}; must be at least {least}"));
    }
    let most = limit("maximum").filter(|most| number > *most)?;
    Some(format!("is {number}; must be at most {most}"))
}

/// The values that a rule lists: as `enum`, or as `oneOf` with a description for each.
fn choices(rule: &Value) -> Option<Vec<&Value>> {
    if let Some(values) = rule.get("enum").and_then(Value::as_array) {
        return Some(values.iter().collect());
    }
    let alternatives = rule.get("oneOf")?.as_array()?;
    alternatives.iter().map(|alternative| alternative.get("const")).collect()
}

/// A value short enough for a sentence.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(59).chain(['…']).collect() }
}

/// A field's name as a JSON Pointer token (RFC 6901).
fn escape(field: &str) -> String {
    field.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests;
