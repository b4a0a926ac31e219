//! Judges configurations by JSON Schema, 2020-12 or draft-07 as its `$schema` says, 2020-12 if it says
//! nothing.
//!
//! In: schemas and values from an order, hostile for all that is known. Out: refusals, each with its
//! place in the order. Nothing is ever fetched: what a schema refers to is in the schema itself, or
//! is the metaschema of its version. Patterns are matched in linear time, so look-around and
//! back-references are refused. `format`, `contentEncoding` and `contentMediaType` are annotations
//! and refuse nothing, in either version. Deliberately not here: any limit of time and memory.

use std::collections::BTreeMap;
use std::io;

use coracle_protocol::limits::MAX_REFUSALS;
use coracle_protocol::{Code, Refusal};
use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{
    Draft, PatternOptions, ReferencingError as Unresolved, ValidationError, Validator,
};
use serde_json::Value;

use super::ConfigCheck;
use crate::words::{found_word, wanted_word};

/// Longest template, as JSON in bytes.
pub const MAX_SCHEMA_BYTES: usize = 64 * 1024;

/// Deepest nesting of a template and of a configuration.
pub const MAX_DEPTH: usize = 32;

/// Largest compiled pattern, in bytes.
const MAX_PATTERN_BYTES: usize = 1 << 20;

/// The addresses of the two versions, without scheme and an empty fragment.
const DRAFT_2020_12: &str = "json-schema.org/draft/2020-12/schema";
const DRAFT_7: &str = "json-schema.org/draft-07/schema";

/// Everything in which configurations do not satisfy their templates, and everything that is wrong
/// with the templates, at most [`MAX_REFUSALS`]. A template that several configurations have is
/// judged once.
pub fn evaluate_all(checks: &[ConfigCheck]) -> Vec<Refusal> {
    let mut templates = BTreeMap::new();
    let mut refusals = Vec::new();
    for check in checks {
        let template = templates.entry(check.schema_path.as_str()).or_insert_with(|| {
            let template = compile(&check.schema, &check.schema_path);
            template.map_err(|refusal| refusals.push(refusal)).ok()
        });
        if let Some(template) = template {
            let room = MAX_REFUSALS.saturating_sub(refusals.len());
            refusals.extend(violations(template, check).take(room));
        }
        if refusals.len() >= MAX_REFUSALS {
            break;
        }
    }
    refusals
}

/// Everything in which one configuration does not satisfy its template, or what is wrong with the
/// template; at most [`MAX_REFUSALS`].
pub fn evaluate(check: &ConfigCheck) -> Vec<Refusal> {
    evaluate_all(std::slice::from_ref(check))
}

/// A template, ready for use; or the first thing that is wrong with it.
fn compile(schema: &Value, path: &str) -> Result<Validator, Refusal> {
    let refuse = |place: &str, message: String| {
        Refusal::new(format!("{path}{place}"), Code::TEMPLATE_INVALID, message)
    };
    if is_longer(schema, MAX_SCHEMA_BYTES) {
        let message = format!("the template has more than {MAX_SCHEMA_BYTES} bytes");
        return Err(refuse("", message));
    }
    if is_deeper(schema, MAX_DEPTH) {
        return Err(refuse("", format!("the template is nested deeper than {MAX_DEPTH} levels")));
    }
    check_versions(schema, &mut String::new()).map_err(|(place, found)| {
        let message = format!(
            "$schema is {found}; must be \"https://{DRAFT_2020_12}\" or \"http://{DRAFT_7}#\""
        );
        refuse(&place, message)
    })?;
    let options = jsonschema::options()
        .with_draft(version(schema))
        .offline()
        .should_validate_formats(false)
        .without_content_encoding_support("base64")
        .without_content_media_type_support("application/json")
        .with_pattern_options(PatternOptions::regex().size_limit(MAX_PATTERN_BYTES));
    options.build(schema).map_err(|error| {
        refuse(error.instance_path().as_str(), what_is_wrong_with_template(&error))
    })
}

fn violations<'a>(
    template: &'a Validator,
    check: &'a ConfigCheck,
) -> impl Iterator<Item = Refusal> + 'a {
    let deep = is_deeper(&check.value, MAX_DEPTH).then(|| {
        let message = format!("the configuration is nested deeper than {MAX_DEPTH} levels");
        Refusal::new(&check.value_path, Code::CONFIG_INVALID, message)
    });
    let value = deep.is_none().then_some(&check.value);
    let errors = value.into_iter().flat_map(|value| template.iter_errors(value));
    deep.into_iter().chain(errors.flat_map(|error| refusals(&check.value_path, &error)))
}

/// One error, with a place of its own for each field that it is about.
fn refusals(value_path: &str, error: &ValidationError<'_>) -> Vec<Refusal> {
    let place = format!("{value_path}{}", error.instance_path().as_str());
    let of = |field: &str, message| {
        let field = field.replace('~', "~0").replace('/', "~1");
        Refusal::new(format!("{place}/{field}"), Code::CONFIG_INVALID, message)
    };
    match error.kind() {
        ValidationErrorKind::Required { property } => {
            let field = property.as_str().unwrap_or_default();
            vec![of(field, format!("{field} is missing"))]
        }
        ValidationErrorKind::AdditionalProperties { unexpected }
        | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
            let names = unexpected.iter().take(MAX_REFUSALS);
            names.map(|name| of(name, "the template does not have this field".into())).collect()
        }
        _ => vec![Refusal::new(place, Code::CONFIG_INVALID, what_is_wrong(error))],
    }
}

/// Why a value does not satisfy its template.
fn what_is_wrong(error: &ValidationError<'_>) -> String {
    use ValidationErrorKind as Kind;
    let value = error.instance();
    let is = shown(value);
    match error.kind() {
        Kind::Type { kind } => {
            let wanted: Vec<_> = match kind {
                TypeKind::Single(one) => vec![wanted_word(one.as_str())],
                TypeKind::Multiple(several) => {
                    several.iter().map(|t| wanted_word(t.as_str())).collect()
                }
            };
            format!("is {}; must be {}", found_word(value), wanted.join(" or "))
        }
        Kind::Enum { options } => {
            let options: Vec<_> = options.as_array().into_iter().flatten().map(shown).collect();
            format!("is {is}; must be {}", options.join(" or "))
        }
        Kind::Constant { expected_value } => format!("is {is}; must be {}", shown(expected_value)),
        Kind::Minimum { limit } => format!("is {is}; must be at least {limit}"),
        Kind::Maximum { limit } => format!("is {is}; must be at most {limit}"),
        Kind::ExclusiveMinimum { limit } => format!("is {is}; must be more than {limit}"),
        Kind::ExclusiveMaximum { limit } => format!("is {is}; must be less than {limit}"),
        Kind::MultipleOf { multiple_of } => format!("is {is}; must be a multiple of {multiple_of}"),
        Kind::MinLength { limit } => format!("is {is}; must have at least {limit} characters"),
        Kind::MaxLength { limit } => format!("is {is}; must have at most {limit} characters"),
        Kind::MinItems { limit } => format!("must have at least {limit} entries"),
        Kind::MaxItems { limit } => format!("must have at most {limit} entries"),
        Kind::MinProperties { limit } => format!("must have at least {limit} fields"),
        Kind::MaxProperties { limit } => format!("must have at most {limit} fields"),
        Kind::Pattern { pattern } => format!("is {is}; must fit the pattern {pattern}"),
        Kind::AnyOf { .. } | Kind::OneOfNotValid { .. } => {
            format!("is {is}, which fits none of the template's alternatives")
        }
        Kind::OneOfMultipleValid { .. } => {
            format!("is {is}, which fits more than one of the template's alternatives")
        }
        Kind::Not { .. } => format!("is {is}, which the template excludes"),
        // What the library says of an object that is to have no fields at all.
        Kind::FalseSchema if error.schema_path().as_str().ends_with("/additionalProperties") => {
            "must have no fields".into()
        }
        Kind::FalseSchema => "the template allows nothing here".into(),
        Kind::UniqueItems => "has an entry twice".into(),
        Kind::Contains => "has no entry that the template asks for".into(),
        Kind::AdditionalItems { limit } => format!("must have at most {limit} entries"),
        Kind::UnevaluatedItems { .. } => "has entries that the template does not have".into(),
        Kind::PropertyNames { error } => {
            format!("has a field whose name does not fit: {}", what_is_wrong(error))
        }
        _ => error.masked_with("the value").to_string(),
    }
}

fn what_is_wrong_with_template(error: &ValidationError<'_>) -> String {
    let value = || shown(error.instance());
    match error.kind() {
        ValidationErrorKind::Format { format } if format == "regex" => format!(
            "pattern {} cannot be used: it must be a regular expression without look-around and \
             back-references, and not too large",
            value()
        ),
        ValidationErrorKind::Referencing(problem) => match problem {
            Unresolved::Unretrievable { uri, .. } => {
                format!("the template refers to {uri}, which is not in it; nothing is fetched")
            }
            Unresolved::PointerToNowhere { pointer } => {
                format!("the template refers to {pointer}, which it does not have")
            }
            Unresolved::NoSuchAnchor { anchor } | Unresolved::InvalidAnchor { anchor } => {
                format!("the template refers to the anchor {anchor}, which it does not have")
            }
            other => format!("the template refers to what it does not have: {other}"),
        },
        _ => format!("the template is no JSON Schema: {}", what_is_wrong(error)),
    }
}

/// Which version a template says it has.
fn version(schema: &Value) -> Draft {
    let named = schema.get("$schema").and_then(Value::as_str).unwrap_or_default();
    match address(named) == DRAFT_7 {
        true => Draft::Draft7,
        false => Draft::Draft202012,
    }
}

fn address(uri: &str) -> &str {
    let uri = uri.strip_suffix('#').unwrap_or(uri);
    uri.strip_prefix("https://").or_else(|| uri.strip_prefix("http://")).unwrap_or(uri)
}

/// Finds a `$schema`, also of a schema inside the schema, that names a version that is not taken:
/// its place in the schema and what it is.
fn check_versions(schema: &Value, place: &mut String) -> Result<(), (String, String)> {
    let length = place.len();
    match schema {
        Value::Object(fields) => {
            for (name, value) in fields {
                // These hold values, not schemas.
                if ["const", "enum", "default", "examples"].contains(&name.as_str()) {
                    continue;
                }
                place.push('/');
                place.push_str(&name.replace('~', "~0").replace('/', "~1"));
                if let ("$schema", Value::String(uri)) = (name.as_str(), value) {
                    if ![DRAFT_2020_12, DRAFT_7].contains(&address(uri)) {
                        return Err((place.clone(), shown(value)));
                    }
                }
                check_versions(value, place)?;
                place.truncate(length);
            }
        }
        Value::Array(items) => {
            for (i, value) in items.iter().enumerate() {
                place.push_str(&format!("/{i}"));
                check_versions(value, place)?;
                place.truncate(length);
            }
        }
        _ => {}
    }
    Ok(())
}

/// Whether objects and lists are nested deeper than `levels`.
fn is_deeper(value: &Value, levels: usize) -> bool {
    let below = |value: &Value| levels == 0 || is_deeper(value, levels - 1);
    match value {
        Value::Object(fields) => levels == 0 || fields.values().any(below),
        Value::Array(items) => levels == 0 || items.iter().any(below),
        _ => false,
    }
}

/// Whether a value takes more than `limit` bytes as JSON; the rest is not written anywhere.
fn is_longer(value: &Value, limit: usize) -> bool {
    struct Room(usize);
    impl io::Write for Room {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    serde_json::to_writer(Room(limit), value).is_err()
}

/// A value short enough for a sentence.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => found_word(value).to_owned(),
        _ => {
            let text = value.to_string();
            let short = text.chars().count() <= 60;
            if short { text } else { text.chars().take(59).chain(['…']).collect() }
        }
    }
}

#[cfg(test)]
mod tests;
