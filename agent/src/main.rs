//! `coracle`: the gateway agent and its command line. In: arguments. Out: an exit code, and the one
//! place where an error is printed with all its causes.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use coracle::cli::{self, AgentArgs, Cli, Command, Outcome};
use coracle::config::Config;
use coracle::{provision, secret_env, store};

fn main() -> ExitCode {
    if let Some(code) = secret_env::called_as_wrapper() {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match cli.command {
        Command::Agent(args) => match run_agent(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                print_error(error.as_ref());
                ExitCode::FAILURE
            }
        },
        Command::Provision(args) => match provision::run(&args) {
            Ok(line) => say(&line),
            Err(error) => {
                print_error(error.as_ref());
                ExitCode::FAILURE
            }
        },
        Command::StoreCheck { path } => store::check_command(&path),
        Command::Client(command) => match cli::run(cli.socket, command) {
            Ok(Outcome::Good) => ExitCode::SUCCESS,
            Ok(Outcome::No) => ExitCode::FAILURE,
            Err(failure) if failure.is_closed_output() => ExitCode::SUCCESS,
            Err(failure) => {
                print_error(&failure);
                if let Some(hint) = failure.hint() {
                    complain(&format!("hint: {hint}"));
                }
                ExitCode::from(failure.exit_code())
            }
        },
    }
}

fn run_agent(args: &AgentArgs) -> anyhow::Result<()> {
    cli::logging::start(&args.log);
    coracle::agent::run(Config::load(&args.config)?)
}

/// Help and version are asked for and go to standard output; the rest is wrong usage.
fn usage(error: &clap::Error) -> ExitCode {
    match error.print() {
        Err(failed) if failed.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2)),
    }
}

fn print_error(error: &dyn Error) {
    let mut text = format!("error: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    complain(&text);
}

fn say(line: &str) -> ExitCode {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

fn complain(text: &str) {
    // Whoever closed standard error does not want it.
    drop(writeln!(io::stderr(), "{text}"));
}
