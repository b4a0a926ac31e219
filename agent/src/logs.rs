//! What containers said. Written by `coracle-log` (crate `coracle-log`, whose formats are used here),
//! one process for each container, started by containerd's shim; read here straight from the files,
//! so that it can be read while the agent is stopped.
//!
//! In: `[logs]` of the configuration. Out: the URI for a task's standard output ([`uri`]), what is
//! kept ([`list`]), readers of it ([`Reader`]), and what is wrong with it ([`problem`]).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use coracle_core::name::ContainerId;
pub use coracle_log::line::{Stream, Time};
use coracle_log::{files, line};
use coracle_protocol::Timestamp;
use nix::unistd::{AccessFlags, access};

use crate::config::LogsConfig;
use crate::status::LogLine;

mod backward;
mod reader;
mod several;
mod since;
mod watch;

pub use reader::{Item, Reader, Record, Run, Selection};
pub use several::{Pattern, Sources};
pub use since::parse_since;
pub use watch::Watch;

/// Of containers that no order names, the logs of this many are kept.
const DEAD_KEPT: usize = 16;

/// The directory of all containers' logs.
pub fn dir(config: &LogsConfig, state_dir: &Path) -> PathBuf {
    config.dir.clone().unwrap_or_else(|| state_dir.join("logs"))
}

/// What is given to containerd as a task's standard output and error. `None` if the program is not
/// there: containerd would not start the container.
pub fn uri(config: &LogsConfig, state_dir: &Path) -> Option<String> {
    access(&config.program, AccessFlags::X_OK).is_ok().then(|| {
        let program = escape(config.program.as_os_str().as_encoded_bytes());
        let dir = dir(config, state_dir);
        let dir = escape(dir.as_os_str().as_encoded_bytes());
        let file = u64::from(config.file_kib) * 1024;
        let total = u64::from(config.total_mib) * 1024 * 1024;
        let files = config.files;
        format!("binary://{program}?dir={dir}&file={file}&files={files}&total={total}")
    })
}

/// Percent encoding of all but what is plain in a path and in a query alike (RFC 3986).
fn escape(path: &[u8]) -> String {
    path.iter()
        .map(|&byte| match byte {
            b'/' | b'-' | b'_' | b'.' | b'~' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

/// Why what containers say cannot be kept, in a sentence; `None` if it can. Workloads run all the
/// same. Makes the directory.
pub fn problem(config: &LogsConfig, state_dir: &Path) -> Option<String> {
    let dir = dir(config, state_dir);
    let program = &config.program;
    if let Err(error) = access(program, AccessFlags::X_OK) {
        return Some(format!("nothing is kept: {} cannot be started: {error}", program.display()));
    }
    let usable = files::make_dir(&dir).and_then(|()| Ok(access(&dir, AccessFlags::W_OK)?));
    usable.err().map(|error| {
        let error = error
            .raw_os_error()
            .map_or(error.to_string(), |errno| nix::errno::Errno::from_raw(errno).to_string());
        format!("nothing is kept: {} cannot be written: {error}", dir.display())
    })
}

/// What is kept of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Whose it is.
    pub id: ContainerId,
    /// Bytes on the disk.
    pub size: u64,
    /// When it was last written to.
    pub newest: Option<Timestamp>,
}

/// Containers of which something is kept, by id.
///
/// # Errors
/// The directory cannot be read. That there is none is no error.
pub fn list(dir: &Path) -> io::Result<Vec<Kept>> {
    let mut kept = used(dir)?
        .into_iter()
        .filter(|used| !used.files.is_empty())
        .map(|used| Kept {
            newest: written(dir, &used).map(Timestamp::from),
            size: used.size(),
            id: ContainerId::from_listed(&used.id),
        })
        .collect::<Vec<_>>();
    kept.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(kept)
}

fn used(dir: &Path) -> io::Result<Vec<files::Used>> {
    match files::list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed,
    }
}

fn written(dir: &Path, used: &files::Used) -> Option<SystemTime> {
    let newest = files::path(&dir.join(&used.id), used.files.last()?.number);
    fs::metadata(newest).and_then(|metadata| metadata.modified()).ok()
}

/// Removes the logs of containers that are not to be kept, but for those that were written last: a
/// technician may still want to read why what was removed had failed. These count towards the cap of
/// the gateway as all others do. Gives the ids of what was removed.
///
/// # Errors
/// The directory cannot be read or changed.
pub fn forget(dir: &Path, keep: &BTreeSet<ContainerId>) -> io::Result<Vec<ContainerId>> {
    let mut dead = used(dir)?
        .into_iter()
        .map(|used| (written(dir, &used), ContainerId::from_listed(&used.id)))
        .filter(|(_, id)| !keep.contains(id))
        .collect::<Vec<_>>();
    if dead.len() <= DEAD_KEPT {
        return Ok(Vec::new());
    }
    // Somebody makes room right now: another time will do.
    let Some(_lock) = files::Lock::take(dir)? else { return Ok(Vec::new()) };
    dead.sort();
    dead.truncate(dead.len() - DEAD_KEPT);
    let removed = dead.into_iter().map(|(_, id)| id).collect::<Vec<_>>();
    for id in &removed {
        match fs::remove_dir_all(dir.join(id.as_str())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(removed)
}

/// What was said, as the API and commands give it.
pub fn line_of(id: &ContainerId, item: &Item) -> LogLine {
    let record = match item {
        Item::Record(record) => Some(record),
        Item::Gap => None,
    };
    LogLine {
        container: id.as_str().to_owned(),
        time: record.map(|record| record.time.to_string()),
        stream: record.map_or(Stream::Coracle, |record| record.stream).name().into(),
        partial: record.is_some_and(|record| record.partial),
        text: match record {
            Some(record) => String::from_utf8_lossy(&record.text).into_owned(),
            None => "lines are missing: removed before they were read".to_owned(),
        },
    }
}

/// Longest line that is looked at; a longer one is none of ours.
const LONGEST_LINE: usize = 4 * coracle_log::pump::BUFFER + line::LONGEST_HEADER;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn config(program: &Path) -> LogsConfig {
        LogsConfig { program: program.into(), ..LogsConfig::default() }
    }

    #[test]
    fn the_uri_names_program_and_limits_and_is_none_without_the_program() {
        let mut config = config(Path::new("/bin/true"));
        let state = Path::new("/var/lib/coracle");
        assert_eq!(
            uri(&config, state).unwrap(),
            "binary:///bin/true?dir=/var/lib/coracle/logs&file=1048576&files=4&total=67108864"
        );
        config.dir = Some("/mnt/a b&c+d%?é".into());
        assert!(uri(&config, state).unwrap().contains("?dir=/mnt/a%20b%26c%2Bd%25%3F%C3%A9&file="));
        config.program = "/bin/no-such-program".into();
        assert_eq!(uri(&config, state), None);
    }

    #[test]
    fn what_keeps_logs_from_being_kept_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let (good, missing) = (config(Path::new("/bin/true")), config(Path::new("/no/program")));
        assert_eq!(problem(&good, dir.path()), None);
        assert!(dir.path().join("logs").is_dir());
        assert!(
            problem(&missing, dir.path())
                .unwrap()
                .contains("/no/program cannot be started: ENOENT")
        );
        fs::write(dir.path().join("file"), "").unwrap();
        let said = problem(&good, &dir.path().join("file")).unwrap();
        assert!(said.contains("file/logs cannot be written: ENOTDIR"), "{said}");
    }

    #[test]
    fn the_newest_of_what_no_order_names_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert_eq!(forget(&dir.join("nowhere"), &BTreeSet::new()).unwrap(), []);
        for number in 0..20 {
            let container = dir.join(format!("w.{number}.main"));
            fs::create_dir(&container).unwrap();
            let file = fs::File::create(files::path(&container, 1)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1000 - number)).unwrap();
        }
        let id = |number: u32| ContainerId::from_listed(&format!("w.{number}.main"));
        let removed = forget(dir, &BTreeSet::from([id(19), id(18)])).unwrap();
        assert_eq!(removed, [id(17), id(16)]);
        assert_eq!(list(dir).unwrap().len(), 18);
        assert_eq!(forget(dir, &BTreeSet::from([id(19), id(18)])).unwrap(), []);
    }
}
