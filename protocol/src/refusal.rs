//! Why a document was refused: the place, a stable code, a sentence.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A stable, machine-readable reason, for example `duplicate-name`.
///
/// Codes never change their meaning. A reader may meet codes of a newer agent.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
    /// An artifact's name cannot be parsed.
    pub const INVALID_ARTIFACT: Code = Code::new("invalid-artifact");
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
    /// A workload is made from a type that the order does not have.
    pub const UNKNOWN_TYPE: Code = Code::new("unknown-type");
    /// A field cannot be there together with another one.
    pub const CONFLICTING_FIELD: Code = Code::new("conflicting-field");
    /// A mount that a container requires is not given.
    pub const MISSING_MOUNT: Code = Code::new("missing-mount");
    /// A mount is given that no container requires.
    pub const UNKNOWN_MOUNT: Code = Code::new("unknown-mount");
    /// A mount is given that the container cannot use.
    pub const MISMATCHED_MOUNT: Code = Code::new("mismatched-mount");
    /// A path in a container cannot be used, or is used twice.
    pub const INVALID_PATH: Code = Code::new("invalid-path");
    /// A port that a container requires is not given.
    pub const MISSING_PORT: Code = Code::new("missing-port");
    /// A port is given that no container listens on.
    pub const UNKNOWN_PORT: Code = Code::new("unknown-port");
    /// Two workloads, or two replicas, want the same port.
    pub const PORT_CLASH: Code = Code::new("port-clash");
    /// A port is taken on the gateway by something else.
    pub const PORT_IN_USE: Code = Code::new("port-in-use");
    /// A variable refers to something that the order does not have.
    pub const UNKNOWN_REFERENCE: Code = Code::new("unknown-reference");
    /// A config map is named that the order does not have.
    pub const UNKNOWN_CONFIG_MAP: Code = Code::new("unknown-config-map");
    /// A secret is named that the order does not have.
    pub const UNKNOWN_SECRET: Code = Code::new("unknown-secret");
    /// A workload is named that the order does not have.
    pub const UNKNOWN_WORKLOAD: Code = Code::new("unknown-workload");
    /// Workloads wait for each other in a circle.
    pub const DEPENDENCY_CYCLE: Code = Code::new("dependency-cycle");
    /// A container is named that the workload does not have.
    pub const UNKNOWN_CONTAINER: Code = Code::new("unknown-container");
    /// A secret was not sealed for this gateway, or is damaged.
    pub const BAD_SECRET: Code = Code::new("secret-not-for-this-gateway");
    /// A configuration is given and there is no template for it.
    pub const UNEXPECTED_CONFIG: Code = Code::new("unexpected-config");
    /// The limits of all containers together exceed the gateway's memory.
    pub const NOT_ENOUGH_MEMORY: Code = Code::new("not-enough-memory");
    /// The accepted order could not be stored.
    pub const NOT_STORED: Code = Code::new("not-stored");

    /// The gateway's policy does not let an order ask for this.
    pub const NOT_ALLOWED: Code = Code::new("not-allowed");
    /// The gateway has no resource, or no seccomp profile, of this name.
    pub const UNKNOWN_RESOURCE: Code = Code::new("unknown-resource");
    /// A configuration does not satisfy its template.
    pub const CONFIG_INVALID: Code = Code::new("config-invalid");
    /// A configuration's template cannot be used.
    pub const TEMPLATE_INVALID: Code = Code::new("template-invalid");
    /// Judging by a configuration's template takes more time or memory than the gateway gives it.
    pub const TEMPLATE_TOO_COSTLY: Code = Code::new("template-too-costly");
    /// Nobody can judge by a configuration's template: the program for it is missing, or gave no
    /// answer.
    pub const NOT_JUDGED: Code = Code::new("not-judged");

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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
