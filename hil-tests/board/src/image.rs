//! The gateway's read-only system. In: an architecture, and changes that a test wants. Out: kernel,
//! initramfs and root file system, built and kept by `image/build`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use coracle_testbed::image::Platform;
use coracle_testbed::process::run;
use coracle_testbed::{Place, Result};

use crate::tools;

const BUILD_LIMIT: Duration = Duration::from_secs(900);

/// What the gateway's processor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// aarch64.
    Arm64,
    /// x86-64.
    Amd64,
}

impl Architecture {
    /// The distribution's name, and Go's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Arm64 => "arm64",
            Self::Amd64 => "amd64",
        }
    }

    /// What images for it say.
    pub fn platform(self) -> Platform {
        Platform::linux(self.name())
    }

    /// The agent built for it: `CORACLE_AGENT_ARM64` or `CORACLE_AGENT_AMD64`, else where
    /// `scripts/cross` and `cargo build --release` put it.
    pub fn agent(self) -> PathBuf {
        let (variable, built) = match self {
            Self::Arm64 => {
                ("CORACLE_AGENT_ARM64", "target/cross/aarch64-unknown-linux-gnu/dist/coracle")
            }
            Self::Amd64 => ("CORACLE_AGENT_AMD64", "target/release/coracle"),
        };
        let set = std::env::var_os(variable).map(PathBuf::from);
        set.unwrap_or_else(|| tools::repository().join(built))
    }
}

/// One change to the root file system, made before the boot.
#[derive(Debug, Clone)]
pub enum Change {
    /// A file, new or in place of another.
    Write {
        /// Absolute path on the gateway.
        path: String,
        /// Its content.
        content: Vec<u8>,
        /// Its mode, such as 0o644.
        mode: u32,
    },
    /// A file or link that is not to be there.
    Remove(
        /// Absolute path on the gateway.
        String,
    ),
}

impl Change {
    /// A plain file, 0644.
    pub fn write(path: &str, content: impl Into<Vec<u8>>) -> Self {
        Self::Write { path: path.to_owned(), content: content.into(), mode: 0o644 }
    }

    /// No such file.
    pub fn remove(path: &str) -> Self {
        Self::Remove(path.to_owned())
    }
}

/// A built image.
#[derive(Debug, Clone)]
pub struct Image {
    /// For which processor.
    pub architecture: Architecture,
    dir: PathBuf,
}

impl Image {
    /// Builds it, or takes what is kept; seconds if only the agent changed.
    pub fn build(architecture: Architecture) -> Result<Self> {
        static ONE: Mutex<()> = Mutex::new(());
        let _held = ONE.lock().map_err(|_| anyhow!("a builder panicked"))?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("image/build");
        let mut command = Command::new(script);
        command.args(["--arch", architecture.name(), "--agent"]).arg(architecture.agent());
        command.arg("--cache").arg(tools::cache());
        let out = run(&mut command, BUILD_LIMIT).context("cannot build the gateway's image")?;
        let out = String::from_utf8(out).context("path is not UTF-8")?;
        let dir = PathBuf::from(out.trim());
        ensure!(dir.join("root.ext4").is_file(), "no image in {}", dir.display());
        Ok(Self { architecture, dir })
    }

    /// The kernel.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("kernel")
    }

    /// What the kernel starts first.
    pub fn initramfs(&self) -> PathBuf {
        self.dir.join("initramfs")
    }

    /// The root file system, ext4, not to be written to.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root.ext4")
    }

    /// The unpacked packages of the web server that tests run as their workload.
    pub fn workload(&self) -> PathBuf {
        self.dir.join("workload")
    }

    /// A root file system with changes, in the place's data directory.
    pub fn changed(&self, place: &Place, changes: &[Change]) -> Result<PathBuf> {
        if changes.is_empty() {
            return Ok(self.root());
        }
        let file = place.data().join("root.ext4");
        let mut copy = Command::new("cp");
        copy.arg("--sparse=always").arg(self.root()).arg(&file);
        run(&mut copy, BUILD_LIMIT)?;
        apply(&file, changes)?;
        Ok(file)
    }
}

/// Makes changes to the ext4 file system in a file, from outside.
pub fn apply(file: &Path, changes: &[Change]) -> Result<()> {
    let mut script = String::new();
    let mut sources = Vec::new();
    for change in changes {
        match change {
            Change::Remove(path) => writeln!(script, "rm {path}")?,
            Change::Write { path, content, mode } => {
                let source = file.with_extension(format!("change{}", sources.len()));
                std::fs::write(&source, content)?;
                // What is there already is refused by name, and that does no harm.
                for (at, _) in path.match_indices('/').skip(1) {
                    writeln!(script, "mkdir {}", &path[..at])?;
                }
                writeln!(script, "rm {path}\nwrite {} {path}", source.display())?;
                writeln!(script, "sif {path} mode 0{:o}", 0o100_000 | mode)?;
                writeln!(script, "sif {path} uid 0\nsif {path} gid 0")?;
                sources.push(source);
            }
        }
    }
    tools::debugfs(file, &script).context("cannot change the file system")?;
    for source in sources {
        std::fs::remove_file(source)?;
    }
    Ok(())
}
