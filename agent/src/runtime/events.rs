//! Follows containerd's event stream.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use containerd_client::events::{TaskExit, TaskOom};
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::version_client::VersionClient;
use containerd_client::services::v1::{PublishRequest, SubscribeRequest};
use containerd_client::tonic::codec::Streaming;
use containerd_client::tonic::{Code, Status};
use containerd_client::types::Envelope;
use coracle_core::name::ContainerId;
use prost::Message as _;
use prost_types::Any;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::cgroup::{Cgroups, Killed};
use super::{RuntimeEvent, list};
use crate::containerd::Containerd;

const EXIT_TOPIC: &str = "/tasks/exit";
const OOM_TOPIC: &str = "/tasks/oom";

/// Our own event, by which we see that the subscription is there.
const MARK_TOPIC: &str = "/coracle/mark";

/// Between two marks, until one comes back.
const MARK_INTERVAL: Duration = Duration::from_millis(20);

/// Until containerd must have taken a subscription.
const SUBSCRIBE_LIMIT: Duration = Duration::from_secs(10);

/// From want of memory until the kernel has killed something, with room.
const KILLING: Duration = Duration::from_millis(100);

const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// Tells of ends of containers in our namespace, of want of memory in them, and when containerd comes and goes, until nobody
/// receives any more. A full channel makes containerd keep the events.
///
/// The subscription is there before [`RuntimeEvent::Connected`] is told: what ends after it is
/// told, what ended before it is in the list.
pub async fn follow(containerd: Containerd, events: mpsc::Sender<RuntimeEvent>) {
    let mut delay = FIRST_DELAY;
    let mut lost = false;
    loop {
        let Err(end) = connection(&containerd, &events, || lost = false).await;
        let reason = match end {
            End::Abandoned => return,
            End::Lost(reason) => reason,
        };
        if !lost {
            lost = true;
            delay = FIRST_DELAY;
            if events.send(RuntimeEvent::Disconnected { reason }).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = sleep(delay) => delay = (delay * 2).min(LONGEST_DELAY),
            () = events.closed() => return,
        }
    }
}

/// What was killed for want of memory.
///
/// containerd tells of it by an event of its own, which may come before or after that of the exit,
/// after the next start of the same container, or never: its shim watches the cgroup beside
/// everything else, and stops with the cgroup. On cgroup v1 the event even comes before anything is
/// killed. So the kernel's own count is read, from the cgroup: when containerd tells of want of
/// memory, and when a main process ended, because the cgroup is there until its task is deleted.
struct Killings<'a> {
    containerd: &'a Containerd,
    cgroups: Cgroups,
    /// What was told of, of each container, until its cgroup is gone: the event may come again
    /// after the exit.
    told: BTreeMap<ContainerId, Killed>,
    /// Containers that were short of memory and in which nothing was seen killed yet.
    in_doubt: BTreeSet<ContainerId>,
}

impl<'a> Killings<'a> {
    fn new(containerd: &'a Containerd) -> Self {
        let (told, in_doubt) = Default::default();
        Self { containerd, cgroups: Cgroups::look(), told, in_doubt }
    }

    fn is_in_doubt(&self) -> bool {
        !self.in_doubt.is_empty()
    }

    /// What is to be told for an event of containerd's.
    fn heard(&mut self, envelope: Envelope) -> Vec<RuntimeEvent> {
        match read(envelope) {
            None => Vec::new(),
            Some(RuntimeEvent::OutOfMemory { id }) => match self.count(&id) {
                Count::Risen => vec![RuntimeEvent::OutOfMemory { id }],
                Count::Same => {
                    self.in_doubt.insert(id);
                    Vec::new()
                }
                // The cgroup is gone: its count was read when its main process ended.
                Count::Unknown => Vec::new(),
            },
            Some(RuntimeEvent::Exited { id, pid, exit }) => {
                let killed = matches!(self.count(&id), Count::Risen);
                self.in_doubt.remove(&id);
                let first = killed.then(|| RuntimeEvent::OutOfMemory { id: id.clone() });
                first.into_iter().chain([RuntimeEvent::Exited { id, pid, exit }]).collect()
            }
            Some(other) => vec![other],
        }
    }

    /// Looks once more at those in doubt.
    fn settle(&mut self) -> Vec<RuntimeEvent> {
        let in_doubt = std::mem::take(&mut self.in_doubt);
        let killed = in_doubt.into_iter().filter(|id| matches!(self.count(id), Count::Risen));
        killed.map(|id| RuntimeEvent::OutOfMemory { id }).collect()
    }

    fn count(&mut self, id: &ContainerId) -> Count {
        let Some(now) = self.cgroups.killed(&Cgroups::path(self.containerd, id)) else {
            self.told.remove(id);
            return Count::Unknown;
        };
        let told = self.told.get(id).filter(|told| told.cgroup == now.cgroup);
        if now.count > told.map_or(0, |told| told.count) {
            self.told.insert(id.clone(), now);
            Count::Risen
        } else {
            Count::Same
        }
    }
}

/// The kernel's count of what it killed in a container, against what was told of.
enum Count {
    Risen,
    Same,
    Unknown,
}

/// Why following a connection ended.
enum End {
    /// Nobody receives any more.
    Abandoned,
    /// containerd went away, or was not there.
    Lost(String),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        let at_source = |error: &dyn std::error::Error| {
            let mut error: &dyn std::error::Error = error;
            while let Some(source) = error.source() {
                error = source;
            }
            error.to_string()
        };
        Self::Lost(match status.code() {
            Code::Unknown | Code::Unavailable => at_source(&status),
            _ => status.message().to_owned(),
        })
    }
}

impl<T> From<mpsc::error::SendError<T>> for End {
    fn from(_: mpsc::error::SendError<T>) -> Self {
        Self::Abandoned
    }
}

async fn connection(
    containerd: &Containerd,
    events: &mpsc::Sender<RuntimeEvent>,
    connected: impl FnOnce(),
) -> Result<Infallible, End> {
    let late = |_| End::Lost("containerd does not answer".into());
    let mut stream = timeout(SUBSCRIBE_LIMIT, subscribe(containerd)).await.map_err(late)??;
    let mut client = VersionClient::new(containerd.channel());
    let version = client.version(containerd.request(())).await?.into_inner().version;
    connected();
    events.send(RuntimeEvent::Connected { version }).await?;
    let mut killings = Killings::new(containerd);
    loop {
        let envelope = tokio::select! {
            message = stream.message() => message?,
            () = sleep(KILLING), if killings.is_in_doubt() => {
                for event in killings.settle() {
                    events.send(event).await?;
                }
                continue;
            }
            () = events.closed() => return Err(End::Abandoned),
        };
        let envelope = envelope.ok_or_else(|| End::Lost("the event stream ended".into()))?;
        for event in killings.heard(envelope) {
            events.send(event).await?;
        }
    }
}

/// containerd answers a subscription with its first event only, so one is made: a mark of our own,
/// again and again until it arrives.
async fn subscribe(containerd: &Containerd) -> Result<Streaming<Envelope>, Status> {
    let namespace = containerd.namespace();
    let filter = |topic| format!("namespace==\"{namespace}\",topic==\"{topic}\"");
    let filters = vec![filter(EXIT_TOPIC), filter(OOM_TOPIC), filter(MARK_TOPIC)];
    let mut subscriber = EventsClient::new(containerd.channel());
    let request = containerd.endless(SubscribeRequest { filters });
    let mut subscription = pin!(subscriber.subscribe(request));
    loop {
        tokio::select! {
            answer = &mut subscription => return Ok(answer?.into_inner()),
            mark = mark(containerd) => mark?,
        }
    }
}

async fn mark(containerd: &Containerd) -> Result<(), Status> {
    let event = Any { type_url: "google.protobuf.Empty".into(), value: Vec::new() };
    let request = PublishRequest { topic: MARK_TOPIC.into(), event: Some(event) };
    EventsClient::new(containerd.channel()).publish(containerd.request(request)).await?;
    sleep(MARK_INTERVAL).await;
    Ok(())
}

/// The end of a container's main process (other processes in it have ids of their own), or want of
/// memory.
fn read(envelope: Envelope) -> Option<RuntimeEvent> {
    let event = envelope.event?;
    match envelope.topic.as_str() {
        EXIT_TOPIC => {
            let exit = TaskExit::decode(event.value.as_slice()).ok()?;
            (exit.id == exit.container_id).then(|| RuntimeEvent::Exited {
                id: ContainerId::from_listed(&exit.container_id),
                pid: exit.pid,
                exit: list::exit(exit.exit_status, exit.exited_at.as_ref()),
            })
        }
        OOM_TOPIC => {
            let oom = TaskOom::decode(event.value.as_slice()).ok()?;
            Some(RuntimeEvent::OutOfMemory { id: ContainerId::from_listed(&oom.container_id) })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(topic: &str, exit: &TaskExit) -> Envelope {
        let type_url = "containerd.events.TaskExit".into();
        let event = Some(Any { type_url, value: exit.encode_to_vec() });
        Envelope { topic: topic.into(), event, ..Envelope::default() }
    }

    #[test]
    fn only_the_end_of_the_main_process_is_told() {
        let main = TaskExit {
            container_id: "web.0.main".into(),
            id: "web.0.main".into(),
            pid: 7,
            exit_status: 137,
            ..TaskExit::default()
        };
        let told = read(envelope(EXIT_TOPIC, &main));
        assert!(
            matches!(told, Some(RuntimeEvent::Exited { pid: 7, exit, .. }) if exit.code == 137)
        );
        let probe = TaskExit { id: "probe".into(), ..main.clone() };
        assert_eq!(read(envelope(EXIT_TOPIC, &probe)), None);
        assert_eq!(read(envelope(MARK_TOPIC, &main)), None);
    }
}
