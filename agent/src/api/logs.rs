//! `/v1/logs`: of which containers something is kept; `/v1/logs/{workload}`: what the containers of
//! a workload said, from the files, a batch at a time in a thread of its own.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::body::Bytes;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::Context;
use super::event_stream::{Pieces, take_place};
use super::parameters::{Kind as Is, MOST, Parameter, Values};
use super::reply::{Answered, Kind, Obstacle, json, stream};
use super::request::Asked;
use super::routes::{Answer, Route};
use crate::error_chain::chain;
use crate::logs::{self, Item, Pattern, Run, Selection, Sources, Stream, parse_since};
use crate::status::KeptLog;

/// Media types of lines.
const LINES: &str = "application/x-ndjson";
const TEXT: &str = "text/plain";
const UTF_8_TEXT: &str = "text/plain; charset=utf-8";

/// Bytes that are read at once.
const BATCH: usize = 64 * 1024;
/// Batches that may wait for a reader.
const QUEUE: usize = 2;
/// Most containers that are read at once: each takes as much memory as a piece of its file.
const MOST_CONTAINERS: usize = 32;
/// Between two looks for something new.
const LOOK: Duration = Duration::from_millis(500);
/// Longest time to follow, in seconds.
const MAX_FOLLOW: u64 = 600;
/// Longest time for what there is already to be taken.
const WHOLE: Duration = Duration::from_secs(600);

pub(super) static ROUTES: &[Route] = &[
    Route::get("/v1/logs", |asked| Box::pin(list(asked)))
        .says("Logs", "Of which containers something is kept, by id")
        .answers(&[Answer::json::<Vec<KeptLog>>(200, "All of them"), FAILED]),
    Route::get("/v1/logs/{workload}", |asked| Box::pin(get(asked)))
        .takes(&[
            Parameter::path("workload", Is::Name, "Whose containers"),
            Parameter::query("replica", Is::Number(u32::MAX as u64), "Of this replica only"),
            Parameter::query("container", Is::Container, "Of containers of this name only"),
            Parameter::query(
                "stream",
                Is::OneOf(&["stdout", "stderr"]),
                "Only what was said there",
            ),
            Parameter::query(
                "run",
                Is::OneOf(&["newest", "previous", "all"]),
                "Of which runs of each container; the newest without it",
            ),
            Parameter::query("tail", Is::Number(MOST), "The last so many lines of each container"),
            Parameter::query(
                "since",
                Is::Since,
                "Only lines from then on: a time such as 2026-03-01T12:00:00Z, or how long ago it \
                 was such as 1h30m",
            ),
            Parameter::query(
                "follow",
                Is::Flag,
                "Go on with what is said from now on, also by containers that start later",
            ),
            Parameter::query(
                "wait",
                Is::Number(MOST),
                "How many seconds to follow; 600 without it, and more than 600 is 600",
            ),
        ])
        .says(
            "What a workload said",
            "Lines of its containers by time: a JSON object each, or the bare text with \
             `Accept: text/plain`. At most 8 streams of events and logs go on at once",
        )
        .answers(&[
            Answer::text(200, LINES, "A JSON object for each line (schema `LogLine`)"),
            Answer::text(200, TEXT, "The lines as they were said"),
            Answer::problem(404, "Nothing of it is kept"),
            FAILED,
        ]),
];

const FAILED: Answer = Answer::problem(500, "The logs cannot be read");

async fn list(asked: Asked) -> Answered {
    let dir = asked.context.logs.clone();
    let kept = in_thread(move || logs::list(&dir)).await?;
    let kept = kept.into_iter().map(|kept| KeptLog {
        container: kept.id.as_str().to_owned(),
        size: kept.size,
        newest: kept.newest,
    });
    Ok(json(StatusCode::OK, &kept.collect::<Vec<_>>()))
}

async fn get(asked: Asked) -> Answered {
    let place = take_place(&asked.context)?;
    let selection = selection(&asked.values);
    let follow = asked.values.flag("follow");
    let time = match follow {
        true => asked.values.number("wait").unwrap_or(MAX_FOLLOW).min(MAX_FOLLOW),
        false => 0,
    };
    let mut sources = sources(&asked.context.logs, &asked.values)?;
    let (sources, there) = in_thread(move || {
        sources.look(selection)?;
        let there = sources.read().len();
        Ok((sources, there))
    })
    .await?;
    if there > MOST_CONTAINERS {
        let detail = format!(
            "{there} containers at once are too many; name a replica, or a container of all replicas"
        );
        return Err(Obstacle::new(Kind::BadRequest, detail));
    }
    if there == 0 && !follow {
        return Err(Obstacle::new(Kind::NotFound, "nothing of what it said is kept"));
    }
    let text = asked.accepts(TEXT) && !asked.accepts(LINES);
    asked.leash.lengthen();
    let (pieces, taken) = mpsc::channel(QUEUE);
    let teller = Teller {
        context: Arc::clone(&asked.context),
        text,
        later: Selection { run: Run::All, tail: None, ..selection },
        pieces: Pieces { pieces, leash: Arc::clone(&asked.leash) },
    };
    let leash = asked.leash;
    tokio::spawn(async move {
        let following = teller.follow(sources, Duration::from_secs(time));
        if timeout(WHOLE + Duration::from_secs(time), following).await.is_err() {
            leash.cut();
        }
        drop(place);
    });
    Ok(stream(if text { UTF_8_TEXT } else { LINES }, taken))
}

fn selection(values: &Values) -> Selection {
    Selection {
        run: match values.text("run") {
            Some("previous") => Run::Previous,
            Some("all") => Run::All,
            _ => Run::Newest,
        },
        tail: values.number("tail"),
        since: values.text("since").and_then(|since| parse_since(since).ok()),
        stream: match values.text("stream") {
            Some("stdout") => Some(Stream::Stdout),
            Some("stderr") => Some(Stream::Stderr),
            _ => None,
        },
    }
}

fn sources(dir: &Path, values: &Values) -> Result<Sources, Obstacle> {
    let workload = values.text("workload").unwrap_or_default();
    let pattern = match values.number("replica") {
        Some(replica) => format!("{workload}.{replica}"),
        None => workload.to_owned(),
    };
    let pattern: Pattern =
        pattern.parse().map_err(|error: &str| Obstacle::new(Kind::BadRequest, error))?;
    Ok(Sources::new(dir, pattern, values.text("container").map(str::to_owned)))
}

struct Teller {
    context: Arc<Context>,
    text: bool,
    /// Of containers that appear later.
    later: Selection,
    pieces: Pieces,
}

impl Teller {
    /// Gives what there is, then what comes, for so long.
    async fn follow(&self, mut sources: Sources, time: Duration) -> Option<()> {
        let until = crate::clock::monotonic_now() + time;
        let (text, later) = (self.text, self.later);
        loop {
            let read = in_thread(move || {
                let batch = batch(&mut sources, text)?;
                if batch.is_empty() && !time.is_zero() {
                    sources.look(later)?;
                }
                Ok((sources, batch))
            });
            // What cannot be read is in the log; here it is the end.
            let (back, batch) = read.await.ok()?;
            sources = back;
            if !batch.is_empty() {
                self.pieces.give(batch).await?;
                continue;
            }
            if crate::clock::monotonic_now() >= until {
                return Some(());
            }
            tokio::select! {
                () = sleep(LOOK) => {}
                () = self.pieces.pieces.closed() => return None,
                () = self.context.calls.ended() => return None,
            }
        }
    }
}

/// The next lines, as they are sent.
fn batch(sources: &mut Sources, text: bool) -> io::Result<Bytes> {
    let mut bytes = Vec::new();
    while bytes.len() < BATCH {
        let Some((id, item, _)) = sources.next_item()? else { break };
        if !text {
            write(&mut bytes, &logs::line_of(&id, &item))?;
            continue;
        }
        match item {
            Item::Record(record) if record.stream != Stream::Coracle => {
                bytes.extend_from_slice(&record.text);
                if !record.partial {
                    bytes.push(b'\n');
                }
            }
            _ => {}
        }
    }
    Ok(bytes.into())
}

fn write(bytes: &mut Vec<u8>, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *bytes, line)?;
    bytes.push(b'\n');
    Ok(())
}

/// Reads files without holding up anybody.
async fn in_thread<T: Send + 'static>(
    read: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Obstacle> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        tracing::warn!(error = chain(error), "logs cannot be read for the API");
        Obstacle::new(Kind::Internal, format!("the logs cannot be read: {}", chain(error)))
    };
    match spawn_blocking(read).await {
        Ok(Ok(read)) => Ok(read),
        Ok(Err(error)) => Err(failed(&error)),
        Err(error) => Err(failed(&error)),
    }
}
