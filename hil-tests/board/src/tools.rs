//! The programs that are not part of this project: QEMU, unpacked or installed, and the tools for
//! file systems. In: `CORACLE_QEMU` or nothing. Out: commands.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use coracle_testbed::process::run;
use coracle_testbed::{Result, installed};

const LIMIT: Duration = Duration::from_secs(120);

/// The repository's root.
pub fn repository() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).unwrap_or(own)
}

/// Where images, QEMU and logs of failures are kept: `CORACLE_HIL`, or `target/hil`.
pub fn cache() -> PathBuf {
    let set = std::env::var_os("CORACLE_HIL").map(PathBuf::from);
    set.unwrap_or_else(|| repository().join("target/hil"))
}

/// A program of QEMU's: from `target/hil/qemu`, where `scripts/hil` unpacks it, else an installed
/// one.
pub fn qemu(name: &str) -> Result<Command> {
    let dir = cache().join("qemu");
    let program = dir.join("usr/bin").join(name);
    if !program.is_file() {
        let path = installed(name)
            .with_context(|| format!("no {name}: run scripts/hil, which fetches it"))?;
        return Ok(Command::new(path));
    }
    let mut command = Command::new(&program);
    let libraries = std::fs::read_dir(dir.join("usr/lib"))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().ends_with("-linux-gnu"));
    command.env("LD_LIBRARY_PATH", std::env::join_paths(libraries)?);
    if name.starts_with("qemu-system") {
        for share in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(dir.join(share));
        }
    }
    Ok(command)
}

/// An ext4 file system in a new file of `mib` mebibytes, with what `dir` holds.
pub fn make_ext4(file: &Path, mib: u32, label: &str, dir: Option<&Path>) -> Result<()> {
    let mut command = Command::new(installed("mke2fs")?);
    command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-L", label, "-E", "root_owner=0:0"]);
    if let Some(dir) = dir {
        command.arg("-d").arg(dir);
    }
    command.arg(file).arg(format!("{mib}M"));
    run(&mut command, LIMIT).map(drop)
}

/// An empty overlay in `file` over `below`. Clusters are small, so that little survives a power
/// cut by lying beside something that was flushed.
pub fn make_overlay(file: &Path, below: &Path, format: &str) -> Result<()> {
    let mut command = qemu("qemu-img")?;
    command.args(["create", "-q", "-f", "qcow2", "-o", "cluster_size=4096"]);
    command.args(["-F", format, "-b"]).arg(below).arg(file);
    run(&mut command, LIMIT).map(drop)
}

/// What a stack of overlays holds, as a plain file.
pub fn flatten(top: &Path, format: &str, file: &Path) -> Result<()> {
    let mut command = qemu("qemu-img")?;
    command.args(["convert", "-q", "-f", format, "-O", "raw"]).arg(top).arg(file);
    run(&mut command, LIMIT).map(drop)
}

/// Runs `debugfs` commands, one a line, on the ext4 file system in `file`.
pub fn debugfs(file: &Path, commands: &str) -> Result<String> {
    let script = file.with_extension("debugfs");
    std::fs::write(&script, commands)?;
    let mut command = Command::new(installed("debugfs")?);
    command.arg("-w").arg("-f").arg(&script).arg(file);
    let out = run(&mut command, LIMIT)?;
    std::fs::remove_file(&script)?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}
