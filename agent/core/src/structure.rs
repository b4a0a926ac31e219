//! Does a JSON value have the structure of a desired state of schema 1?
//!
//! In: any JSON value. Out: refusals with their places, and separately the fields that schema 1
//! does not have, because a typo must not pass when an order is written while an agent must
//! tolerate the fields of a newer fleet. Judged by the schema that is generated from the protocol's
//! types. Deliberately not here: rules about contents (`desired`).

use coracle_protocol::desired::{JSON_SCHEMA, SCHEMA};
use coracle_protocol::{Code, Refusal};
use jsonschema::ValidationError;
use jsonschema::error::ValidationErrorKind as Kind;
use serde_json::Value;

/// What is wrong with a document's structure.
#[derive(Debug, Default)]
pub(crate) struct Structure {
    pub(crate) refusals: Vec<Refusal>,
    /// JSON Pointers.
    pub(crate) unknown_fields: Vec<String>,
}

/// Finds everything that is wrong with the structure, in document order.
pub(crate) fn check(document: &Value) -> Structure {
    if let Some(refusal) = other_schema(document) {
        return Structure { refusals: vec![refusal], ..Structure::default() };
    }
    let schema: Value =
        serde_json::from_str(JSON_SCHEMA).expect("the schema is checked in as JSON");
    let validator = jsonschema::validator_for(&schema).expect("the schema is checked in as valid");
    let mut found = Structure::default();
    for error in validator.iter_errors(document) {
        sort_in(&error, &mut found);
    }
    found
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

fn sort_in(error: &ValidationError<'_>, found: &mut Structure) {
    let place = error.instance_path().as_str();
    let mut refuse = |path: String, code: Code, message: String| {
        // One reason for each place is enough; the first is the plainest.
        if found.refusals.last().is_none_or(|last| last.path != path) {
            found.refusals.push(Refusal::new(path, code, message));
        }
    };
    match error.kind() {
        Kind::AdditionalProperties { unexpected } => {
            let paths = unexpected.iter().map(|field| format!("{place}/{}", escape(field)));
            found.unknown_fields.extend(paths.map(|path| path.chars().take(200).collect()));
        }
        // Texts are judged in `desired`, with better sentences than a pattern can give.
        Kind::Pattern { .. } | Kind::MaxLength { .. } | Kind::MinLength { .. } => {}
        Kind::Required { property } => {
            let field = property.as_str().unwrap_or_default();
            let path = format!("{place}/{}", escape(field));
            refuse(path, Code::MISSING_FIELD, format!("{field} is missing"));
        }
        Kind::Type { .. } => refuse(place.into(), Code::WRONG_TYPE, wrong_type(error)),
        Kind::MaxItems { limit } => {
            refuse(place.into(), Code::TOO_MANY, format!("more than {limit} entries"));
        }
        Kind::Enum { options } => {
            let message = format!("is {}; must be one of {options}", shown(error.instance()));
            refuse(place.into(), Code::INVALID_VALUE, message);
        }
        Kind::Minimum { limit } => {
            let message = format!("is {}; must be at least {limit}", shown(error.instance()));
            refuse(place.into(), Code::INVALID_VALUE, message);
        }
        Kind::Maximum { limit } => {
            let message = format!("is {}; must be at most {limit}", shown(error.instance()));
            refuse(place.into(), Code::INVALID_VALUE, message);
        }
        Kind::MinItems { .. } => {
            refuse(place.into(), Code::INVALID_VALUE, "must not be empty".into());
        }
        _ => refuse(place.into(), Code::INVALID_VALUE, wrong_value(error)),
    }
}

fn wrong_type(error: &ValidationError<'_>) -> String {
    let found = match error.instance().as_ref() {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    let Kind::Type { kind } = error.kind() else { return format!("is {found}") };
    let wanted = match kind {
        jsonschema::error::TypeKind::Single(wanted) => word(&wanted.to_string()),
        // Everything that may be left out may also be null.
        jsonschema::error::TypeKind::Multiple(several) => several
            .into_iter()
            .map(|wanted| wanted.to_string())
            .filter(|wanted| wanted != "null")
            .map(|wanted| word(&wanted))
            .collect::<Vec<_>>()
            .join(" or "),
    };
    format!("is {found}; must be {wanted}")
}

fn word(json_type: &str) -> String {
    match json_type {
        "string" => "text",
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "true or false",
        "array" => "a list",
        "object" => "an object",
        other => other,
    }
    .into()
}

fn wrong_value(error: &ValidationError<'_>) -> String {
    match error.kind() {
        Kind::Constant { expected_value } => {
            format!("is {}; must be {expected_value}", shown(error.instance()))
        }
        Kind::Format { format } => format!("is {}; must be a {format}", shown(error.instance())),
        _ => error.to_string().chars().take(200).collect(),
    }
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
