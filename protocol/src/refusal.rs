//! Why a document was refused: the place, a stable code, a sentence.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A stable, machine-readable reason, for example `duplicate-name`.
///
/// Codes never change their meaning. A reader may meet codes of a newer agent.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Code(Cow<'static, str>);

impl Code {
    /// Not JSON (or YAML), or not a signed envelope.
    pub const MALFORMED: Code = Code::new("malformed");
    /// The document is larger than its limit.
    pub const TOO_LARGE: Code = Code::new("too-large");
    /// `schema` is a version this agent does not know.
    pub const UNKNOWN_SCHEMA: Code = Code::new("unknown-schema");
    /// A field that schema 1 does not have; refused when signing and validating, tolerated on the wire.
    pub const UNKNOWN_FIELD: Code = Code::new("unknown-field");
    /// A required field is missing.
    pub const MISSING_FIELD: Code = Code::new("missing-field");
    /// A value has the wrong JSON type.
    pub const WRONG_TYPE: Code = Code::new("wrong-type");
    /// A value is not one of those allowed, or out of range.
    pub const INVALID_VALUE: Code = Code::new("invalid-value");
    /// A name breaks the rules for names.
    pub const INVALID_NAME: Code = Code::new("invalid-name");
    /// A name occurs twice.
    pub const DUPLICATE_NAME: Code = Code::new("duplicate-name");
    /// An image reference cannot be parsed.
    pub const INVALID_IMAGE: Code = Code::new("invalid-image");
    /// A list, a map or a text is longer than its limit.
    pub const TOO_MANY: Code = Code::new("too-many");
    /// `requires` names a feature that this agent lacks.
    pub const UNSUPPORTED_FEATURE: Code = Code::new("unsupported-feature");
    /// The order is for another gateway.
    pub const WRONG_GATEWAY: Code = Code::new("wrong-gateway");
    /// The order carries no signature.
    pub const UNSIGNED: Code = Code::new("unsigned");
    /// No signature was made by a key that this gateway trusts.
    pub const UNTRUSTED_KEY: Code = Code::new("untrusted-key");
    /// A signature by a trusted key does not fit the content.
    pub const BAD_SIGNATURE: Code = Code::new("bad-signature");
    /// The envelope's payload is not a desired state.
    pub const WRONG_PAYLOAD_TYPE: Code = Code::new("wrong-payload-type");
    /// The generation is older than the one accepted already.
    pub const OLD_GENERATION: Code = Code::new("old-generation");
    /// The generation was accepted already with another content.
    pub const GENERATION_REUSED: Code = Code::new("generation-reused");
    /// The accepted order could not be stored.
    pub const NOT_STORED: Code = Code::new("not-stored");

    /// A code from its kebab-case name.
    pub const fn new(name: &'static str) -> Self {
        Self(Cow::Borrowed(name))
    }

    /// The kebab-case name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One reason why a document was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Where, as a JSON Pointer (RFC 6901) into the desired state; empty for the document as a whole.
    pub path: String,
    /// Why, for programs.
    pub code: Code,
    /// Why, and what would be right, for people.
    pub message: String,
}

impl Refusal {
    /// A refusal of the place at `path`. Path and message are shortened to 300 characters: both may
    /// hold pieces of the document.
    pub fn new(path: impl Into<String>, code: Code, message: impl Into<String>) -> Self {
        Self { path: shortened(path.into()), code, message: shortened(message.into()) }
    }

    /// A refusal of the document as a whole.
    pub fn whole(code: Code, message: impl Into<String>) -> Self {
        Self::new("", code, message)
    }
}

fn shortened(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(300) {
        text.truncate(end);
        text.push('…');
    }
    text
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.path.is_empty() { "(document)" } else { &self.path };
        write!(f, "{place}: {} [{}]", self.message, self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_hostile_document_are_shortened() {
        let refusal = Refusal::new("/ä".repeat(50_000), Code::MALFORMED, "ß".repeat(50_000));
        assert_eq!(refusal.path.chars().count(), 301);
        assert_eq!(refusal.message.chars().count(), 301);
    }
}
