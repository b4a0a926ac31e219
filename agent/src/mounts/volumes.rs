//! Volumes: directories that containers write to. Made here, measured, removed when asked to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use coracle_core::name::ResourceName;
use coracle_protocol::Timestamp;

use super::error::{MountError, failed};
use super::site::{
    Site, delete, ensure_dir, hide, is_temporary, names, parse_replica, set_mode, under_way,
};
use crate::clock::wall_now;
use crate::fault::fault_point;
use crate::file_tree::Meter;
use crate::status::VolumeStatus;

/// How often it is written down that a volume is in use: it costs a write to flash.
const USED_EVERY: Duration = Duration::from_secs(3600);

/// Makes the directory `dir/name` if it is not there. Whichever user a container runs as may write
/// to it: others on the gateway do not get past the directories above. One that is there is left as
/// it is.
pub(super) fn ensure(dir: &Path, name: &str) -> Result<PathBuf, MountError> {
    ensure_dir(dir, 0o700)?;
    let path = dir.join(name);
    match fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_dir() => return Ok(path),
        Ok(_) => {
            let error = io::Error::new(io::ErrorKind::NotADirectory, "it is not a directory");
            return Err(failed("use the volume", &path)(error));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at", &path)(error)),
    }
    let new = under_way(dir, name);
    delete(&new)?;
    fs::create_dir(&new).map_err(failed("make", &new))?;
    fault_point("volume.made");
    set_mode(&new, 0o777).map_err(failed("open", &new))?;
    fault_point("volume.opened");
    fs::rename(&new, &path).map_err(failed("name", &path))?;
    fault_point("volume.renamed");
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", dir))?;
    fault_point("volume.synced");
    Ok(path)
}

/// Writes down that a named volume is used now.
pub(super) fn touch(site: &Site, name: &str) -> Result<(), MountError> {
    let path = site.used.join(name);
    let recent = used_at(site, name)
        .is_some_and(|at| wall_now().checked_sub(at).is_some_and(|age| age < USED_EVERY));
    if recent {
        return Ok(());
    }
    ensure_dir(&site.used, 0o700)?;
    let touch = || {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
        file.set_modified(UNIX_EPOCH + wall_now())
    };
    touch().map_err(failed("touch", &path))
}

fn used_at(site: &Site, name: &str) -> Option<Duration> {
    let modified = fs::symlink_metadata(site.used.join(name)).ok()?.modified().ok()?;
    modified.duration_since(UNIX_EPOCH).ok()
}

/// All named volumes with their size. `users` are the workloads whose order names a volume.
pub(super) fn list(
    site: &Site,
    mut users: BTreeMap<String, BTreeSet<String>>,
) -> Result<Vec<VolumeStatus>, MountError> {
    let mounted = mounted(site)?;
    let now = Timestamp::from_unix(wall_now().as_secs());
    let mut meter = Meter::new();
    let mut volumes = Vec::new();
    for name in names(&site.named)? {
        let path = site.named.join(&name);
        if is_temporary(&name) || !path.is_dir() {
            continue;
        }
        let (bytes, complete) = meter.measure(&path);
        let mounted_by = mounted.get(&name).cloned().unwrap_or_default();
        let last_used = match mounted_by.is_empty() {
            false => Some(now),
            true => used_at(site, &name).map(|at| Timestamp::from_unix(at.as_secs())),
        };
        let used_by = users.remove(&name).unwrap_or_default();
        volumes.push(VolumeStatus {
            name,
            bytes,
            complete,
            used_by: used_by.into_iter().collect(),
            mounted_by: mounted_by.into_iter().collect(),
            last_used,
        });
    }
    Ok(volumes)
}

/// Takes a volume that nobody uses out of sight; it is left to delete.
pub(super) fn take(site: &Site, name: &str, users: &BTreeSet<String>) -> Result<(), MountError> {
    // A name by other rules is nobody's volume.
    let no_volume = || MountError::NoVolume { name: name.chars().take(100).collect() };
    ResourceName::parse(name).map_err(|_| no_volume())?;
    if !site.named.join(name).is_dir() {
        return Err(no_volume());
    }
    let mut users = users.clone();
    users.extend(mounted(site)?.remove(name).unwrap_or_default());
    if !users.is_empty() {
        let users = users.into_iter().collect();
        return Err(MountError::InUse { name: name.to_owned(), users });
    }
    hide(&site.named, name)?;
    fault_point("remove.renamed");
    File::open(&site.named).and_then(|dir| dir.sync_all()).map_err(failed("sync", &site.named))?;
    delete(&site.used.join(name))
}

/// Which replicas have which named volumes mounted, or are about to.
fn mounted(site: &Site) -> Result<BTreeMap<String, BTreeSet<String>>, MountError> {
    let mut mounted: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for replica in names(&site.pods)?.iter().filter(|name| parse_replica(name).is_some()) {
        let containers = site.pods.join(replica).join("containers");
        for container in names(&containers)? {
            for volume in names(&containers.join(container).join(super::USES))? {
                mounted.entry(volume).or_default().insert(replica.clone());
            }
        }
    }
    Ok(mounted)
}
