//! `coracle-log`: started by containerd's shim for each container, by the `binary` scheme of its
//! standard output (containerd, core/runtime/v2/logging). In: what the container says, as descriptors
//! 3 and 4; arguments as pairs of a key and a value, in any order; the container's id in the
//! environment. Out: files. The shim waits until descriptor 5 is closed.
//!
//! It ends when both pipes do, which is when the container's task is deleted. It outlives the agent,
//! containerd and the shim: without a reader the container would be killed by its next line.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use coracle_log::files::{self, Settings};
use coracle_log::pump;
use coracle_log::writer::Writer;
use nix::sys::signal::{SigSet, Signal};

const USAGE: &str = "\
usage: coracle-log dir DIR file BYTES files NUMBER total BYTES
       coracle-log --help | --version

Keeps what one container says in DIR/CONTAINER/NNNNNNNN.log. Started by containerd's shim for each
container of Coracle, with the pipes as descriptors 3 and 4; not of use by hand. What was kept is
read by `coracle logs`.

  dir    the directory of all containers' logs
  file   bytes at which a file is full
  files  most files of one container
  total  most bytes of all containers together

exit: 0 the container ended, 2 usage
";

/// As containerd does for its shims: the kernel ends workloads first, for which we are the only
/// reader.
const OOM_SCORE: i32 = -998;

fn main() -> ExitCode {
    let arguments: Vec<String> =
        env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    match arguments.first().map(String::as_str) {
        Some("--help" | "-h") => return say(USAGE),
        Some("--version" | "-V") => {
            return say(concat!("coracle-log ", env!("CARGO_PKG_VERSION"), "\n"));
        }
        _ => {}
    }
    let id = env::var("CONTAINER_ID").unwrap_or_default();
    let settings = settings(&arguments);
    // Descriptors by number belong to nobody; what /proc gives is ours.
    let pipe = |number: u32| File::open(format!("/proc/self/fd/{number}")).ok();
    let (stdout, stderr) = (pipe(3), pipe(4));
    let (Some(settings), true) = (settings, files::is_id(&id)) else {
        // Whoever closed standard error does not want it.
        drop(io::stderr().write_all(USAGE.as_bytes()));
        return ExitCode::from(2);
    };
    stand_alone();
    tell_ready();
    pump::run(stdout, stderr, &mut Writer::new(settings, &id));
    ExitCode::SUCCESS
}

fn settings(arguments: &[String]) -> Option<Settings> {
    let value = |key: &str| {
        let pair = arguments.chunks_exact(2).find(|pair| pair[0] == key)?;
        Some(pair[1].as_str())
    };
    let dir = PathBuf::from(value("dir")?);
    Some(Settings {
        dir: dir.is_absolute().then_some(dir)?,
        file: value("file")?.parse().ok()?,
        files: value("files")?.parse().ok()?,
        total: value("total")?.parse().ok()?,
    })
}

/// Nothing ends it but the end of the pipes. The shim sends SIGTERM after it closed them.
fn stand_alone() {
    let mut signals = SigSet::empty();
    for signal in
        [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGXFSZ]
    {
        signals.add(signal);
    }
    // Each of these is better than not reading, whether it works or not.
    let _ = signals.thread_block();
    let _ = nix::unistd::setsid();
    let _ = env::set_current_dir("/");
    lower_oom_score();
}

fn lower_oom_score() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let now = fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if now.is_some_and(|now| now > OOM_SCORE) {
        // Refused without CAP_SYS_RESOURCE.
        let _ = fs::write(FILE, OOM_SCORE.to_string());
    }
}

/// A byte and the end of the pipe: older shims wait for the end, newer ones may want the byte.
fn tell_ready() {
    if let Ok(mut ready) = File::options().write(true).open("/proc/self/fd/5") {
        let _ = ready.write_all(&[0]);
    }
    let _ = nix::unistd::close(5);
}

fn say(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}
