//! The accepted orders as plain files, written atomically, and the factory orders.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use coracle_protocol::Envelope;
use coracle_protocol::limits::MAX_ENVELOPE_BYTES;
use serde::Deserialize;

use super::StoredOrder;
use super::error::StoreError;
use crate::fault::fault_point;

pub(super) const ORDER: &str = "order.json";
pub(super) const PREVIOUS: &str = "order.previous.json";
const NEW: &str = "order.json.new";
const NEW_PREVIOUS: &str = "order.previous.json.new";

/// Makes `order` the current order file and the one before it the previous one. At every moment
/// there is a complete current file, once there was one.
pub(super) fn write(dir: &Path, order: &StoredOrder) -> Result<(), StoreError> {
    let current = dir.join(ORDER);
    let new = dir.join(NEW);
    remove(&new)?;
    write_new(&new, &order.envelope)?;
    fault_point("order_file.synced");
    if current.exists() {
        keep_as_previous(dir, &current)?;
    }
    fs::rename(&new, &current).map_err(|error| StoreError::io("rename", &new, error))?;
    fault_point("order_file.renamed");
    sync_directory(dir)
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let failed = |action| move |error| StoreError::io(action, path, error);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed("create"))?;
    file.write_all(bytes).map_err(failed("write"))?;
    fault_point("order_file.written");
    file.sync_all().map_err(failed("sync"))
}

/// A second name for the file, so that it never has none; its content is not written again.
fn keep_as_previous(dir: &Path, current: &Path) -> Result<(), StoreError> {
    let link = dir.join(NEW_PREVIOUS);
    remove(&link)?;
    fs::hard_link(current, &link).map_err(|error| StoreError::io("link", &link, error))?;
    fault_point("order_file.linked");
    fs::rename(&link, dir.join(PREVIOUS))
        .map_err(|error| StoreError::io("rename", &link, error))?;
    fault_point("order_file.previous_renamed");
    Ok(())
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(dir: &Path) -> Result<(), StoreError> {
    File::open(dir)
        .and_then(|file| file.sync_all())
        .map_err(|error| StoreError::io("sync", dir, error))
}

/// Whether the current order file holds `order`.
pub(super) fn holds(dir: &Path, order: &StoredOrder) -> bool {
    matches!(read_bytes(&dir.join(ORDER)), Ok(Some(bytes)) if bytes == order.envelope)
}

/// The order in a plain file, unverified; `None` if there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<StoredOrder>, String> {
    #[derive(Deserialize)]
    struct Order {
        generation: u64,
    }

    let Some(bytes) = read_bytes(path)? else { return Ok(None) };
    let envelope =
        Envelope::decode(&bytes).map_err(|refusal| format!("{}: {refusal}", path.display()))?;
    let order: Order = serde_json::from_slice(&envelope.payload)
        .map_err(|error| format!("{}: its payload: {error}", path.display()))?;
    Ok(Some(StoredOrder::new(order.generation, bytes)))
}

/// One byte more than allowed at most, so that what follows refuses it as too large.
fn read_bytes(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let read = || {
        let mut bytes = Vec::new();
        File::open(path)?.take(MAX_ENVELOPE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if io::Error::kind(&error) == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}
