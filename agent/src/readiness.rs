//! What the probes of containers last said, kept in memory over restarts of the agent: what was ready
//! goes on getting work, and what had yet to become so gets none before its time.
//!
//! In: the health of containers. Out: what they count as before the first answer. A file in the
//! runtime directory, which a boot empties; without one, as after an agent that did not write it,
//! everything that runs counts as ready. Deliberately not here: what follows from it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use coracle_core::name::ContainerId;
use coracle_core::observed::Health;
use coracle_core::probe::Before;
use serde::{Deserialize, Serialize};
use tracing::warn;

/// The file's name.
const NAME: &str = "readiness.json";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    pid: u32,
    started: bool,
    ready: bool,
    proven: bool,
}

/// What everything counts as where nobody kept anything.
const ALL_READY: Before = Before { started: true, ready: true, proven: false };

/// What was known last.
#[derive(Debug)]
pub struct Readiness {
    path: PathBuf,
    /// By the id of the container; `None` if nothing was ever kept.
    kept: Option<BTreeMap<String, Kept>>,
}

impl Readiness {
    /// What an agent before this one kept in that directory.
    pub fn open(runtime_dir: &Path) -> Self {
        let path = runtime_dir.join(NAME);
        let kept = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self { path, kept }
    }

    /// What a process of a container that ran before the agent did counts as.
    pub fn before(&self, id: &ContainerId, pid: u32) -> Before {
        let Some(kept) = &self.kept else { return ALL_READY };
        let known = kept.get(id.as_str()).filter(|known| known.pid == pid);
        known.map_or(Before::default(), |known| Before {
            started: known.started,
            ready: known.ready,
            proven: known.proven,
        })
    }

    /// Keeps how containers are now, if that changed.
    pub fn keep(&mut self, health: &BTreeMap<ContainerId, Health>) {
        let kept = |health: &Health| Kept {
            pid: health.pid,
            started: health.started,
            ready: health.ready,
            proven: health.proven,
        };
        let now: BTreeMap<_, _> =
            health.iter().map(|(id, health)| (id.to_string(), kept(health))).collect();
        if self.kept.as_ref() == Some(&now) {
            return;
        }
        if let Err(error) = self.write(&now) {
            warn!(path = %self.path.display(), %error, "who is ready is not kept for the next agent");
        }
        self.kept = Some(now);
    }

    fn write(&self, kept: &BTreeMap<String, Kept>) -> io::Result<()> {
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir)?;
        }
        let new = self.path.with_extension("new");
        fs::write(&new, serde_json::to_vec(kept)?)?;
        fs::rename(new, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_ready_is_known_to_the_next_agent_and_without_a_file_all_are() {
        let place = tempfile::tempdir().unwrap();
        let id = |name: &str| ContainerId::from_listed(&format!("{name}.0.main"));
        let health = |pid, ready| Health {
            pid,
            started: true,
            live: true,
            ready,
            proven: ready,
            message: None,
        };
        let before = |started, ready| Before { started, ready, proven: ready };
        let mut readiness = Readiness::open(place.path());
        assert_eq!(readiness.before(&id("web"), 7), ALL_READY);
        readiness.keep(&[(id("web"), health(7, true)), (id("db"), health(8, false))].into());

        let mut next = Readiness::open(place.path());
        assert_eq!(next.before(&id("web"), 7), before(true, true));
        assert_eq!(next.before(&id("db"), 8), before(true, false));
        assert_eq!(next.before(&id("web"), 9), before(false, false), "another process of it");
        assert_eq!(next.before(&id("new"), 10), before(false, false));
        next.keep(&BTreeMap::new());
        assert_eq!(Readiness::open(place.path()).before(&id("web"), 7), before(false, false));

        fs::write(place.path().join(NAME), "{").unwrap();
        assert_eq!(Readiness::open(place.path()).before(&id("web"), 7), ALL_READY);
    }
}
