//! Receipts: what the fleet holds, and what it would like.

use coracle_protocol::desired::SCHEMA;
use coracle_protocol::receipt::Receipt;
use tracing::warn;

use super::EventLoop;
use crate::execute::Execute;

impl<E: Execute> EventLoop<E> {
    /// A message on the topic of receipts.
    pub(super) fn on_receipt(&mut self, payload: &[u8]) {
        let receipt: Receipt = match serde_json::from_slice(payload) {
            Ok(receipt) => receipt,
            Err(error) => return warn!(%error, "a receipt cannot be read"),
        };
        if receipt.schema != SCHEMA || receipt.gateway != self.gateway {
            return warn!(schema = receipt.schema, "a receipt is not for this gateway");
        }
        if let Some(events) = &receipt.events {
            self.on_received_events(events);
        }
        self.on_hints(receipt.hints);
    }
}
