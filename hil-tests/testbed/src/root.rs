//! Programs of another release of the distribution, each unpacked with all it depends on into a
//! root of its own (`scripts/setup --brokers`), in which it is run. In: a name. Out: commands that
//! run there and see this machine's `/run`, `/dev`, `/proc` and the place's data.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::place::Place;
use crate::{Result, installed};

/// A root of its own, unpacked and not installed.
#[derive(Debug, Clone)]
pub(crate) struct Root(PathBuf);

impl Root {
    /// The one of that name: under `CORACLE_BROKERS`, or under `target/brokers`. An error that
    /// says what to do if it is not there.
    pub(crate) fn find(name: &str) -> Result<Self> {
        let exe = std::env::current_exe().context("cannot tell the running program's path")?;
        let found = match std::env::var_os("CORACLE_BROKERS") {
            Some(dir) => Some(PathBuf::from(dir)),
            None => exe.ancestors().map(|dir| dir.join("brokers")).find(|dir| dir.is_dir()),
        };
        let root = found.map(|dir| dir.join(name)).filter(|dir| dir.join(".packages").is_file());
        root.map(Self).with_context(|| format!("{name} is not there: run scripts/setup --brokers"))
    }

    /// `program`, an absolute path inside, with mounts that end with it.
    pub(crate) fn command(&self, place: &Place, program: impl AsRef<OsStr>) -> Result<Command> {
        // The place's directories keep their names inside.
        let bases = [place.run(), place.data()].map(|dir| dir.parent().unwrap_or(Path::new("/")));
        let mut script = String::from("set -e; root=$1; shift\n");
        for dir in [Path::new("/dev"), Path::new("/proc")].into_iter().chain(bases) {
            let dir = dir.display();
            script.push_str(&format!(
                "mkdir -p \"$root{dir}\"; mount --rbind {dir} \"$root{dir}\"\n"
            ));
        }
        script.push_str("exec chroot \"$root\" \"$@\"");
        let mut command = Command::new(installed("unshare")?);
        command.args(["--mount", "sh", "-c", &script, "sh"]).arg(&self.0).arg(program);
        Ok(command)
    }
}
