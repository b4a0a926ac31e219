//! `GET /v1/events?after=SEQUENCE&wait=SECONDS`: what happened after the event with that sequence.
//! With `wait`, an answer without events is held back until something happens, at most that long.

use std::time::Duration;

use hyper::StatusCode;
use tokio::time::timeout;

use super::Context;
use super::reply::{Reply, json, problem};
use crate::status::{Call, EventsPage};

const MAX_WAIT: u64 = 60;

pub(super) async fn get(query: Option<&str>, context: &Context) -> Reply {
    let Query { after, wait } = match Query::parse(query.unwrap_or_default()) {
        Ok(query) => query,
        Err(error) => return problem(StatusCode::BAD_REQUEST, error),
    };
    let mut happened = context.happened.clone();
    // A reader of an agent that was restarted may be ahead; it must learn of that at once.
    if *happened.borrow() == after && !wait.is_zero() {
        // Neither the end of the time nor the end of the agent is an error: the answer is empty.
        drop(timeout(wait, happened.wait_for(|newest| *newest != after)).await);
    }
    // Read before the call: what happens after it must not be skipped.
    let newest = *happened.borrow();
    match context.calls.ask(|answer| Call::Events(after, answer)).await {
        Ok(happenings) => {
            let newest = happenings.events.last().map_or(newest, |last| last.sequence);
            let agent_started = context.agent_started;
            json(StatusCode::OK, &EventsPage { happenings, newest, agent_started })
        }
        Err(obstacle) => obstacle.into(),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Query {
    after: u64,
    wait: Duration,
}

impl Query {
    fn parse(text: &str) -> Result<Self, String> {
        let mut query = Self { after: 0, wait: Duration::ZERO };
        for part in text.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let number = value.parse::<u64>();
            match (name, number) {
                ("after", Ok(after)) => query.after = after,
                ("wait", Ok(seconds)) => query.wait = Duration::from_secs(seconds.min(MAX_WAIT)),
                ("after" | "wait", Err(_)) => {
                    return Err(format!("{name} must be a whole number"));
                }
                _ => return Err("unknown parameter; known are after and wait".to_owned()),
            }
        }
        Ok(query)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_optional_bounded_and_checked() {
        let parsed = |text| Query::parse(text).map(|query| (query.after, query.wait.as_secs()));
        assert_eq!(parsed(""), Ok((0, 0)));
        assert_eq!(parsed("after=7&wait=5"), Ok((7, 5)));
        assert_eq!(parsed("wait=100000"), Ok((0, MAX_WAIT)));
        assert!(parsed("after=-1").is_err());
        assert!(parsed("wait").is_err());
        assert!(parsed("since=3").is_err());
    }
}
