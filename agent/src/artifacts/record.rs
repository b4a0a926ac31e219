//! What says that an artifact is installed: a file in its own tree, so that one rename makes both.

use std::fs;
use std::path::Path;

use coracle_core::artifact::ArtifactId;
use coracle_core::image::Digest;
use coracle_protocol::Timestamp;
use serde::{Deserialize, Serialize};

use super::error::ArtifactError;
use super::site::{is_missing, write};

/// Beside the files of the artifact; a ZIP with this name in it is refused.
const FILE: &str = ".coracle-artifact.json";

/// An installed artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// Of the ZIP that it came in.
    pub digest: Digest,
    /// Of the ZIP, in bytes.
    pub zip_bytes: u64,
    /// Of all its files, in bytes.
    pub unpacked_bytes: u64,
    /// Files, directories and links.
    pub entries: u64,
    /// When it was installed, by the gateway's clock.
    pub installed_at: Timestamp,
    /// Who wanted it.
    pub by: InstalledBy,
}

/// Who wanted an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstalledBy {
    /// An order alone: it may go when no order names it any more.
    Order,
    /// Somebody at the gateway, whatever orders say.
    Hand,
}

#[derive(Serialize, Deserialize)]
struct File {
    artifact: ArtifactId,
    #[serde(flatten)]
    installed: Installed,
}

/// What the directory of an artifact says of itself; `None` if there is no such directory.
pub(super) fn read(dir: &Path, id: &ArtifactId) -> Result<Option<Installed>, ArtifactError> {
    let path = dir.join(FILE);
    let damaged = || ArtifactError::Record { artifact: id.clone(), path: path.clone() };
    match fs::read(&path) {
        Ok(text) => {
            let file: File = serde_json::from_slice(&text).map_err(|_| damaged())?;
            Ok((file.artifact == *id).then_some(file.installed).ok_or_else(damaged)?.into())
        }
        Err(error) if is_missing(&error) && !super::site::exists(dir)? => Ok(None),
        Err(_) => Err(damaged()),
    }
}

/// Writes what the directory says of itself.
pub(super) fn note(
    dir: &Path,
    id: &ArtifactId,
    installed: &Installed,
) -> Result<(), ArtifactError> {
    let file = File { artifact: id.clone(), installed: installed.clone() };
    let text = serde_json::to_vec(&file).map_err(|_| ArtifactError::BrokeOff)?;
    write(dir, FILE, &text, 0o444)
}
