//! `coracle-bench`: measures the shipped binaries against a raw floor and prints a table. In:
//! arguments. Out: the table, or JSON, on standard output; progress on standard error.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use coracle_hil::bench::{HOW, Interrupted, Options, measure};

/// Measures what Coracle costs, against containerd's own `ctr` in the same run
///
/// Needs root. Starts its own containerd, broker, registry and agent and ends them again.
#[derive(Debug, Parser)]
#[command(name = "coracle-bench", bin_name = "scripts/bench", after_help = HOW)]
#[command(after_long_help = format!("{HOW}\n\n{EXIT}"))]
struct Arguments {
    /// How often 10 containers are started, and an order that changes nothing applied
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
    repetitions: u32,
    /// How many seconds the idle agent is watched
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    idle: u64,
    /// Measures the `release` profile, which is quick to build, in place of `dist`, which is flashed
    #[arg(long)]
    release: bool,
    /// Prints JSON, with every sample
    #[arg(long)]
    json: bool,
    /// A missed target is exit code 1
    #[arg(long)]
    strict: bool,
}

const EXIT: &str = "exit: 0 measured (targets missed or not), 1 failed, or a target missed with \
                    --strict, 2 usage, 130 interrupted";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = Options {
        repetitions: arguments.repetitions,
        idle: Duration::from_secs(arguments.idle),
        dist: !arguments.release,
    };
    match measure(options) {
        Ok(report) => {
            if arguments.json {
                println!("{:#}", report.to_json());
            } else {
                println!("\n{report}\n{HOW}");
            }
            let missed = arguments.strict && !report.targets_met();
            ExitCode::from(u8::from(missed))
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(if error.is::<Interrupted>() { 130 } else { 1 })
        }
    }
}
