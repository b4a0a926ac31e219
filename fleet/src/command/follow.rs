//! What a gateway's messages say about one command. Pure.

use coracle_protocol::command::OutputPiece;
use coracle_protocol::request::{Request, Wanted};
use coracle_protocol::topic::{Kind, Topic};
use coracle_protocol::{CommandId, CommandResult, CommandState, GatewayId, piece};

use crate::broker::Message;

/// What a message said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing of this command, or nothing new.
    Nothing,
    /// The command has come to another state: a line for people.
    State(String),
    /// A piece of what it gives.
    Piece { offset: u64, bytes: Vec<u8> },
    /// The gateway has connected.
    Connected,
}

/// Follows one command.
#[derive(Debug)]
pub(super) struct Follower {
    results: String,
    output: String,
    requests: String,
    id: CommandId,
    last: Option<CommandResult>,
}

impl Follower {
    pub(super) fn new(gateway: GatewayId, id: CommandId) -> Self {
        let topic = |kind| Topic::new(gateway, kind).to_string();
        let (results, output) = (topic(Kind::Results), topic(Kind::Output));
        Self { results, output, requests: topic(Kind::Requests), id, last: None }
    }

    /// Takes a message in.
    pub(super) fn hear(&mut self, message: &Message) -> Heard {
        if message.topic == self.requests {
            let request = serde_json::from_slice::<Request>(&message.payload);
            let connected = matches!(request, Ok(Request { wanted: Wanted::Connected { .. }, .. }));
            return if connected { Heard::Connected } else { Heard::Nothing };
        }
        if message.topic == self.output {
            return match piece::decode::<OutputPiece>(&message.payload) {
                Some((head, bytes)) if head.command == self.id => {
                    Heard::Piece { offset: head.offset, bytes: bytes.to_vec() }
                }
                _ => Heard::Nothing,
            };
        }
        if !message.topic.starts_with(&self.results) {
            return Heard::Nothing;
        }
        match serde_json::from_slice::<CommandResult>(&message.payload) {
            Ok(result) if result.command == self.id => self.on_result(result),
            _ => Heard::Nothing,
        }
    }

    /// States may come twice, and late ones out of order.
    fn on_result(&mut self, result: CommandResult) -> Heard {
        let rank = |state: CommandState| match state {
            CommandState::Accepted => 0,
            CommandState::Running => 1,
            _ => 2,
        };
        if let Some(last) = &self.last {
            let is_news = rank(result.state) > rank(last.state)
                || (rank(result.state) == 1 && result.progress != last.progress);
            if rank(result.state) < rank(last.state) || !is_news {
                return Heard::Nothing;
            }
        }
        let line = sentence(&result);
        self.last = Some(result);
        Heard::State(line)
    }

    /// The final result, once there is one.
    pub(super) fn result(&self) -> Option<&CommandResult> {
        self.last.as_ref().filter(|result| result.state.is_final())
    }

    /// The last that was heard, for people.
    pub(super) fn last(&self) -> String {
        match &self.last {
            Some(result) => result.state.as_str().to_owned(),
            None => "no answer from the gateway".to_owned(),
        }
    }
}

fn sentence(result: &CommandResult) -> String {
    let mut text = format!("command {}: {}", result.command, result.state.as_str());
    if let Some(reason) = &result.reason {
        text += &format!(" [{}]", plain(reason));
    }
    if let Some(message) = &result.message {
        text += &format!(": {}", plain(message));
    }
    if let Some(progress) = &result.progress {
        text += &format!(": {}, {} bytes", plain(&progress.phase), progress.bytes_done);
        if let Some(total) = progress.bytes_total {
            text += &format!(" of {total}");
        }
    }
    text
}

/// What a gateway says does not move the cursor.
fn plain(text: &str) -> String {
    text.chars().take(500).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use coracle_protocol::Timestamp;
    use serde_json::json;

    use super::*;

    fn message(topic: String, payload: Vec<u8>) -> Message {
        Message { topic, payload, retained: false }
    }

    #[test]
    fn states_are_told_once_and_in_their_order() {
        let (gateway, id) =
            (GatewayId::random(), CommandId::new(Timestamp::from_unix(1_700_000_000)));
        let mut follower = Follower::new(gateway, id);
        let mut hear = |of: CommandId, state: &str, extra: serde_json::Value| {
            let mut result = json!({
                "schema": 1, "gateway": gateway, "command": of, "state": state,
                "at": "2026-11-29T00:00:00Z",
            });
            result.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            let topic = format!("coracle/1/{gateway}/results/desk");
            match follower.hear(&message(topic, result.to_string().into_bytes())) {
                Heard::State(line) => line.split_once(": ").unwrap().1.to_owned(),
                other => format!("{other:?}"),
            }
        };
        let other = CommandId::new(Timestamp::from_unix(1_700_000_001));
        let none = json!({});
        assert_eq!(hear(other, "accepted", none.clone()), "Nothing");
        assert_eq!(hear(id, "accepted", none.clone()), "accepted");
        assert_eq!(hear(id, "accepted", none.clone()), "Nothing");
        assert_eq!(hear(id, "running", none.clone()), "running");
        assert_eq!(hear(id, "accepted", none.clone()), "Nothing");
        let progress = json!({"progress": {"phase": "downloading", "bytes_done": 5}});
        assert_eq!(hear(id, "running", progress.clone()), "running: downloading, 5 bytes");
        assert_eq!(hear(id, "running", progress), "Nothing");
        let failed = json!({"reason": "interrupted", "message": "the agent\nended"});
        assert_eq!(hear(id, "failed", failed), "failed [interrupted]: the agent ended");
        assert_eq!(hear(id, "succeeded", none), "Nothing");
        assert_eq!(follower.result().unwrap().state, CommandState::Failed);
        let bad = message(format!("coracle/1/{gateway}/results"), b"nonsense".to_vec());
        assert_eq!(follower.hear(&bad), Heard::Nothing);
    }

    #[test]
    fn a_gateway_that_connects_is_heard() {
        let gateway = GatewayId::random();
        let id = CommandId::new(Timestamp::from_unix(1_700_000_000));
        let mut follower = Follower::new(gateway, id);
        let topic = format!("coracle/1/{gateway}/requests");
        let mut hear = |wanted: serde_json::Value| {
            let mut request = json!({"schema": 1, "gateway": gateway});
            request.as_object_mut().unwrap().extend(wanted.as_object().unwrap().clone());
            follower.hear(&message(topic.clone(), request.to_string().into_bytes()))
        };
        assert_eq!(hear(json!({"kind": "connected", "generation": 1})), Heard::Connected);
        let chunk = json!({"kind": "chunk", "digest": "a", "offset": 0, "bytes": 1});
        assert_eq!(hear(chunk), Heard::Nothing);
    }
}
