//! `/v1/events`: what happened after the event with a sequence. With `wait`, an answer without events
//! is held back until something happens, at most that long; as a stream of server-sent events it goes
//! on (see [`super::event_stream`]).

use std::time::Duration;

use hyper::StatusCode;
use tokio::time::timeout;

use super::event_stream::{self, EVENT_STREAM};
use super::parameters::{Kind as Is, MOST, Parameter};
use super::reply::{Answered, json};
use super::request::Asked;
use super::routes::{Answer, Route};
use super::status::NO_ANSWER;
use crate::status::{Call, EventsPage};

/// Longest wait, in seconds.
const MAX_WAIT: u64 = 60;
const LAST_EVENT_ID: &str = "Last-Event-ID";

pub(super) static ROUTES: &[Route] = &[Route::get("/v1/events", |asked| Box::pin(get(asked)))
    .takes(&[
        Parameter::query("after", Is::Number(MOST), "Sequence of the last event that is known"),
        Parameter::query(
            "wait",
            Is::Number(MOST),
            "How many seconds to wait for an event if there is none; more than 60 is 60. A stream \
             takes no notice of it",
        ),
        Parameter::header(
            LAST_EVENT_ID,
            Is::Number(MOST),
            "The same as `after`, for streams; it counts more",
        ),
    ])
    .says(
        "Events",
        "What happened, oldest first; the newest 256 are kept, in memory only. As \
         `text/event-stream` it goes on until the reader goes away or the agent ends: `id` is the \
         sequence, `event` the kind, `data` the event as JSON; the first one, `agent`, has no id and \
         tells when the agent started; `dropped` tells how many are lost; a comment comes every 15 \
         seconds while nothing happens. At most 8 streams of events and logs go on at once",
    )
    .answers(&[
        Answer::json::<EventsPage>(200, "What happened"),
        Answer::text(200, EVENT_STREAM, "What happens"),
        NO_ANSWER,
    ])];

async fn get(asked: Asked) -> Answered {
    let after = asked.values.number("after").unwrap_or_default();
    if asked.accepts(EVENT_STREAM) {
        let after = asked.values.number(LAST_EVENT_ID).unwrap_or(after);
        return event_stream::begin(asked.context, asked.leash, after);
    }
    let wait = asked.values.number("wait").unwrap_or_default().min(MAX_WAIT);
    let context = &asked.context;
    let mut happened = context.happened.clone();
    // A reader of an agent that was restarted may be ahead; it must learn of that at once.
    if *happened.borrow() == after && wait > 0 {
        let wait = Duration::from_secs(wait);
        // Neither the end of the time nor the end of the agent is an error: the answer is empty.
        drop(timeout(wait, happened.wait_for(|newest| *newest != after)).await);
    }
    // Read before the call: what happens after it must not be skipped.
    let newest = *happened.borrow();
    let happenings = context.calls.ask(|answer| Call::Events(after, answer)).await?;
    let newest = happenings.events.last().map_or(newest, |last| last.sequence);
    let agent_started = context.agent_started;
    Ok(json(StatusCode::OK, &EventsPage { happenings, newest, agent_started }))
}
