//! Receipts: what the fleet says that it holds, and what it would like. Read as far as they can be
//! understood; what they name that is not known is passed over.

use coracle_protocol::desired::SCHEMA;
use coracle_protocol::limits::MAX_SMALL_ENVELOPE_BYTES;
use coracle_protocol::receipt::Receipt;
use tracing::debug;

use super::EventLoop;
use crate::execute::Execute;

/// Largest receipt that is read, in bytes.
const MOST: usize = 4 * MAX_SMALL_ENVELOPE_BYTES;

impl<E: Execute> EventLoop<E> {
    pub(super) async fn on_receipt(&mut self, bytes: &[u8]) {
        if bytes.len() > MOST {
            return debug!(bytes = bytes.len(), "a receipt is too large and was passed over");
        }
        let receipt: Receipt = match serde_json::from_slice(bytes) {
            Ok(receipt) => receipt,
            Err(error) => return debug!(%error, "a receipt cannot be read and was passed over"),
        };
        let Receipt { schema, gateway, events, results, hints } = receipt;
        if schema != SCHEMA || gateway != self.gateway {
            return debug!(schema, %gateway, "a receipt is not for us and was passed over");
        }
        if !results.is_empty() {
            self.on_received_results(&results).await;
        }
        if let Some(events) = &events {
            self.on_received_events(events);
        }
        self.on_hints(hints);
    }
}
