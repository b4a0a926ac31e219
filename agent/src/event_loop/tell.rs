//! Reports, presence, status: what the gateway says of itself.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use coracle_core::budget::TrafficKind;
use coracle_core::history::Now;
use coracle_core::observed::Task;
use coracle_core::report::{self, Facts};
use coracle_protocol::presence::OfflineReason;
use coracle_protocol::reported::ConditionStatus;
use coracle_protocol::topic::Kind;
use coracle_protocol::{Presence, ReportedState, Timestamp};
use tracing::{debug, error, info, warn};

use super::{EventLoop, operations};
use crate::execute::Execute;
use crate::link::LinkEvent;
use crate::machine::{AGENT_VERSION, uptime};
use crate::status::{Call, LinkStatus, PullStatus, Status};

/// Shortest time between two reports: what changes in between goes out together.
const APART: Duration = Duration::from_secs(1);

/// The same when the link's budget for today is used up.
const APART_OVER_BUDGET: Duration = Duration::from_secs(60 * 60);

/// Conditions that are not about the gateway itself: it may well be without a network, or be given
/// a bad order.
const OF_THE_WORLD: [&str; 2] = ["link", "orders"];

/// What was said last, and what is held back.
#[derive(Debug, Default)]
pub(super) struct Telling {
    reported: Option<ReportedState>,
    presence: Option<Presence>,
    sequences: Range<u64>,
    sent_at: Option<Duration>,
    presence_at: Option<Duration>,
    held_until: Option<Duration>,
    /// The fleet has asked for the next report, whatever the budget says.
    asked: bool,
}

impl Telling {
    /// The newest report is to be published, whether it says anything new or not, and whatever the
    /// budget says.
    pub(super) fn report_now(&mut self) {
        self.reported = None;
        self.asked = true;
    }

    /// When something that is held back is to be sent.
    pub(super) fn due(&self) -> Option<Duration> {
        self.held_until
    }
}

impl<E: Execute> EventLoop<E> {
    /// Publishes what changed.
    pub(super) async fn tell(&mut self, now: Now) {
        let report = self.report(now);
        self.say_status(&report);
        if self.link.is_none() {
            return;
        }
        self.note_health(&report);
        let presence_held = self.tell_presence(now);
        if self.telling.reported.as_ref() == Some(&report) {
            self.telling.held_until = presence_held;
            return;
        }
        let apart = match self.may_send(TrafficKind::Reports, 1) || self.telling.asked {
            true => APART,
            false => APART_OVER_BUDGET,
        };
        let earliest = self.telling.sent_at.map(|sent_at| sent_at + apart);
        if let Some(earliest) = earliest.filter(|earliest| *earliest > now.monotonic) {
            self.telling.held_until = Some(presence_held.unwrap_or(earliest).min(earliest));
            return;
        }
        let sequence = self.next_sequence().await;
        let Some(link) = &self.link else { return };
        let limit = self.payload_limit(Kind::Reported);
        link.set_reported(report::encode(&ReportedState { sequence, ..report.clone() }, limit));
        self.telling.reported = Some(report);
        self.telling.asked = false;
        self.telling.sent_at = Some(now.monotonic);
        self.telling.held_until = presence_held;
    }

    /// Publishes presence if it changed, whatever the budget says: until when it is held back.
    fn tell_presence(&mut self, now: Now) -> Option<Duration> {
        let presence = self.presence();
        if self.telling.presence.as_ref() == Some(&presence) {
            return None;
        }
        let earliest = self.telling.presence_at.map(|sent_at| sent_at + APART);
        if let Some(earliest) = earliest.filter(|earliest| *earliest > now.monotonic) {
            return Some(earliest);
        }
        if let Some(link) = &self.link {
            link.set_presence(presence.encode(self.payload_limit(Kind::Status)));
        }
        self.telling.presence = Some(presence);
        self.telling.presence_at = Some(now.monotonic);
        None
    }

    /// Publishes everything as it is, whether it changed or not: it may have to be shorter.
    pub(super) fn tell_anew(&mut self) {
        self.telling.reported = None;
        self.telling.presence = None;
    }

    /// Says beforehand why the gateway will be offline if the agent ends now.
    pub(super) fn leave_for(&self, reason: OfflineReason) {
        if let Some(link) = &self.link {
            let presence = Presence::leaving(self.gateway, reason);
            link.set_farewell(presence.encode(self.payload_limit(Kind::Status)));
        }
    }

    /// A number above that of every earlier report of this boot.
    async fn next_sequence(&mut self) -> u64 {
        if let Some(sequence) = self.telling.sequences.next() {
            return sequence;
        }
        let at_least = u64::try_from(uptime().as_millis()).unwrap_or(u64::MAX);
        let at_least = at_least.max(self.telling.sequences.end);
        match self.store.reserve_sequence(&self.machine.boot_id, at_least).await {
            Ok(range) => self.telling.sequences = range,
            Err(error) => {
                // No two reports come within a millisecond, so the time since boot rises as well.
                debug!(error = crate::execute::chain(&error), "no sequence reserved");
                self.telling.sequences = at_least..at_least.saturating_add(1);
            }
        }
        self.telling.sequences.next().unwrap_or(at_least)
    }

    pub(super) fn report(&self, now: Now) -> ReportedState {
        report::report(&Facts {
            gateway: self.gateway,
            boot_id: &self.machine.boot_id,
            agent_version: AGENT_VERSION,
            generation_seen: self.generation_seen,
            refused: self.refused.as_ref(),
            unknown_fields: &self.unknown_fields,
            conditions: &self.conditions,
            orders: &self.orders,
            observed: &self.observed,
            history: &self.history,
            plan: &self.plan,
            now,
        })
    }

    fn presence(&self) -> Presence {
        if self.commands.reboots() {
            return Presence::offline(self.gateway);
        }
        let containers = self.observed.containers.iter().flat_map(|all| all.values());
        let replicas: BTreeSet<_> = containers
            .filter(|container| matches!(container.task, Task::Running { .. }))
            .map(|container| &container.replica)
            .collect();
        let mut running: Vec<String> =
            replicas.iter().map(|replica| replica.workload.to_string()).collect();
        running.sort_unstable();
        running.dedup();
        let standing = self.standing().into_iter();
        let services = standing.filter(|(_, (replica, _))| replicas.contains(replica));
        Presence {
            services: services.map(|(coordinate, _)| coordinate.to_string()).collect(),
            api: Some(self.listening.clone()),
            ..Presence::online(self.gateway, self.machine.clone(), running)
        }
    }

    pub(super) fn status(&mut self) -> Status {
        let now = self.clock.now();
        let link_bytes_today = self.link.is_some().then(|| self.bytes_today());
        let pulls = self.pulls.iter().map(|(software, pull)| {
            let progress = pull.progress.borrow();
            PullStatus {
                image: software.to_string(),
                phase: operations::phase(progress.phase).to_owned(),
                bytes_done: progress.bytes_done,
                bytes_total: progress.bytes_total,
            }
        });
        Status {
            reported: self.report(now),
            link: self.link_status.clone(),
            link_bytes_today,
            pulls: pulls.collect(),
        }
    }

    /// A caller that went away meanwhile is not an error.
    pub(super) async fn on_call(&mut self, call: Call) {
        match call {
            Call::Status(reply) => drop(reply.send(self.status())),
            Call::Health(reply) => drop(reply.send(self.health_document())),
            Call::Link(reply) => drop(reply.send(self.link_day())),
            Call::Events(after, reply) => drop(reply.send(self.journal.after(after))),
            Call::Order(reply) => drop(reply.send(self.envelope.clone())),
            Call::Apply(envelope, reply) => {
                let applied = self.receive(envelope, None).await;
                drop(reply.send(applied));
            }
            Call::Volumes(reply) => self.tell_volumes(reply),
            Call::RemoveVolume(name, reply) => self.remove_volume(name, reply),
            Call::SecretsKey(reply) => drop(reply.send(self.secrets_key())),
            Call::Operate(workload, operation, reply) => {
                let done = self.operate(&workload, operation).await;
                drop(reply.send(done));
            }
            Call::Artifacts(reply) => drop(reply.send(self.artifacts())),
            Call::Services(reply) => {
                let (services, hands) = (self.services(), self.hands.clone());
                // Beside everything else: the directories may be large.
                tokio::spawn(async move {
                    drop(reply.send(hands.look_at_services(services).await));
                });
            }
            Call::WorkloadAt(coordinate, reply) => {
                drop(reply.send(self.workload_at(&coordinate)));
            }
            Call::Begin(work, reply) => drop(reply.send(self.begin_long(work))),
            Call::Operations(reply) => drop(reply.send(self.all_operations())),
            Call::Operation(id, reply) => drop(reply.send(self.operation(&id))),
            Call::Commands(reply) => drop(reply.send(self.all_commands())),
            Call::IdentityKeys(reply) => drop(reply.send(self.identity_keys())),
        }
    }

    pub(super) async fn on_link(&mut self, event: LinkEvent) {
        let now = self.clock.now();
        match event {
            LinkEvent::Desired { envelope, token } => {
                self.receive_from_link(envelope, token).await;
            }
            LinkEvent::Connected { packet_limit, .. } => {
                self.parcels_connected(packet_limit);
                let broker = self.broker();
                self.happened(now, "link-up", None, format!("connected to {broker}"));
                let message = format!("connected to {broker}");
                self.condition("link", ConditionStatus::True, "connected", &message);
                self.set_link(true, None, None);
            }
            LinkEvent::Disconnected { reason, retry_in } => {
                self.parcels_disconnected();
                let known = self.link_status.as_ref().and_then(|link| link.reason.clone());
                if known.as_ref() != Some(&reason) {
                    let message = format!("no link to {}: {reason}", self.broker());
                    self.happened(now, "link-down", None, message);
                }
                self.condition("link", ConditionStatus::False, "not-connected", &reason);
                let wall = Timestamp::from_unix(now.wall.as_secs());
                self.set_link(false, Some(reason), Some(wall.after(retry_in)));
            }
            LinkEvent::Parcel { ticket, delivery } => self.on_parcel(ticket, &delivery),
            LinkEvent::Chunk(piece) => self.on_chunk(&piece),
            LinkEvent::NotSubscribed { topic, reason } => {
                let message = format!("the broker refused the subscription to {topic}: {reason}");
                self.happened(now, "not-subscribed", None, message);
            }
            LinkEvent::Command { envelope, reply, correlation, token } => {
                self.on_command(&envelope, reply, correlation, token).await;
            }
            LinkEvent::Receipt(receipt) => self.on_receipt(&receipt).await,
            LinkEvent::NotPublished { document, reason } => {
                let message = format!("{document:?} could not be published: {reason}");
                self.happened(now, "not-published", None, message);
            }
        }
    }

    /// States a fact about health. That something is wrong with the gateway itself goes to the log
    /// as an error, once: a service manager shows those on the console.
    pub(super) fn condition(
        &mut self,
        name: &str,
        status: ConditionStatus,
        reason: &str,
        message: &str,
    ) {
        let now = self.clock.now();
        let changed = self.conditions.set(name, status, reason, message, now);
        match status {
            ConditionStatus::False if changed && OF_THE_WORLD.contains(&name) => {
                warn!(condition = name, reason, "{message}");
            }
            ConditionStatus::False if changed => error!(condition = name, reason, "{message}"),
            _ if changed => info!(condition = name, reason, "{message}"),
            _ => debug!(condition = name, reason, "{message}"),
        }
    }

    fn broker(&self) -> String {
        self.link_status.as_ref().map(|link| link.broker.clone()).unwrap_or_default()
    }

    fn set_link(&mut self, connected: bool, reason: Option<String>, next_try: Option<Timestamp>) {
        self.link_status = Some(LinkStatus { broker: self.broker(), connected, reason, next_try });
    }
}
