//! `coracle-bench`: measures the shipped binaries against a raw floor and prints a table. In:
//! arguments. Out: the table, or JSON, on standard output; progress on standard error.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use coracle_hil::bench::{HOW, Interrupted, Options, Part, floor_client, measure};

/// Measures what Coracle costs, against containerd's own `ctr` and bare gRPC calls in the same run
///
/// Needs root. Starts its own containerd, broker, registry and agent and ends them again.
#[derive(Debug, Parser)]
#[command(name = "coracle-bench", bin_name = "scripts/bench", after_help = HOW)]
#[command(after_long_help = format!("{HOW}\n\n{EXIT}"))]
struct Arguments {
    /// How often 10 containers are started, and an order that changes nothing applied
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
    repetitions: u32,
    /// How often 50 workloads are started, without a network and on a bridge
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    many: u32,
    /// How many seconds the idle agent is watched
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    idle: u64,
    /// How often 10 replicas are replaced by a rolling update, without a network and on a bridge
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rolling: u32,
    /// How many seconds the agent is watched with 50 workloads, without probes and with them; as
    /// many as lie between two of its routine looks, of which each then holds one
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    probing: u64,
    /// Measures only this; may be given several times
    #[arg(long, value_name = "PART")]
    only: Vec<Part>,
    /// Measures the `release` profile, which is quick to build, in place of `dist`, which is flashed
    #[arg(long)]
    release: bool,
    /// Prints JSON, with every sample
    #[arg(long)]
    json: bool,
    /// A missed target is exit code 1
    #[arg(long)]
    strict: bool,
    #[command(subcommand)]
    helper: Option<Helper>,
}

#[derive(Debug, Subcommand)]
enum Helper {
    /// The client that is the floor, which the benchmark starts by itself
    #[command(hide = true)]
    FloorClient { job: PathBuf },
}

const EXIT: &str = "exit: 0 measured (targets missed or not), 1 failed, or a target missed with \
                    --strict, 2 usage, 130 interrupted";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Helper::FloorClient { job }) = &arguments.helper {
        return end(floor_client(job).map(|()| ExitCode::SUCCESS));
    }
    let options = Options {
        repetitions: arguments.repetitions,
        only: arguments.only.into_iter().collect(),
        many: arguments.many,
        rolling: arguments.rolling,
        idle: Duration::from_secs(arguments.idle),
        probing: Duration::from_secs(arguments.probing),
        dist: !arguments.release,
    };
    end(measure(options).map(|report| {
        if arguments.json {
            println!("{:#}", report.to_json());
        } else {
            println!("\n{report}\n{HOW}");
        }
        let missed = arguments.strict && !report.targets_met();
        ExitCode::from(u8::from(missed))
    }))
}

fn end(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("bench: {error:#}");
        ExitCode::from(if error.is::<Interrupted>() { 130 } else { 1 })
    })
}
