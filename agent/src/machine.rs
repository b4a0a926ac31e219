//! What this machine is, read once at start from the kernel and os-release.

use std::fs;
use std::time::Duration;

use coracle_protocol::presence::Machine;
use nix::sys::utsname::uname;

/// Version of this agent, `X.Y.Z`.
pub const AGENT_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Reads what there is; what cannot be read is empty.
pub fn read() -> Machine {
    let kernel_and_host = uname().ok();
    let text = |of: Option<&std::ffi::OsStr>| {
        of.map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
    };
    Machine {
        agent: AGENT_VERSION.into(),
        architecture: architecture().into(),
        kernel: text(kernel_and_host.as_ref().map(|names| names.release())),
        os: os_name(),
        hostname: text(kernel_and_host.as_ref().map(|names| names.nodename())),
        boot_id: boot_id(),
    }
}

/// The architecture in the OCI's words (those of Go's GOARCH).
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

/// The kernel's boot id: random for each boot.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Since the machine was started; zero if the kernel does not say.
pub fn uptime() -> Duration {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = text.split_whitespace().next().and_then(|word| word.parse::<f64>().ok());
    seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()).unwrap_or_default()
}

/// `PRETTY_NAME` of os-release
/// (<https://www.freedesktop.org/software/systemd/man/os-release.html>).
fn os_name() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or_default().trim_matches('"').chars().take(100).collect()
}
