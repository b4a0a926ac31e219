//! The signed envelope of every order: DSSE, the Dead Simple Signing Envelope, version 1.0.2
//! (<https://github.com/secure-systems-lab/dsse/blob/v1.0.2/protocol.md>).
//!
//! The same envelope is published over MQTT, carried on a USB stick and given to `coracle apply`.
//! Deliberately not here: the signature arithmetic; [`Envelope::signed_bytes`] gives what is signed.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::limits::{
    MAX_COMMAND_BYTES, MAX_DOCUMENT_BYTES, MAX_ENVELOPE_BYTES, MAX_SIGNATURES,
    MAX_SMALL_ENVELOPE_BYTES,
};
use crate::refusal::{Code, Refusal};

/// Media type of a desired state of schema 1.
pub const DESIRED_PAYLOAD_TYPE: &str = "application/vnd.coracle.desired.v1+json";

/// Media type of a command of schema 1.
pub const COMMAND_PAYLOAD_TYPE: &str = "application/vnd.coracle.command.v1+json";

/// Media type of a pointer to a large order, of schema 1.
pub const POINTER_PAYLOAD_TYPE: &str = "application/vnd.coracle.pointer.v1+json";

/// A payload with its type and its signatures. JSON on the wire, binary fields in base64 (RFC 4648).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Envelope {
    /// Media type of the payload; part of what is signed.
    #[serde(rename = "payloadType")]
    pub payload_type: String,
    /// The document, byte for byte as signed.
    #[serde(with = "base64_bytes")]
    #[cfg_attr(
        feature = "schema",
        schemars(with = "String", extend("contentEncoding" = "base64"))
    )]
    pub payload: Vec<u8>,
    /// At least one signature over [`Envelope::signed_bytes`].
    pub signatures: Vec<Signature>,
}

/// One signature of an [`Envelope`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Signature {
    /// Which key made it: a hint, never trusted by itself.
    #[serde(default)]
    pub keyid: String,
    /// Ed25519 signature (RFC 8032), 64 bytes.
    #[serde(with = "base64_bytes")]
    #[cfg_attr(
        feature = "schema",
        schemars(with = "String", extend("contentEncoding" = "base64"))
    )]
    pub sig: Vec<u8>,
}

impl Envelope {
    /// Reads the envelope of a desired state and checks its sizes, not its signatures.
    ///
    /// # Errors
    /// One refusal of the document as a whole: too large, malformed, of another payload type, or
    /// without a signature.
    pub fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        Self::decode_of(DESIRED_PAYLOAD_TYPE, bytes)
    }

    /// The same for a payload of type `payload_type`: a desired state, a command or a pointer.
    ///
    /// # Errors
    /// See [`Envelope::decode`].
    pub fn decode_of(payload_type: &str, bytes: &[u8]) -> Result<Self, Refusal> {
        let (what, most, most_inside) = match payload_type {
            COMMAND_PAYLOAD_TYPE => ("command", MAX_SMALL_ENVELOPE_BYTES, MAX_COMMAND_BYTES),
            POINTER_PAYLOAD_TYPE => ("pointer", MAX_SMALL_ENVELOPE_BYTES, MAX_COMMAND_BYTES),
            _ => ("order", MAX_ENVELOPE_BYTES, MAX_DOCUMENT_BYTES),
        };
        if bytes.len() > most {
            return Err(too_large(&format!("signed {what}"), bytes.len(), most));
        }
        let envelope: Self = serde_json::from_slice(bytes).map_err(|error| {
            let message = format!("not a signed {what} (DSSE envelope): {error}");
            Refusal::whole(Code::MALFORMED, message)
        })?;
        if envelope.payload_type != payload_type {
            let found: String = envelope.payload_type.chars().take(80).collect();
            return Err(Refusal::whole(
                Code::WRONG_PAYLOAD_TYPE,
                format!("payload type is {found:?}; expected {payload_type:?}"),
            ));
        }
        if envelope.payload.len() > most_inside {
            let inside = if what == "order" { "desired state" } else { what };
            return Err(too_large(inside, envelope.payload.len(), most_inside));
        }
        match envelope.signatures.len() {
            0 => Err(Refusal::whole(Code::UNSIGNED, format!("the {what} carries no signature"))),
            n if n > MAX_SIGNATURES => Err(Refusal::whole(
                Code::TOO_MANY,
                format!("{n} signatures; at most {MAX_SIGNATURES} are allowed"),
            )),
            _ => Ok(envelope),
        }
    }

    /// The type of what is inside, as far as that can be told without reading the rest.
    pub fn payload_type_of(bytes: &[u8]) -> Option<String> {
        #[derive(Deserialize)]
        struct Head {
            #[serde(rename = "payloadType")]
            payload_type: String,
        }
        serde_json::from_slice::<Head>(bytes).ok().map(|head| head.payload_type)
    }

    /// The envelope as it is published: JSON without white space.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and lists of them always serialise")
    }

    /// What the signatures are made over: DSSE's pre-authentication encoding.
    pub fn signed_bytes(&self) -> Vec<u8> {
        pre_authentication_encoding(&self.payload_type, &self.payload)
    }
}

/// `"DSSEv1" SP LEN(type) SP type SP LEN(payload) SP payload`, lengths in ASCII decimal.
pub fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes =
        format!("DSSEv1 {} {} {} ", payload_type.len(), payload_type, payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

/// The refusal of a document of `size` bytes where `limit` is allowed.
pub fn too_large(what: &str, size: usize, limit: usize) -> Refusal {
    Refusal::whole(Code::TOO_LARGE, format!("{what} of {size} bytes; at most {limit} are allowed"))
}

mod base64_bytes {
    use super::*;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(d)?;
        STANDARD.decode(text).map_err(|error| de::Error::custom(format_args!("base64: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_is_the_one_of_the_dsse_specification() {
        // The example of the specification's protocol.md.
        assert_eq!(
            pre_authentication_encoding("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    fn envelope(payload: Vec<u8>) -> Envelope {
        Envelope {
            payload_type: DESIRED_PAYLOAD_TYPE.into(),
            payload,
            signatures: vec![Signature { keyid: "ab".into(), sig: vec![7; 64] }],
        }
    }

    #[test]
    fn reads_what_it_writes() {
        let sent = envelope(b"{}".to_vec());
        assert_eq!(Envelope::decode(&sent.encode()).unwrap(), sent);
    }

    #[test]
    fn the_largest_document_fits_the_largest_envelope_with_all_signatures() {
        let mut sent = envelope(vec![b'x'; MAX_DOCUMENT_BYTES]);
        let signature = Signature { keyid: "0".repeat(64), sig: vec![7; 64] };
        sent.signatures = vec![signature; MAX_SIGNATURES];
        assert!(Envelope::decode(&sent.encode()).is_ok());
        sent.payload.push(b'x');
        assert_eq!(Envelope::decode(&sent.encode()).unwrap_err().code, Code::TOO_LARGE);
    }

    #[test]
    fn bad_envelopes_are_refused_with_their_reason() {
        let refused = |bytes: &[u8]| Envelope::decode(bytes).unwrap_err().code;
        assert_eq!(refused(b"nonsense"), Code::MALFORMED);
        assert_eq!(refused(&vec![b' '; MAX_ENVELOPE_BYTES + 1]), Code::TOO_LARGE);
        let other = Envelope { payload_type: "text/plain".into(), ..envelope(vec![]) };
        assert_eq!(refused(&other.encode()), Code::WRONG_PAYLOAD_TYPE);
        let unsigned = Envelope { signatures: vec![], ..envelope(vec![]) };
        assert_eq!(refused(&unsigned.encode()), Code::UNSIGNED);
        let mut many = envelope(vec![]);
        many.signatures = vec![many.signatures[0].clone(); MAX_SIGNATURES + 1];
        assert_eq!(refused(&many.encode()), Code::TOO_MANY);
        let bad = br#"{"payloadType":"x","payload":"***","signatures":[]}"#;
        assert_eq!(refused(bad), Code::MALFORMED);
    }
}
