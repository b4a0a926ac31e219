//! The agent's log: on standard error, or as the journal likes it.
//!
//! In the journal each line carries its priority (sd-daemon(3)), and errors go to standard error
//! while all else goes to standard output: so a unit can have the errors alone on the console too.

use std::io::{self, IsTerminal, Write};
use std::{env, fmt};

use nix::sys::stat::fstat;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use super::style::colour_allowed;

/// How the agent logs.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// How much is logged: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", env = "CORACLE_LOG", default_value = "info")]
    pub log_level: Level,
    /// Log lines of JSON instead of text
    #[arg(long)]
    pub log_json: bool,
}

/// Starts logging. The journal notes the time by itself, so it is left out there.
pub fn start(args: &Args) {
    let log = tracing_subscriber::fmt().with_max_level(args.log_level);
    if stderr_is_the_journal() {
        let log = log.with_ansi(false).with_writer(Journal);
        let text = tracing_subscriber::fmt::format().without_time();
        match args.log_json {
            false => log.event_format(WithPriority(text.with_ansi(false))).init(),
            true => log
                .fmt_fields(tracing_subscriber::fmt::format::JsonFields::new())
                .event_format(WithPriority(text.json()))
                .init(),
        }
        return;
    }
    let log = log.with_writer(io::stderr).with_ansi(io::stderr().is_terminal() && colour_allowed());
    match args.log_json {
        false => log.init(),
        true => log.json().init(),
    }
}

/// Errors to standard error, all else to standard output.
struct Journal;

impl<'a> MakeWriter<'a> for Journal {
    type Writer = Box<dyn Write>;

    fn make_writer(&'a self) -> Self::Writer {
        Box::new(io::stdout())
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        match *metadata.level() {
            Level::ERROR => Box::new(io::stderr()),
            _ => Box::new(io::stdout()),
        }
    }
}

/// A line with its priority in front, as syslog(3) counts them.
struct WithPriority<F>(F);

impl<S, N, F> FormatEvent<S, N> for WithPriority<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}

/// Whether systemd connected standard error with the journal
/// (<https://www.freedesktop.org/software/systemd/man/latest/systemd.exec.html#%24JOURNAL_STREAM>).
fn stderr_is_the_journal() -> bool {
    let (Ok(named), Ok(stderr)) = (env::var("JOURNAL_STREAM"), fstat(io::stderr())) else {
        return false;
    };
    named == format!("{}:{}", stderr.st_dev, stderr.st_ino)
}
