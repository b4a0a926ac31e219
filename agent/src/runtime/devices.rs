//! Devices of the gateway for one container: which node is behind a path, at the moment of a start.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::surroundings::Device;
use super::user::Ids;

/// Most devices that a `*` may stand for.
const MATCHES_LIMIT: usize = 256;

/// A device node as the container is to have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    to: String,
    /// `c` or `b`.
    kind: &'static str,
    major: u64,
    minor: u64,
    /// Permission bits.
    mode: u32,
    access: String,
}

/// Why a device cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum DeviceProblem {
    /// It is not there, or cannot be looked at.
    #[error("device {path} is not there; is it plugged in, and its driver loaded?")]
    Missing {
        /// Its path on the gateway.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No device's name begins so.
    #[error("no device is there whose path fits {path}; is it plugged in, and its driver loaded?")]
    NoneFits {
        /// The path, with its `*`.
        path: PathBuf,
    },
    /// More devices than a container can sensibly be given.
    #[error("more than {MATCHES_LIMIT} devices fit {path}")]
    TooMany {
        /// The path, with its `*`.
        path: PathBuf,
    },
    /// It is something else.
    #[error("{path} is no device")]
    NoDevice {
        /// Its path on the gateway.
        path: PathBuf,
    },
}

/// Looks the devices up. Symbolic links, as udev makes them, are followed.
///
/// # Errors
/// One of them is not there or is no device.
pub(super) fn look_up(devices: &[Device]) -> Result<Vec<Node>, DeviceProblem> {
    let mut nodes = Vec::new();
    for device in devices {
        match device.path.to_str().and_then(|path| path.strip_suffix('*')) {
            None => nodes.push(node(&device.path, &device.to, &device.access)?),
            Some(beginning) => nodes.extend(matches(device, beginning)?),
        }
    }
    Ok(nodes)
}

fn matches(device: &Device, beginning: &str) -> Result<Vec<Node>, DeviceProblem> {
    let missing = |source| DeviceProblem::Missing { path: device.path.clone(), source };
    let (dir, prefix) = beginning.rsplit_once('/').unwrap_or(("", beginning));
    let mut paths = Vec::new();
    for entry in fs::read_dir(format!("{dir}/")).map_err(missing)? {
        let path = entry.map_err(missing)?.path();
        let fits = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(prefix.as_bytes()));
        if fits {
            paths.push(path);
        }
    }
    paths.sort();
    let mut nodes = Vec::new();
    for path in paths {
        match node(&path, &path.to_string_lossy(), &device.access) {
            // Directories such as by-id, and what was unplugged meanwhile.
            Err(DeviceProblem::NoDevice { .. } | DeviceProblem::Missing { .. }) => {}
            node => nodes.push(node?),
        }
        if nodes.len() > MATCHES_LIMIT {
            return Err(DeviceProblem::TooMany { path: device.path.clone() });
        }
    }
    if nodes.is_empty() {
        return Err(DeviceProblem::NoneFits { path: device.path.clone() });
    }
    Ok(nodes)
}

fn node(path: &Path, to: &str, access: &str) -> Result<Node, DeviceProblem> {
    let found = fs::metadata(path)
        .map_err(|source| DeviceProblem::Missing { path: path.to_owned(), source })?;
    let kind = match found.file_type() {
        kind if kind.is_char_device() => "c",
        kind if kind.is_block_device() => "b",
        _ => return Err(DeviceProblem::NoDevice { path: path.to_owned() }),
    };
    let number = found.rdev();
    Ok(Node {
        to: to.to_owned(),
        kind,
        major: nix::sys::stat::major(number),
        minor: nix::sys::stat::minor(number),
        mode: found.mode() & 0o777,
        access: access.to_owned(),
    })
}

impl Node {
    /// An entry of `linux.devices`. The node belongs to the container's user: who was given a device
    /// needs no group of the gateway's to open it.
    pub(super) fn node(&self, ids: &Ids) -> Value {
        json!({
            "path": self.to,
            "type": self.kind,
            "major": self.major,
            "minor": self.minor,
            "fileMode": self.mode | 0o600,
            "uid": ids.uid,
            "gid": ids.gid,
        })
    }

    /// An entry of `linux.resources.devices`.
    pub(super) fn rule(&self) -> Value {
        json!({
            "allow": true,
            "type": self.kind,
            "major": self.major,
            "minor": self.minor,
            "access": self.access,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(path: &str) -> Device {
        Device { path: path.into(), to: "/dev/mine".into(), access: "rw".into() }
    }

    #[test]
    fn a_device_is_what_its_path_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        let direct = look_up(&[device("/dev/null")]).unwrap();
        assert_eq!(look_up(&[device(link.to_str().unwrap())]).unwrap(), direct);
        let mode = fs::metadata("/dev/null").unwrap().mode() & 0o777;
        let wanted = json!({"path": "/dev/mine", "type": "c", "major": 1, "minor": 3,
            "fileMode": mode | 0o600, "uid": 7, "gid": 8});
        assert_eq!(direct[0].node(&Ids { uid: 7, gid: 8, groups: vec![] }), wanted);
        let wanted = json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"});
        assert_eq!(direct[0].rule(), wanted);
    }

    #[test]
    fn a_star_stands_for_every_device_there_and_for_at_least_one() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        for name in ["gps1", "gps0", "other0"] {
            std::os::unix::fs::symlink("/dev/zero", place(name)).unwrap();
        }
        fs::create_dir(place("gps-by-id")).unwrap();
        std::os::unix::fs::symlink("/nowhere", place("gps9")).unwrap();
        let nodes = look_up(&[device(&place("gps*"))]).unwrap();
        let to: Vec<_> = nodes.iter().map(|node| node.to.clone()).collect();
        assert_eq!(to, [place("gps0"), place("gps1")]);
        let none = look_up(&[device(&place("modem*"))]).unwrap_err();
        assert!(matches!(none, DeviceProblem::NoneFits { .. }), "{none}");
    }

    #[test]
    fn what_is_not_there_and_what_is_no_device_is_named() {
        let error = look_up(&[device("/dev/null"), device("/dev/no-such")]).unwrap_err();
        assert!(error.to_string().starts_with("device /dev/no-such is not there"), "{error}");
        let error = look_up(&[device("/dev/../etc")]).unwrap_err();
        assert!(matches!(error, DeviceProblem::NoDevice { .. }), "{error}");
    }
}
