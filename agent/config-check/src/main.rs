//! `coracle-config-check`: judges configurations by their templates, for the agent and `coracle
//! validate`, which start it, because a template can take for ever, or more memory than there is,
//! or end the process that judges by it.
//!
//! In: a question on standard input. Out: the answer on standard output; their form, and what this
//! process may use, is in `coracle_core::template::exchange`. It gives up what it does not need before
//! it reads anything. Deliberately not here: the judgement (`coracle_core::template`), and the time
//! after which whoever started it kills it.

use std::env;
use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

use coracle_core::template::evaluate_all;
use coracle_core::template::exchange::{
    CPU_SECONDS, MEMORY_MIB, QUESTION_BYTES, read_question, write_answer,
};
use nix::sys::resource::{Resource, rlim_t, setrlimit};

const USAGE: &str = "\
usage: coracle-config-check
       coracle-config-check --help | --version

Judges configurations by their templates (JSON Schema). Started by the agent, by `coracle validate` and
by `coracle provision`: it reads a question as JSON from the standard input and writes the answer to the
standard output, with little processor time, little memory and no files. To judge an order by hand:
`coracle validate FILE`.

exit: 0 judged, 1 no question, 2 usage; a template that takes too much ends it by a signal
";

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    match arguments.next().as_deref().map(|argument| argument.to_string_lossy()).as_deref() {
        None => match confine().and_then(|()| answer()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(&format!("error: {error}\n"));
                ExitCode::FAILURE
            }
        },
        Some("--help" | "-h") => say(USAGE),
        Some("--version" | "-V") => {
            say(concat!("coracle-config-check ", env!("CARGO_PKG_VERSION"), "\n"))
        }
        Some(_) => {
            complain(USAGE);
            ExitCode::from(2)
        }
    }
}

/// Gives up what is not needed, for good.
#[allow(clippy::useless_conversion, reason = "limits have 32 bits on 32-bit systems")]
fn confine() -> io::Result<()> {
    // When memory is short, this process is to go first. Not every kernel lets us ask for that.
    drop(std::fs::write("/proc/self/oom_score_adj", "1000"));
    let limits = [
        (Resource::RLIMIT_AS, MEMORY_MIB << 20),
        (Resource::RLIMIT_CPU, CPU_SECONDS),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_FSIZE, 0),
        (Resource::RLIMIT_NOFILE, 0),
    ];
    for (resource, limit) in limits {
        let limit = rlim_t::try_from(limit).map_err(io::Error::other)?;
        setrlimit(resource, limit, limit)?;
    }
    Ok(())
}

fn answer() -> io::Result<()> {
    let mut question = Vec::new();
    io::stdin().take(QUESTION_BYTES).read_to_end(&mut question)?;
    let checks = read_question(&question)?;
    io::stdout().write_all(&write_answer(&evaluate_all(&checks)))
}

fn say(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

fn complain(text: &str) {
    // Whoever closed standard error does not want it.
    drop(io::stderr().write_all(text.as_bytes()));
}
