//! `coracle-fleet order publish`: signed orders to the broker, retained.
//!
//! In: envelopes as `order sign` writes them. Out: each one on its gateway's `desired` topic, and
//! with `--wait` what became of it. Deliberately not here: signing, and whether an order makes
//! sense; signatures and rules are judged by the gateway alone.

mod follow;
pub(crate) mod order;
mod serve;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use coracle_protocol::topic::{Kind, Topic};
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use crate::broker::{Broker, BrokerArgs, Outgoing};
use crate::{fail, runtime};
use follow::{Follower, Verdict};
use order::Order;
use serve::Shelf;

/// Exit code where the answer is no: an order that is not one, was refused, or did not converge.
const NO: u8 = 1;

/// Exit code where the broker cannot be reached or refuses.
const BROKER: u8 = 3;

/// How long a report from before the publish must stand before it is taken for the answer: a
/// gateway that refuses the order says so within it.
const SETTLE: Duration = Duration::from_secs(2);

const EXAMPLES: &str = "\
Examples:
  coracle-fleet order publish web.signed \\
      --broker broker.example.com:8883 --ca ca.pem --cert fleet.pem --key fleet.key
  coracle-fleet order sign web.yaml --key orders.key | coracle-fleet order publish - \\
      --broker 127.0.0.1:8883 --ca ca.pem --cert fleet.pem --key fleet.key --wait 60

An order that is larger than a packet is published by a pointer: see coracle-fleet order point.

Exit codes: 0 published (and, with --wait, converged); 1 a file is not a signed order, a gateway
refused its order, or did not converge in time; 2 usage; 3 the broker cannot be reached or refuses.
A broker that names clients after their certificates lets one of them in at a time.";

/// What to publish, and where.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PublishArgs {
    /// Signed orders; `-` is the standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    broker: BrokerArgs,
    /// A signed order that a pointer leads to: gateways get it in pieces, while this waits; may be
    /// repeated
    #[arg(long = "serve", value_name = "FILE", requires = "wait")]
    served: Vec<PathBuf>,
    /// Wait this long for the gateways to converge
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    wait: Option<u64>,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
}

/// What became of one order.
#[derive(Debug)]
enum Outcome {
    /// The broker has it.
    Published,
    /// The broker refused it.
    NotTaken(String),
    /// The gateway answered, or time was up.
    Followed { verdict: Verdict, after: Duration },
}

/// Publishes, waits if asked to, prints the results.
pub(crate) fn run(args: PublishArgs) -> ExitCode {
    let json = args.json;
    let read = order::read_all(&args.files)
        .and_then(|orders| Ok((orders, Shelf::new(order::read_served(&args.served)?))));
    let (orders, shelf) = match read {
        Ok(read) => read,
        Err(error) => return fail(&error, NO),
    };
    let outcomes = match runtime().and_then(|rt| rt.block_on(publish(&args, &orders, &shelf))) {
        Ok(outcomes) => outcomes,
        Err(error) => return fail(&error, BROKER),
    };
    let text = if json { as_json(&orders, &outcomes) } else { as_text(&orders, &outcomes) };
    if let Err(error) = std::io::stdout().write_all(text.as_bytes()) {
        return fail(&anyhow::Error::new(error).context("cannot print the results"), NO);
    }
    let codes = outcomes.iter().map(|outcome| match outcome {
        Outcome::Published | Outcome::Followed { verdict: Verdict::Converged, .. } => 0,
        Outcome::Followed { .. } => NO,
        Outcome::NotTaken(_) => BROKER,
    });
    ExitCode::from(codes.max().unwrap_or(0))
}

async fn publish(
    args: &PublishArgs,
    orders: &[Order],
    shelf: &Shelf,
) -> anyhow::Result<Vec<Outcome>> {
    let mut broker = Broker::connect(&args.broker).await?;
    if args.wait.is_some() {
        for order in orders {
            broker.subscribe(&[topic(order, Kind::Reported)]).await?;
            if !shelf.is_empty() {
                broker.subscribe(&[topic(order, Kind::Requests)]).await?;
            }
        }
    }
    let mut followers = Vec::new();
    let mut outcomes = Vec::new();
    for (done, order) in orders.iter().enumerate() {
        let topic = topic(order, Kind::Desired);
        let message = Outgoing {
            topic: &topic,
            payload: &order.envelope,
            retain: true,
            ..Outgoing::default()
        };
        let taken = broker.publish(&message).await;
        let taken = taken.with_context(|| format!("{done} of {} were published", orders.len()))?;
        let Order { gateway, generation, envelope, .. } = order;
        eprintln!("published to {gateway}: generation {generation}, {} bytes", envelope.len());
        followers.push(Follower::new(order, Instant::now()));
        outcomes.push(match taken {
            Ok(()) => Outcome::Published,
            Err(reason) => Outcome::NotTaken(reason),
        });
    }
    if let Some(seconds) = args.wait {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let awaited = |at: usize| matches!(outcomes[at], Outcome::Published);
        let awaited: Vec<usize> = (0..orders.len()).filter(|at| awaited(*at)).collect();
        follow(&mut broker, &mut followers, &awaited, shelf, deadline).await?;
        for at in awaited {
            let follower = &followers[at];
            let (verdict, after) = (follower.verdict(), follower.after());
            outcomes[at] = Outcome::Followed { verdict, after };
        }
    }
    broker.leave().await;
    Ok(outcomes)
}

/// Reads reports until every awaited gateway has answered or time is up.
async fn follow(
    broker: &mut Broker,
    followers: &mut [Follower],
    awaited: &[usize],
    shelf: &Shelf,
    deadline: Instant,
) -> anyhow::Result<()> {
    let settled = Instant::now() + SETTLE;
    loop {
        let now = Instant::now();
        for message in broker.take_messages() {
            if let Some((topic, piece)) = shelf.answer(&message) {
                let answer = Outgoing { topic: &topic, payload: &piece, ..Outgoing::default() };
                if let Err(reason) = broker.publish(&answer).await? {
                    eprintln!("{topic}: the broker refused a piece: {reason}");
                }
            }
            for follower in followers.iter_mut().filter(|f| f.topic == message.topic) {
                if let Some(progress) = follower.hear(&message, now) {
                    eprintln!("{progress}");
                }
            }
        }
        if now >= settled {
            followers.iter_mut().for_each(|follower| follower.settle(now));
        }
        if now >= deadline || awaited.iter().all(|at| followers[*at].is_done()) {
            return Ok(());
        }
        let until = if now < settled { settled.min(deadline) } else { deadline };
        if let Ok(heard) = timeout_at(until, broker.wait_for_messages()).await {
            heard?;
        }
    }
}

fn topic(order: &Order, kind: Kind) -> String {
    Topic::new(order.gateway, kind).to_string()
}

fn as_text(orders: &[Order], outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    for (order, outcome) in orders.iter().zip(outcomes) {
        let said = match outcome {
            Outcome::Published => "published".to_owned(),
            Outcome::NotTaken(reason) => format!("the broker refused it: {reason}"),
            Outcome::Followed { verdict, after } => verdict.sentence(*after),
        };
        text += &format!("{} generation {}: {said}\n", order.gateway, order.generation);
    }
    text
}

fn as_json(orders: &[Order], outcomes: &[Outcome]) -> String {
    let results = orders.iter().zip(outcomes).map(|(order, outcome)| {
        let mut result = json!({
            "file": order.file,
            "gateway": order.gateway,
            "generation": order.generation,
            "digest": order.digest,
        });
        match outcome {
            Outcome::Published => result["outcome"] = "published".into(),
            Outcome::NotTaken(reason) => {
                result["outcome"] = "not-taken".into();
                result["reason"] = reason.as_str().into();
            }
            Outcome::Followed { verdict, after } => {
                result["outcome"] = verdict.word().into();
                result["reason"] = verdict.sentence(*after).into();
                result["seconds"] = after.as_secs_f64().into();
                if let Verdict::Refused { refusals, .. } = verdict {
                    result["refusals"] = json!(refusals);
                }
            }
        }
        result
    });
    format!("{:#}\n", json!({ "orders": results.collect::<Vec<_>>() }))
}
