//! Health for the fleet: a document on change and on demand, a pulse at intervals.
//!
//! In: numbers, interfaces and pods, read only when something is to be sent or the gateway is looked
//! at anyway. Out: parcels. Deliberately not here: what is good and what is news, which
//! `coracle_core::health` says.

use std::collections::BTreeSet;
use std::time::Duration;

use coracle_core::budget::{Caps, TrafficKind};
use coracle_core::health::{self as judging, Shape};
use coracle_core::history::Now;
use coracle_protocol::desired::SCHEMA;
use coracle_protocol::health::{Health, Interface, Numbers, PodLink};
use coracle_protocol::presence::Listening;
use coracle_protocol::reported::{ConditionStatus, ReportedState};
use coracle_protocol::topic::Kind;
use coracle_protocol::{Pulse, Timestamp};
use tracing::{debug, warn};

use super::EventLoop;
use super::parcels::{Freight, parcel};
use crate::config::HealthConfig;
use crate::execute::Execute;
use crate::health::{Meter, interfaces};
use crate::link::{Delivery, Parcel};
use crate::machine::{AGENT_VERSION, uptime};
use crate::network::Networks;

/// Shortest time between two documents: what changes in between goes out together.
const APART: Duration = Duration::from_secs(10);

/// Pause before another try of what the budget did not allow.
const OVER_BUDGET: Duration = Duration::from_secs(60 * 60);

/// Numbers that are younger than this are not read again.
const FRESH: Duration = Duration::from_secs(5);

/// What health is made of and told by.
#[derive(Debug)]
pub struct HealthSetup {
    /// Intervals and thresholds.
    pub config: HealthConfig,
    /// Reads numbers.
    pub meter: Meter,
    /// Knows how pods are attached.
    pub networks: Networks,
    /// Most bytes a day.
    pub caps: Caps,
    /// Where the local API listens.
    pub listening: Listening,
}

/// What was told last, and what is to be told.
#[derive(Debug)]
pub(super) struct HealthToTell {
    config: HealthConfig,
    meter: Meter,
    networks: Networks,
    numbers: Numbers,
    read_at: Option<Duration>,
    /// As it was when a document was sent last.
    told: Option<Shape>,
    /// As it is.
    shape: Option<Shape>,
    /// Sequence of the newest document that was made.
    sequence: u64,
    /// Sequence of the newest document that was sent.
    sent: u64,
    /// Somebody asks for a document, news or not.
    asked: bool,
    /// No document before.
    rest_until: Duration,
    /// When the next pulse is due; none without a connection, or where there are to be none.
    pulse_at: Option<Duration>,
}

/// A document or a pulse on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HealthFreight {
    /// With its sequence, and how things were then.
    Document(u64, Shape),
    /// A pulse.
    Pulse,
}

impl HealthToTell {
    pub(super) fn new(config: HealthConfig, meter: Meter, networks: Networks) -> Self {
        Self {
            config,
            meter,
            networks,
            numbers: Numbers::default(),
            read_at: None,
            told: None,
            shape: None,
            sequence: 0,
            sent: 0,
            asked: false,
            rest_until: Duration::ZERO,
            pulse_at: None,
        }
    }

    fn is_due(&self) -> bool {
        self.asked || self.shape.is_some() && self.shape != self.told
    }

    /// When something is to be sent.
    pub(super) fn due(&self, connected: bool) -> Option<Duration> {
        let document = self.is_due().then_some(self.rest_until);
        [document, self.pulse_at].into_iter().flatten().min().filter(|_| connected)
    }
}

impl<E: Execute> EventLoop<E> {
    /// Sends a document as soon as may be, whether there is news or not.
    pub(super) fn send_health_now(&mut self) {
        self.telling_health.asked = true;
        self.telling_health.rest_until = Duration::ZERO;
    }

    /// Compares how things are with what was told.
    pub(super) fn note_health(&mut self, report: &ReportedState) {
        self.telling_health.shape = Some(Shape::of(report));
    }

    /// Pulses go on from some moment within an interval, so that gateways which lost the same broker
    /// do not beat together.
    pub(super) fn health_connected(&mut self) {
        let now = self.clock.now().monotonic;
        let interval = Duration::from_secs(self.telling_health.config.interval_seconds.into());
        let part = super::backlog::random_part();
        self.telling_health.pulse_at = (!interval.is_zero()).then(|| now + interval.mul_f64(part));
    }

    pub(super) fn health_disconnected(&mut self) {
        self.telling_health.pulse_at = None;
    }

    /// Reads numbers, if they are not fresh, and judges them.
    pub(super) fn measure(&mut self) {
        let now = self.clock.now().monotonic;
        let telling = &mut self.telling_health;
        if telling.read_at.is_some_and(|at| now < at + FRESH) {
            return;
        }
        telling.read_at = Some(now);
        telling.numbers = telling.meter.read();
        let thresholds = telling.config.thresholds();
        let bad: BTreeSet<_> = self.conditions.bad().map(str::to_owned).collect();
        let judged = judging::judge(&telling.numbers, &thresholds, |name| bad.contains(name));
        for judgement in judged {
            let judging::Judgement { name, status, reason, message } = judgement;
            self.condition(name, status, reason, &message);
        }
    }

    /// Everything about the gateway's health as it is now.
    pub(super) fn health_document(&mut self) -> Health {
        self.measure();
        self.take_in_usage();
        let now = self.clock.now();
        let report = self.report(now);
        let health = self.without_surroundings(&report, now);
        let pods = self.telling_health.networks.links();
        Health { interfaces: gateways_own(interfaces(), &pods), pods, ..health }
    }

    fn without_surroundings(&mut self, report: &ReportedState, now: Now) -> Health {
        Health {
            schema: SCHEMA,
            gateway: self.gateway,
            boot_id: report.boot_id.clone(),
            sequence: self.telling_health.sequence,
            at: Timestamp::from_unix(now.wall.as_secs()),
            agent_version: AGENT_VERSION.into(),
            uptime_seconds: uptime().as_secs(),
            conditions: report.conditions.clone(),
            numbers: self.telling_health.numbers.clone(),
            interfaces: Vec::new(),
            pods: Vec::new(),
            workloads: judging::workloads(&report.workloads),
            link: Some(self.link_use()),
            omitted: 0,
        }
    }

    /// A document or a pulse, if one is due.
    pub(super) fn next_health(&mut self) -> Option<(Freight, Parcel)> {
        let now = self.clock.now().monotonic;
        if self.telling_health.is_due() && self.telling_health.rest_until <= now {
            return self.next_document(now);
        }
        if self.telling_health.pulse_at.is_some_and(|at| at <= now) {
            return self.next_pulse(now);
        }
        None
    }

    fn next_document(&mut self, now: Duration) -> Option<(Freight, Parcel)> {
        let limit = self.payload_limit(Kind::Health);
        let mut health = self.health_document();
        // Numbers were judged: that may be news of its own.
        let time = self.clock.now();
        let report = self.report(time);
        self.note_health(&report);
        // Rises over restarts of the agent within one boot, without a write.
        let since_boot = u64::try_from(uptime().as_millis()).unwrap_or(u64::MAX);
        health.sequence = since_boot.max(self.telling_health.sequence + 1);
        let payload = health.encode(limit);
        if !self.telling_health.asked && !self.may_send(TrafficKind::Health, payload.len()) {
            self.telling_health.rest_until = now + OVER_BUDGET;
            return None;
        }
        self.telling_health.sequence = health.sequence;
        self.telling_health.rest_until = now + APART;
        debug!(bytes = payload.len(), "telling how the gateway is");
        let shape = Shape::of(&report);
        let freight = HealthFreight::Document(health.sequence, shape);
        Some((Freight::Health(freight), parcel(Kind::Health, payload)))
    }

    fn next_pulse(&mut self, now: Duration) -> Option<(Freight, Parcel)> {
        let interval = Duration::from_secs(self.telling_health.config.interval_seconds.into());
        self.telling_health.pulse_at = Some(now + interval);
        let payload = self.pulse().encode();
        if !self.may_send(TrafficKind::Health, payload.len()) {
            return None;
        }
        let pulse = Parcel { acknowledged: false, ..parcel(Kind::Health, payload) };
        Some((Freight::Health(HealthFreight::Pulse), pulse))
    }

    fn pulse(&mut self) -> Pulse {
        self.measure();
        let now = self.clock.now();
        let report = self.report(now);
        let health = self.without_surroundings(&report, now);
        judging::pulse(&health, report.generation_applied, self.telling_health.sent)
    }

    pub(super) fn health_delivered(&mut self, freight: HealthFreight, delivery: &Delivery) {
        let HealthFreight::Document(sequence, shape) = freight else { return };
        match delivery {
            Delivery::Done => self.telling_health.sent = sequence,
            // Not tried again before there is other news.
            Delivery::Refused(reason) => warn!(reason, "health could not be published"),
            Delivery::Lost => return,
        }
        self.telling_health.told = Some(shape);
        self.telling_health.asked = false;
    }

    /// States a good or a bad condition.
    pub(super) fn condition_if(&mut self, name: &str, good: bool, reason: &str, message: &str) {
        let status = if good { ConditionStatus::True } else { ConditionStatus::False };
        self.condition(name, status, reason, message);
    }
}

/// Those interfaces that are no pod's, and the hardware addresses of those that are.
fn gateways_own(all: Vec<Interface>, pods: &[PodLink]) -> Vec<Interface> {
    let of_pods: BTreeSet<_> = pods.iter().filter_map(|pod| pod.interface.as_deref()).collect();
    all.into_iter().filter(|interface| !of_pods.contains(interface.name.as_str())).collect()
}
