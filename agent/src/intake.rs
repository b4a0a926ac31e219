//! The door for orders: signature, gateway, generation, then the rules.
//!
//! In: a signed order from wherever it came. Out: what it orders, or every reason against it.
//! Deliberately not here: storing it.

use coracle_core::desired::{Accepted, Desired, Read, Reading, read};
use coracle_core::facts::GatewayFacts;
use coracle_protocol::{Code, GatewayId, Refusal};
use ring::digest::{Digest, SHA256, digest};
use serde_json::Value;

use crate::trust::TrustedKeys;

/// An order that may be put into force.
#[derive(Debug)]
pub struct Order {
    /// What it orders.
    pub desired: Desired,
    /// JSON Pointers of fields that were ignored.
    pub unknown_fields: Vec<String>,
    /// SHA-256 of the document inside the envelope.
    pub payload: Digest,
}

/// An order that is not put into force.
#[derive(Debug)]
pub struct NotTaken {
    /// Its generation, where it could be read, its signature was good, and it is for this gateway.
    pub generation: Option<u64>,
    /// Every reason; none if it is in force already.
    pub refusals: Vec<Refusal>,
}

/// What is known of the orders in force.
#[derive(Clone, Copy, Debug)]
pub struct InForce {
    /// Highest generation accepted so far; 0 before the first.
    pub generation: u64,
    /// SHA-256 of its document, if it is known.
    pub payload: Option<Digest>,
}

/// An order that is signed, new, and for this gateway; what it says is still to be judged.
#[derive(Debug)]
pub struct Opened {
    /// The document, with every reason against it so far.
    pub read: Read,
    generation: Option<u64>,
    payload: Digest,
}

impl Opened {
    /// The verdict, with what was found elsewhere.
    ///
    /// # Errors
    /// It is refused.
    pub fn verdict(self, found: Vec<Refusal>) -> Result<Order, NotTaken> {
        let Self { read, generation, payload } = self;
        match read.verdict(found) {
            Ok(Accepted { desired, unknown_fields, .. }) => {
                Ok(Order { desired, unknown_fields, payload })
            }
            Err(refusals) => Err(NotTaken { generation, refusals }),
        }
    }
}

/// Opens an order that just came. With `facts` it is judged by what the gateway has.
///
/// # Errors
/// It is in force already, or is refused for what can be told before it is read.
pub fn open(
    envelope: &[u8],
    keys: &TrustedKeys,
    gateway: GatewayId,
    in_force: InForce,
    facts: Option<&GatewayFacts>,
) -> Result<Opened, NotTaken> {
    let refuse = |generation, refusals| NotTaken { generation, refusals };
    let verified = keys.verify(envelope).map_err(|refusal| refuse(None, vec![refusal]))?;
    let payload = payload_digest(&verified.payload);
    let document: Value = serde_json::from_slice(&verified.payload).map_err(|error| {
        let message = format!("the document inside the envelope is not JSON: {error}");
        refuse(None, vec![Refusal::whole(Code::MALFORMED, message)])
    })?;
    let generation = document.get("generation").and_then(Value::as_u64);
    if let Some(refusal) = other_gateway(&document, gateway) {
        return Err(refuse(None, vec![refusal]));
    }
    let is_known = in_force.payload.is_some_and(|known| known.as_ref() == payload.as_ref());
    if let Some(generation) = generation.filter(|generation| *generation <= in_force.generation) {
        let refusals = match generation == in_force.generation {
            true if is_known => Vec::new(),
            true => vec![Refusal::new(
                "/generation",
                Code::GENERATION_REUSED,
                format!("generation {generation} was accepted already with another content"),
            )],
            false => vec![Refusal::new(
                "/generation",
                Code::OLD_GENERATION,
                format!(
                    "generation {generation} is older than {}, which was accepted already",
                    in_force.generation
                ),
            )],
        };
        return Err(refuse(Some(generation), refusals));
    }
    let read = read(&document, Reading::Tolerant, facts);
    Ok(Opened { read, generation, payload })
}

fn other_gateway(document: &Value, gateway: GatewayId) -> Option<Refusal> {
    if gateway.is_nil() {
        let message = "this gateway was not provisioned: it does not know its own id";
        return Some(Refusal::new("/gateway", Code::WRONG_GATEWAY, message));
    }
    let named: GatewayId = document.get("gateway")?.as_str()?.parse().ok()?;
    (named != gateway).then(|| {
        let message = format!("the order is for gateway {named}; this is {gateway}");
        Refusal::new("/gateway", Code::WRONG_GATEWAY, message)
    })
}

/// Digest of a document, to tell it from another with the same generation.
pub fn payload_digest(payload: &[u8]) -> Digest {
    digest(&SHA256, payload)
}
