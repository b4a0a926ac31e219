//! Sends what commands give, piece by piece: the next batch is made when the one before it has gone,
//! so that a slow link holds up who gives and fills no memory. After a reconnect it goes on where it
//! was.

use std::time::Duration;

use coracle_core::budget::TrafficKind;
use coracle_core::command::End;
use coracle_protocol::CommandId;
use coracle_protocol::command::{OutputPiece, OutputSummary};
use coracle_protocol::limits::MAX_PIECE_BYTES;
use coracle_protocol::piece;
use coracle_protocol::topic::Kind;
use ring::digest::{Context, SHA256};

use super::{Active, Done};
use crate::clock::runtime_now;
use crate::event_loop::parcels::{Freight, parcel};
use crate::event_loop::{self, EventLoop};
use crate::execute::Execute;
use crate::fault::fault_point;
use crate::link::{Delivery, Parcel};
use crate::output::{Batch, Lease, Output, Source};

/// Room in a packet for its topic, its properties and the head of a piece.
const HEAD_BYTES: usize = 512;

/// An output under way.
pub(super) struct Sending {
    /// `None` while a batch is being made.
    output: Option<Output>,
    /// Made, and not known to have arrived.
    pending: Vec<u8>,
    /// Where the first of these bytes belongs.
    offset: u64,
    digest: Context,
    /// There is no more: whether there would have been, or why.
    end: Option<Result<bool, String>>,
    lease: Option<Lease>,
}

impl std::fmt::Debug for Sending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (offset, pending) = (self.offset, self.pending.len());
        f.debug_struct("Sending").field("offset", &offset).field("pending", &pending).finish()
    }
}

impl Sending {
    pub(super) fn new(source: Source, lease: Option<Lease>) -> Self {
        Self {
            output: Some(Output::new(source)),
            pending: Vec::new(),
            offset: 0,
            digest: Context::new(&SHA256),
            end: None,
            lease,
        }
    }

    pub(super) fn has_lease(&self) -> bool {
        self.lease.is_some()
    }

    /// Lets it go on for so long from now on.
    pub(super) fn lease(&self, time: Duration) {
        if let Some(lease) = &self.lease {
            lease.send_replace(runtime_now() + time);
        }
    }

    pub(super) fn produced(&mut self, produced: Result<Box<(Output, Batch)>, String>) {
        match produced {
            Ok(made) => {
                let (output, Batch { bytes, end }) = *made;
                self.digest.update(&bytes);
                self.pending.extend(bytes);
                self.end = end.map(Ok);
                self.output = Some(output);
            }
            Err(message) => self.end = Some(Err(message)),
        }
    }

    /// How the command ends, once all has arrived.
    pub(super) fn ended(&self) -> Option<End> {
        match self.end.as_ref()? {
            Err(message) => Some(End::failed("failed", message)),
            Ok(_) if !self.pending.is_empty() => None,
            Ok(truncated) => {
                let mut end = End::succeeded("");
                if self.has_lease() {
                    end.reason = "lease-ended";
                }
                end.gave.output = Some(OutputSummary {
                    bytes: self.offset,
                    digest: hex(self.digest.clone().finish().as_ref()),
                    truncated: *truncated,
                });
                Some(end)
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl<E: Execute> EventLoop<E> {
    /// Has the next batches made of outputs that have none left. One that was begun goes on without
    /// a connection until there is something to send.
    pub(super) fn make_outputs(&mut self) {
        for (id, active) in &mut self.commands.active {
            let Active::Output(sending) = active else { continue };
            if sending.end.is_some() || sending.pending.len() >= MAX_PIECE_BYTES / 2 {
                continue;
            }
            let (id, Some(output)) = (*id, sending.output.take()) else { continue };
            self.work.spawn(async move {
                let made = output.next().await.map(Box::new);
                event_loop::Done::Command(id, Done::Produced(made))
            });
        }
    }

    /// The next piece. What there is no budget for ends: it would hold up others until the next day.
    pub(in crate::event_loop) fn next_output(&mut self) -> Option<(Freight, Parcel)> {
        let most = self.parcels.packet_limit.saturating_sub(HEAD_BYTES).clamp(1, MAX_PIECE_BYTES);
        // Each has its turn: what was sent last comes last.
        let last = self.commands.last_output;
        loop {
            let sendings = self.commands.active.iter().filter_map(|(id, active)| match active {
                Active::Output(sending) if !sending.pending.is_empty() => {
                    Some((*id, sending.pending.len().min(most)))
                }
                _ => None,
            });
            let (id, bytes) = sendings.min_by_key(|(id, _)| (Some(*id) <= last, *id))?;
            let allowed = self.may_send(TrafficKind::Logs, bytes);
            let active = self.commands.active.get_mut(&id)?;
            let Active::Output(sending) = active else { return None };
            if !allowed {
                let message = "the link's budget for today does not allow it";
                *active = Active::Ended(End::failed("over-budget", message));
                continue;
            }
            let head = OutputPiece { command: id, offset: sending.offset };
            let payload = piece::encode(&head, &sending.pending[..bytes]);
            self.commands.last_output = Some(id);
            fault_point("command.giving");
            return Some((Freight::Output(id, bytes), parcel(Kind::Output, payload)));
        }
    }

    pub(in crate::event_loop) fn on_piece(
        &mut self,
        id: CommandId,
        bytes: usize,
        delivery: &Delivery,
    ) {
        let Some(active) = self.commands.active.get_mut(&id) else { return };
        let Active::Output(sending) = active else { return };
        match delivery {
            Delivery::Done => {
                fault_point("command.given");
                sending.pending.drain(..bytes);
                sending.offset += bytes as u64;
            }
            Delivery::Lost => {}
            Delivery::Refused(reason) => {
                *active = Active::Ended(End::failed("not-published", reason));
            }
        }
    }
}
