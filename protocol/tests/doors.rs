//! Whatever comes through a door is a document or an error, never a panic, and what is read again
//! after it was written is the same. Golden documents with random damage, and documents made of
//! nothing but random pieces; the seeds are fixed.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fmt::Debug;
use std::path::Path;

use coracle_protocol::command::{Command, CommandResult, OutputPiece};
use coracle_protocol::envelope::{
    COMMAND_PAYLOAD_TYPE, DESIRED_PAYLOAD_TYPE, Envelope, POINTER_PAYLOAD_TYPE,
};
use coracle_protocol::event::Events;
use coracle_protocol::pointer::{Chunk, Pointer};
use coracle_protocol::receipt::Receipt;
use coracle_protocol::request::Request;
use coracle_protocol::topic::{ReplyWord, Topic};
use coracle_protocol::{DesiredState, GatewayId, Presence, ReportedState, piece};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Damaged documents of each kind.
const ROUNDS: u32 = 20_000;

/// xorshift64*: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap()
    }
}

/// What damage is made of beside single bytes.
const PIECES: [&[u8]; 14] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b",",
    b":",
    b"null",
    b"-1e999",
    b"18446744073709551616",
    b"\"\\ud800\"",
    b"\xff\xfe",
    b"9999-99-99T99:99:99Z",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
];

fn damage(random: &mut Random, document: &[u8]) -> Vec<u8> {
    let mut bytes = document.to_vec();
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len());
        match random.below(5) {
            0 if !bytes.is_empty() => bytes[at] = random.next() as u8,
            1 => bytes.truncate(at),
            2 => {
                let piece = PIECES[random.below(PIECES.len())];
                bytes.splice(at..at, piece.iter().copied());
            }
            3 => {
                let end = (at + random.below(40)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let end = (at + random.below(60)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, copy);
            }
        }
    }
    bytes
}

fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    std::fs::read(path).unwrap()
}

/// Damages a document many times; what can still be read is written and read again.
fn shake<T: Serialize + DeserializeOwned + PartialEq + Debug>(seed: u64, document: &[u8]) {
    let whole = serde_json::from_slice::<T>(document);
    assert!(whole.is_ok(), "the undamaged one: {whole:?}");
    let mut random = Random(seed);
    let mut read = 0;
    for _ in 0..ROUNDS {
        let bytes = damage(&mut random, document);
        let Ok(document) = serde_json::from_slice::<T>(&bytes) else { continue };
        read += 1;
        let written = serde_json::to_vec(&document).unwrap();
        assert_eq!(serde_json::from_slice::<T>(&written).unwrap(), document);
    }
    assert!(
        read > 0,
        "no damaged document could be read: the damage is too great to show anything"
    );
}

#[test]
fn damaged_documents_are_read_or_refused() {
    let gateway = "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11";
    let id = "019a2b3c-4d5e-7f60-8123-456789abcdef";
    let head = format!(r#""schema":1,"gateway":"{gateway}""#);
    shake::<DesiredState>(1, &golden("desired-1-full.json"));
    shake::<DesiredState>(2, &golden("desired-1-life.json"));
    shake::<ReportedState>(3, &golden("reported-1-full.json"));
    shake::<Presence>(4, &golden("presence-1-online.json"));
    shake::<Envelope>(5, &golden("envelope-1.json"));
    let command = format!(
        r#"{{{head},"id":"{id}","expires_at":"2026-11-29T10:00:00Z",
           "action":{{"kind":"follow-logs","workload":"web","replica":1,"lease_seconds":60}}}}"#
    );
    shake::<Command>(6, command.as_bytes());
    let result = format!(
        r#"{{{head},"command":"{id}","state":"running","at":"2026-11-29T10:00:00Z","reason":"a",
           "message":"b","progress":{{"phase":"downloading","bytes_done":1,"bytes_total":2}},
           "result":{{"x":[1,2]}},"output":{{"bytes":5,"digest":"00","truncated":true}}}}"#
    );
    shake::<CommandResult>(7, result.as_bytes());
    let pointer = format!(
        r#"{{{head},"generation":7,"digest":"00","bytes":9,
           "sources":[{{"url":"https://x"}},{{"broker":{{}}}}]}}"#
    );
    shake::<Pointer>(8, pointer.as_bytes());
    let receipt = format!(
        r#"{{{head},"events":{{"stream":"ab","sequences":[[1,5],[7,7]]}},"results":["{id}"],
           "hints":{{"reconnect_window_seconds":60,"backlog_spread_seconds":5}}}}"#
    );
    shake::<Receipt>(9, receipt.as_bytes());
    let request = format!(r#"{{{head},"kind":"chunk","digest":"00","offset":5,"bytes":100}}"#);
    shake::<Request>(10, request.as_bytes());
    let events = format!(
        r#"{{{head},"stream":"ab","dropped":3,"events":[{{"sequence":1,"at":"2026-11-29T10:00:00Z",
           "kind":"started","replica":"web.0","message":"m"}}]}}"#
    );
    shake::<Events>(11, events.as_bytes());
}

#[test]
fn damaged_envelopes_and_pieces_are_read_or_refused() {
    let mut random = Random(12);
    let envelope = golden("envelope-1.json");
    let types = [DESIRED_PAYLOAD_TYPE, COMMAND_PAYLOAD_TYPE, POINTER_PAYLOAD_TYPE];
    let mut refused = 0;
    for _ in 0..ROUNDS {
        let bytes = damage(&mut random, &envelope);
        drop(Envelope::payload_type_of(&bytes));
        for payload_type in types {
            match Envelope::decode_of(payload_type, &bytes) {
                Ok(read) => assert_eq!(read.payload_type, payload_type),
                Err(refusal) => {
                    refused += 1;
                    assert!(refusal.message.len() < 1_000, "{}", refusal.message);
                }
            }
        }
    }
    assert!(refused > 0);
    let chunk = piece::encode(&Chunk { digest: "00".into(), offset: 5 }, &[7; 100]);
    for _ in 0..ROUNDS {
        let bytes = damage(&mut random, &chunk);
        if let Some((_, rest)) = piece::decode::<Chunk>(&bytes) {
            assert!(rest.len() < bytes.len());
        }
        assert!(
            piece::decode::<OutputPiece>(&bytes).is_none_or(|(_, rest)| rest.len() < bytes.len())
        );
    }
}

#[test]
fn damaged_topics_are_read_or_refused() {
    let gateway = GatewayId::random();
    let mut random = Random(13);
    let topic = format!("coracle/1/{gateway}/results/desk-7");
    for _ in 0..ROUNDS {
        let bytes = damage(&mut random, topic.as_bytes());
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(topic) = text.parse::<Topic>() {
            assert_eq!(topic.to_string(), text);
        }
        if let Some(word) = ReplyWord::of_response_topic(&text, gateway) {
            assert_eq!(word.topic(gateway), text);
            assert!(!text.contains(['+', '#']));
        }
    }
}
