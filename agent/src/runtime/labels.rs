//! Our labels on containers: how we know them again, and all that is needed to know of them.
//!
//! | label | value |
//! |---|---|
//! | `io.coracle/workload` | name of the workload |
//! | `io.coracle/replica` | index of the replica, decimal |
//! | `io.coracle/container` | name of the container in the workload |
//! | `io.coracle/generation` | generation of the order, decimal |
//! | `io.coracle/definition` | hash of the definition |
//! | `io.coracle/limits` | [`Limits::label`] of its limits; not there if it has none |
//! | `io.coracle/stop-signal` | the image's own stop signal, if it has one |

use std::collections::HashMap;

use coracle_core::desired::DefinitionHash;
#[cfg(doc)]
use coracle_core::desired::Limits;
use coracle_core::name::{ContainerId, ContainerName, ReplicaId, WorkloadName};
use coracle_core::plan::Start;

pub(super) const WORKLOAD: &str = "io.coracle/workload";
const REPLICA: &str = "io.coracle/replica";
const CONTAINER: &str = "io.coracle/container";
const GENERATION: &str = "io.coracle/generation";
const DEFINITION: &str = "io.coracle/definition";
pub(super) const LIMITS: &str = "io.coracle/limits";
const STOP_SIGNAL: &str = "io.coracle/stop-signal";

/// Longest stop signal of an image that is kept; longer ones are nonsense.
const STOP_SIGNAL_LIMIT: usize = 32;

/// What the labels of one of our containers say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Labels {
    pub(super) replica: ReplicaId,
    pub(super) name: ContainerName,
    pub(super) generation: u64,
    pub(super) definition: DefinitionHash,
    pub(super) limits: Box<str>,
    pub(super) stop_signal: Option<String>,
}

/// The labels for a container to be made.
pub(super) fn write(start: &Start, stop_signal: Option<&str>) -> HashMap<String, String> {
    let stop_signal = stop_signal.filter(|s| !s.is_empty() && s.len() <= STOP_SIGNAL_LIMIT);
    let limits = start.container.limits.label();
    let labels = [
        (WORKLOAD, Some(start.replica.workload.to_string())),
        (REPLICA, Some(start.replica.index.to_string())),
        (CONTAINER, Some(start.container.name.to_string())),
        (GENERATION, Some(start.generation.to_string())),
        (DEFINITION, Some(start.definition.as_str().to_owned())),
        // containerd keeps no empty value.
        (LIMITS, Some(limits).filter(|limits| !limits.is_empty())),
        (STOP_SIGNAL, stop_signal.map(str::to_owned)),
    ];
    labels.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}

/// Reads the labels of the container `id`; `None` unless they are all there, well-formed, and say
/// what the id says: then the container is not ours.
pub(super) fn read(id: &ContainerId, labels: &HashMap<String, String>) -> Option<Labels> {
    let get = |key: &str| labels.get(key).map(String::as_str);
    let replica = ReplicaId {
        workload: WorkloadName::parse(get(WORKLOAD)?).ok()?,
        index: get(REPLICA)?.parse().ok()?,
    };
    let read = Labels {
        name: ContainerName::parse(get(CONTAINER)?).ok()?,
        generation: get(GENERATION)?.parse().ok()?,
        definition: DefinitionHash::from_label(get(DEFINITION)?),
        limits: get(LIMITS).unwrap_or_default().into(),
        stop_signal: get(STOP_SIGNAL).map(str::to_owned),
        replica,
    };
    (read.replica.container(&read.name) == *id).then_some(read)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::runtime::oci::tests::start;

    #[test]
    fn what_is_written_is_read_back() {
        let mut start = start();
        let labels = write(&start, None);
        assert_eq!(&*read(&start.id, &labels).unwrap().limits, "");
        Arc::make_mut(&mut start.container).limits.memory_mib = Some(64);
        let labels = write(&start, Some("SIGQUIT"));
        let read = read(&start.id, &labels).unwrap();
        assert_eq!(*read.limits, *start.container.limits.label());
        assert_eq!(read.replica, start.replica);
        assert_eq!(read.generation, start.generation);
        assert_eq!(read.definition, start.definition);
        assert_eq!(read.stop_signal.as_deref(), Some("SIGQUIT"));
    }

    #[test]
    fn labels_that_are_not_complete_or_do_not_fit_the_id_are_not_ours() {
        let start = start();
        let good = write(&start, None);
        assert!(read(&start.id, &good).is_some());
        assert!(read(&ContainerId::from_listed("other.0.main"), &good).is_none());
        for key in [WORKLOAD, REPLICA, CONTAINER, GENERATION, DEFINITION] {
            let mut without = good.clone();
            without.remove(key);
            assert!(read(&start.id, &without).is_none(), "{key}");
        }
        let mut odd = good;
        odd.insert(REPLICA.into(), "-1".into());
        assert!(read(&start.id, &odd).is_none());
    }
}
