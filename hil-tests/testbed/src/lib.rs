//! Real things for tests, demo and benchmark: private containerds, a broker, registries, images
//! built on the spot and certificates, each in a [`Place`] of its own that leaves nothing behind.
//!
//! | module | what it gives |
//! |---|---|
//! | [`place`] | the directory, the children and the end of one test's things |
//! | [`process`] | one child with its log, signalled by process id only |
//! | [`containerd`] | a private containerd 1.6, 1.7, 2.x or the system's |
//! | [`broker`] | mosquitto with mutual TLS and per-gateway topic rules |
//! | [`pki`] | a test certificate authority and what it signs, good and bad |
//! | [`rabbitmq`] | RabbitMQ with its MQTT plugin, for the same |
//! | [`brokers`] | brokers of several makes and releases behind one interface |
//! | [`image`] | OCI images made from installed packages |
//! | [`registry`] | the distribution's `docker-registry`, and pushing to it |
//! | [`faulty`] | a registry, or a web server with files, that fails as told |
//! | [`http`] | a small HTTP client for loopback |
//!
//! Synchronous, std only. Deliberately not here: anything of the product itself, which tests
//! start as shipped binaries (see [`bin`]).

pub mod broker;
pub mod brokers;
pub mod containerd;
pub mod faulty;
pub mod http;
pub mod image;
pub mod pki;
pub mod place;
pub mod process;
pub mod rabbitmq;
pub mod registry;

mod procfs;
mod root;
mod sweep;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

pub use crate::broker::Broker;
pub use crate::brokers::{AnyBroker, Make};
pub use crate::containerd::{Containerd, Version};
pub use crate::faulty::FaultyRegistry;
pub use crate::image::{Image, Index};
pub use crate::pki::Pki;
pub use crate::place::Place;
pub use crate::process::Process;
pub use crate::registry::Registry;

/// What everything here answers with.
pub type Result<T> = anyhow::Result<T>;

/// Polls `condition` every 10 ms until it gives a value; an error naming `what` at the end of
/// `timeout`.
pub fn wait_for<T>(
    what: &str,
    timeout: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T> {
    let end = Instant::now() + timeout;
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("waited {timeout:?} in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The path of a shipped binary: in `CORACLE_BIN_DIR` if that is set, else beside or above the
/// running program (so a test in `target/debug/deps` finds `target/debug/NAME`).
pub fn bin(name: &str) -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("CORACLE_BIN_DIR") {
        let path = Path::new(&dir).join(name);
        anyhow::ensure!(path.is_file(), "no {name} in CORACLE_BIN_DIR {}", path.display());
        return Ok(path);
    }
    let exe = std::env::current_exe().context("cannot tell the running program's path")?;
    exe.ancestors()
        .skip(1)
        .take(3)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "no {name} beside or above {}: build it first (cargo build), or set CORACLE_BIN_DIR",
                exe.display()
            )
        })
}

/// The path of an installed program, looked for in `PATH` and the system directories.
pub fn installed(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    std::env::split_paths(&path)
        .chain(system.iter().map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not installed: run scripts/setup"))
}

/// A loopback TCP port that was free a moment ago, below the range that outgoing connections
/// use, so that a server can be stopped and started again on it.
pub fn free_port() -> Result<u16> {
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 12_000;
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    for _ in 0..COUNT {
        let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let candidate = FIRST + (std::process::id().wrapping_mul(97).wrapping_add(n)) % COUNT;
        let port = u16::try_from(candidate).context("port out of range")?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free loopback port between {FIRST} and {}", FIRST + COUNT)
}
