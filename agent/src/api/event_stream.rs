//! Server-sent events (<https://html.spec.whatwg.org/multipage/server-sent-events.html>): what
//! happens, as it happens, until the reader goes away or the agent ends.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{sleep, timeout};

use super::Context;
use super::connection::Leash;
use super::reply::{Answered, Kind, Obstacle, stream};
use crate::status::{Call, Happening};

/// Media type of such a stream.
pub(super) const EVENT_STREAM: &str = "text/event-stream";

/// A sign of life comes that often while nothing happens.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Pieces that may wait for a reader.
const QUEUE: usize = 16;
/// A reader that takes nothing for so long is cut off.
pub(super) const STALL: Duration = Duration::from_secs(30);

/// A place among the answers that go on and on.
pub(super) fn take_place(context: &Context) -> Result<OwnedSemaphorePermit, Obstacle> {
    Arc::clone(&context.streams).try_acquire_owned().map_err(|_| {
        Obstacle::new(Kind::Unavailable, "too many streams are being followed; try again later")
    })
}

/// Begins a stream of the events after the one with this sequence.
pub(super) fn begin(context: Arc<Context>, leash: Arc<Leash>, after: u64) -> Answered {
    let place = take_place(&context)?;
    leash.lengthen();
    let (pieces, taken) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let mut teller = Teller { context: &context, pieces: Pieces { pieces, leash }, after };
        // Whichever end it is, the stream ends.
        let _: Option<()> = teller.tell().await;
        drop(place);
    });
    Ok(stream(EVENT_STREAM, taken))
}

/// The way to a reader that may be slow.
#[derive(Debug)]
pub(super) struct Pieces {
    pub(super) pieces: mpsc::Sender<Bytes>,
    pub(super) leash: Arc<Leash>,
}

impl Pieces {
    /// `None` if the reader went away, or takes nothing: then it is cut off.
    pub(super) async fn give(&self, piece: impl Into<Bytes>) -> Option<()> {
        match timeout(STALL, self.pieces.send(piece.into())).await {
            Ok(sent) => sent.ok(),
            Err(_) => {
                self.leash.cut();
                None
            }
        }
    }
}

struct Teller<'a> {
    context: &'a Context,
    pieces: Pieces,
    after: u64,
}

impl Teller<'_> {
    async fn tell(&mut self) -> Option<()> {
        let mut happened = self.context.happened.clone();
        let newest = *happened.borrow_and_update();
        if newest < self.after {
            // It read an agent that was there before this one.
            self.after = 0;
        }
        let agent_started = self.context.agent_started;
        let first = serde_json::json!({ "agent_started": agent_started, "newest": newest });
        self.pieces.give(format!("event: agent\ndata: {first}\n\n")).await?;
        loop {
            if *happened.borrow_and_update() != self.after {
                self.tell_newer().await?;
            }
            tokio::select! {
                changed = happened.changed() => changed.ok()?,
                () = sleep(KEEP_ALIVE) => self.pieces.give(": nothing happens\n\n").await?,
                () = self.pieces.pieces.closed() => return None,
                () = self.context.calls.ended() => return None,
            }
        }
    }

    async fn tell_newer(&mut self) -> Option<()> {
        let call = |answer| Call::Events(self.after, answer);
        let happenings = self.context.calls.ask(call).await.ok()?;
        if happenings.dropped > 0 {
            let lost = format!("event: dropped\ndata: {{\"dropped\":{}}}\n\n", happenings.dropped);
            self.pieces.give(lost).await?;
        }
        for happening in &happenings.events {
            self.pieces.give(written(happening)?).await?;
            self.after = happening.sequence;
        }
        Some(())
    }
}

/// One event. JSON has no line ends of its own, and a kind is a word.
fn written(happening: &Happening) -> Option<String> {
    let data = serde_json::to_string(happening).ok()?;
    let Happening { sequence, kind, .. } = happening;
    Some(format!("id: {sequence}\nevent: {kind}\ndata: {data}\n\n"))
}
