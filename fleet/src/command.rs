//! `coracle-fleet command`: asks something of a gateway, and follows it to its end.
//!
//! In: what is to be done, and a key that the gateway obeys. Out: the states that the gateway
//! reports, what the command gave, and a receipt for its final result. Deliberately not here:
//! whether the gateway allows it; and commands of many gateways at once.

mod action;
mod follow;
mod output;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use clap::Args;
use coracle_protocol::command::Action;
use coracle_protocol::desired::SCHEMA;
use coracle_protocol::envelope::{COMMAND_PAYLOAD_TYPE, Envelope};
use coracle_protocol::limits::{MAX_COMMAND_BYTES, MAX_COMMAND_WAIT_SECONDS};
use coracle_protocol::receipt::{Hints, Receipt};
use coracle_protocol::topic::{Kind, Topic};
use coracle_protocol::{Command, CommandId, CommandState, GatewayId, Timestamp};
use tokio::time::{Instant, timeout_at};

use crate::broker::{Broker, BrokerArgs, Outgoing};
use crate::{fail, runtime, sign};
use action::ActionCommand;
use follow::{Follower, Heard};
use output::Output;

/// Exit code where the answer is no: not done, or no answer in time.
const NO: u8 = 1;

/// Exit code where the broker cannot be reached or refuses.
const BROKER: u8 = 3;

const EXAMPLES: &str = "\
Examples (BROKER stands for --broker, --ca, --cert and --key):
  coracle-fleet command --gateway UUID --sign-key orders.key BROKER restart web
  coracle-fleet command --gateway UUID --sign-key orders.key BROKER logs web --follow 120
  coracle-fleet command --gateway UUID --sign-key orders.key BROKER diagnostics > gateway.json

What the command gives goes to the standard output, its states to the standard error.

Exit codes: 0 succeeded; 1 not done, or not ended in time; 2 usage; 3 the broker cannot be reached
or refuses.";

/// What is asked of which gateway.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CommandArgs {
    /// The gateway
    #[arg(long, value_name = "UUID")]
    gateway: GatewayId,
    /// Private key that the gateway trusts, as for orders; may be repeated
    #[arg(long = "sign-key", value_name = "KEY", required = true)]
    keys: Vec<PathBuf>,
    #[command(flatten)]
    broker: BrokerArgs,
    /// The command is not begun later than this from now on
    #[arg(long, value_name = "SECONDS", default_value_t = 3600,
          value_parser = clap::value_parser!(u64).range(1..=MAX_COMMAND_WAIT_SECONDS))]
    expires: u64,
    /// Wait this long for its end; 0: send it and do not wait
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(0..=86400))]
    wait: u64,
    /// Print the final result as JSON; what the command gives is left out
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    action: ActionCommand,
}

/// A signed command on its way.
struct Sending {
    id: CommandId,
    gateway: GatewayId,
    envelope: Vec<u8>,
    expires_at: Timestamp,
    response_topic: String,
}

/// Sends, follows, prints.
pub(crate) fn run(args: &CommandArgs) -> ExitCode {
    let sending = match prepare(args) {
        Ok(sending) => sending,
        Err(error) => return fail(&error, NO),
    };
    let end = match runtime().and_then(|rt| rt.block_on(send_and_follow(args, &sending))) {
        Ok(end) => end,
        Err(error) => return fail(&error, BROKER),
    };
    match end {
        End::Sent => ExitCode::SUCCESS,
        End::NotTaken(reason) => {
            fail(&anyhow::anyhow!("the broker refused the command: {reason}"), BROKER)
        }
        End::Open(last) => {
            let id = sending.id;
            eprintln!("command {id}: {last} after {} s; it may still be done", args.wait);
            ExitCode::from(NO)
        }
        End::Unreadable(error) => fail(&error, NO),
        End::Final(state) => match state {
            CommandState::Succeeded => ExitCode::SUCCESS,
            _ => ExitCode::from(NO),
        },
    }
}

fn prepare(args: &CommandArgs) -> anyhow::Result<Sending> {
    let now = Timestamp::from(SystemTime::now());
    let id = CommandId::new(now);
    let expires_at = now.after(Duration::from_secs(args.expires));
    let (gateway, action) = (args.gateway, Action::from(&args.action));
    let command = Command { schema: SCHEMA, id, gateway, expires_at, action };
    let payload = serde_json::to_vec(&command).context("the command cannot be written")?;
    if payload.len() > MAX_COMMAND_BYTES {
        bail!("the command has {} bytes; at most {MAX_COMMAND_BYTES} are allowed", payload.len());
    }
    let envelope: Envelope = sign::envelope(COMMAND_PAYLOAD_TYPE, payload, &args.keys)?;
    let own = Topic::new(gateway, Kind::Results);
    // The id's random part, so that two operators do not hear each other's results.
    let response_topic = format!("{own}/{}", id.to_string().replace('-', ""));
    Ok(Sending { id, gateway, envelope: envelope.encode(), expires_at, response_topic })
}

/// How it ended.
enum End {
    /// The broker has it, and nobody waits.
    Sent,
    /// The broker refused it.
    NotTaken(String),
    /// Time is up; the last state in words.
    Open(String),
    /// What it gave cannot be read or written.
    Unreadable(anyhow::Error),
    /// It ended.
    Final(CommandState),
}

async fn send_and_follow(args: &CommandArgs, sending: &Sending) -> anyhow::Result<End> {
    let mut broker = Broker::connect(&args.broker).await?;
    let topic = |kind| Topic::new(sending.gateway, kind).to_string();
    if args.wait > 0 {
        let results = topic(Kind::Results);
        broker
            .subscribe(&[
                results,
                sending.response_topic.clone(),
                topic(Kind::Output),
                topic(Kind::Requests),
            ])
            .await?;
    }
    if let Err(reason) = publish(&mut broker, sending).await? {
        return Ok(End::NotTaken(reason));
    }
    eprintln!("command {}: sent to {}", sending.id, sending.gateway);
    if args.wait == 0 {
        broker.leave().await;
        return Ok(End::Sent);
    }
    let mut follower = Follower::new(sending.gateway, sending.id);
    let mut output = Output::new(!args.json);
    let deadline = Instant::now() + Duration::from_secs(args.wait) + args.action.lasts();
    let end = loop {
        for message in broker.take_messages() {
            match follower.hear(&message) {
                Heard::Nothing => {}
                Heard::State(line) => eprintln!("{line}"),
                Heard::Piece { offset, bytes } => {
                    if let Err(error) = output.take(offset, &bytes) {
                        return Ok(End::Unreadable(error));
                    }
                }
                // It may have lost what the broker had queued for it.
                Heard::Connected => drop(publish(&mut broker, sending).await?),
            }
        }
        if let Some(result) = follower.result() {
            if let Some(summary) = &result.output {
                if let Err(error) = output.finish(summary) {
                    return Ok(End::Unreadable(error));
                }
            }
            let state = result.state;
            show(args.json, result)?;
            acknowledge(&mut broker, sending).await?;
            break End::Final(state);
        }
        let Ok(heard) = timeout_at(deadline, broker.wait_for_messages()).await else {
            break End::Open(follower.last());
        };
        heard?;
    };
    broker.leave().await;
    Ok(end)
}

async fn publish(broker: &mut Broker, sending: &Sending) -> anyhow::Result<Result<(), String>> {
    let topic = Topic::new(sending.gateway, Kind::Commands).to_string();
    let now = Timestamp::from(SystemTime::now()).unix();
    let left = sending.expires_at.unix().saturating_sub(now).max(1);
    let message = Outgoing {
        topic: &topic,
        payload: &sending.envelope,
        retain: false,
        response_topic: Some(&sending.response_topic),
        expiry_seconds: u32::try_from(left).ok(),
    };
    broker.publish(&message).await
}

/// Tells the gateway that its final result has arrived, so that it is not sent again.
async fn acknowledge(broker: &mut Broker, sending: &Sending) -> anyhow::Result<()> {
    let receipt = Receipt {
        schema: SCHEMA,
        gateway: sending.gateway,
        events: None,
        results: vec![sending.id],
        hints: Hints::default(),
    };
    let payload = serde_json::to_vec(&receipt).context("the receipt cannot be written")?;
    let topic = Topic::new(sending.gateway, Kind::Receipts).to_string();
    let message = Outgoing { topic: &topic, payload: &payload, ..Outgoing::default() };
    if let Err(reason) = broker.publish(&message).await? {
        eprintln!("the broker refused the receipt: {reason}; the gateway sends its result again");
    }
    Ok(())
}

fn show(json: bool, result: &coracle_protocol::CommandResult) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let written = match (&result.result, json) {
        (_, true) => writeln!(out, "{:#}", serde_json::to_value(result)?),
        (Some(value), false) => writeln!(out, "{value:#}"),
        (None, false) => Ok(()),
    };
    written.context("cannot print the result")
}
