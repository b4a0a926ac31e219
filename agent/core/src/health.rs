//! How the gateway is: numbers to conditions, reports to health, health to a pulse.
//!
//! Conditions have a margin: what went bad is good again only well beyond the threshold, so that a
//! number that sways about it changes nothing. Their messages have no figures, because each change of
//! a condition is told. Deliberately not here: where numbers come from, and when they are sent.

use coracle_protocol::health::{Health, Numbers, Pulse, WorkloadHealth};
use coracle_protocol::reported::{
    ConditionStatus, Phase, ReplicaState, ReportedState, WorkloadReport,
};

/// From where on a number is bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Least free space of the state directory's file system, in percent.
    pub disk_free_percent: u8,
    /// Least free inodes there, in percent.
    pub inodes_free_percent: u8,
    /// Least memory that can be had, in percent.
    pub memory_available_percent: u8,
    /// Highest temperature, in degrees Celsius.
    pub temperature_celsius: i32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            disk_free_percent: 10,
            inodes_free_percent: 5,
            memory_available_percent: 5,
            temperature_celsius: 90,
        }
    }
}

/// Degrees that it must have cooled down by to be good again.
const COOLER: i32 = 5;

/// What is to be said of one number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Name of the condition.
    pub name: &'static str,
    /// Whether it is good.
    pub status: ConditionStatus,
    /// In one word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// Judges what was measured; `is_bad` says which conditions are bad already. What cannot be measured
/// on this gateway is no condition.
pub fn judge(
    numbers: &Numbers,
    thresholds: &Thresholds,
    is_bad: impl Fn(&str) -> bool,
) -> Vec<Judgement> {
    let scarce = |name, what: &str, free: Option<u64>, total: Option<u64>, percent: u8| {
        let (free, total) = (free?, total.filter(|total| *total > 0)?);
        let least = u64::from(percent);
        // Half as much again, to be good again.
        let least = if is_bad(name) { least + least.div_ceil(2) } else { least };
        let bad = u128::from(free) * 100 < u128::from(total) * u128::from(least);
        Some(match bad {
            true => Judgement {
                name,
                status: ConditionStatus::False,
                reason: "scarce",
                message: format!("less than {percent} % of {what} is free"),
            },
            false => Judgement {
                name,
                status: ConditionStatus::True,
                reason: "enough",
                message: format!("enough of {what} is free"),
            },
        })
    };
    let hot = || {
        let name = "temperature";
        let most = thresholds.temperature_celsius;
        let limit = if is_bad(name) { most.saturating_sub(COOLER) } else { most };
        let (status, reason, message) = match numbers.temperature_tenths? > limit * 10 {
            true => (ConditionStatus::False, "hot", format!("hotter than {most} °C")),
            false => (ConditionStatus::True, "cool", "no hotter than it may be".into()),
        };
        Some(Judgement { name, status, reason, message })
    };
    let Numbers { memory_total_kib, memory_available_kib, .. } = *numbers;
    let Numbers { disk_total_kib, disk_free_kib, inodes_total, inodes_free, .. } = *numbers;
    let disk = "the state directory's file system";
    let inodes = "the inodes of the state directory's file system";
    [
        scarce("disk", disk, disk_free_kib, disk_total_kib, thresholds.disk_free_percent),
        scarce("inodes", inodes, inodes_free, inodes_total, thresholds.inodes_free_percent),
        scarce(
            "memory",
            "memory",
            memory_available_kib,
            memory_total_kib,
            thresholds.memory_available_percent,
        ),
        hot(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// How workloads are, from what is reported of them.
pub fn workloads(reported: &[WorkloadReport]) -> Vec<WorkloadHealth> {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let health = |workload: &WorkloadReport| WorkloadHealth {
        name: workload.name.clone(),
        phase: workload.phase,
        replicas: count(workload.replicas.len()),
        ready: count(
            workload
                .replicas
                .iter()
                .filter(|replica| replica.state == ReplicaState::Running && replica.ready)
                .count(),
        ),
        restarts: workload.replicas.iter().map(|r| r.restarts).fold(0, u32::saturating_add),
    };
    reported.iter().map(health).collect()
}

/// What counts as news when it is another one: conditions and the phases of workloads. Numbers and
/// sentences do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    conditions: Vec<(String, ConditionStatus, String)>,
    phases: Vec<(String, Phase)>,
}

impl Shape {
    /// That of a report.
    pub fn of(report: &ReportedState) -> Self {
        let conditions = report.conditions.iter();
        let phases = report.workloads.iter();
        Self {
            conditions: conditions.map(|c| (c.name.clone(), c.status, c.reason.clone())).collect(),
            phases: phases.map(|w| (w.name.clone(), w.phase)).collect(),
        }
    }
}

/// The compact form of a document that need not have been sent; `sent` is the sequence of the one
/// that was.
pub fn pulse(health: &Health, generation: u64, sent: u64) -> Pulse {
    let mib = |kib: Option<u64>| u32::try_from(kib.unwrap_or(0) / 1024).unwrap_or(u32::MAX);
    let count = |phase: Phase| {
        let of = health.workloads.iter().filter(|workload| workload.phase == phase);
        u32::try_from(of.count()).unwrap_or(u32::MAX)
    };
    let bad = health.conditions.iter().filter(|c| c.status == ConditionStatus::False);
    Pulse {
        health: sent,
        boot: Pulse::boot(&health.boot_id),
        generation,
        uptime_seconds: u32::try_from(health.uptime_seconds).unwrap_or(u32::MAX),
        memory_available_mib: mib(health.numbers.memory_available_kib),
        disk_free_mib: mib(health.numbers.disk_free_kib),
        load_hundredths: health.numbers.load_hundredths.unwrap_or(0),
        cpu_percent: health.numbers.cpu_percent.unwrap_or(0),
        temperature_tenths: health.numbers.temperature_tenths,
        workloads: u32::try_from(health.workloads.len()).unwrap_or(u32::MAX),
        converged: count(Phase::Converged),
        degraded: count(Phase::Degraded),
        restarts: health.workloads.iter().map(|w| w.restarts).fold(0, u32::saturating_add),
        bad: bad.map(|condition| Pulse::bit(&condition.name)).fold(0, |bits, bit| bits | bit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(numbers: &Numbers, bad: &[&str]) -> Vec<String> {
        let judged = judge(numbers, &Thresholds::default(), |name| bad.contains(&name));
        judged.into_iter().map(|j| format!("{} {}", j.name, j.reason)).collect()
    }

    #[test]
    fn a_number_that_sways_about_its_threshold_changes_nothing() {
        let disk = |free| Numbers {
            disk_total_kib: Some(1000),
            disk_free_kib: Some(free),
            ..Numbers::default()
        };
        for (free, before, now) in [
            (101, "disk enough", "disk enough"),
            (100, "disk enough", "disk enough"),
            (99, "disk enough", "disk scarce"),
            (101, "disk scarce", "disk scarce"),
            (149, "disk scarce", "disk scarce"),
            (150, "disk scarce", "disk enough"),
        ] {
            let bad: &[&str] = if before == "disk scarce" { &["disk"] } else { &[] };
            assert_eq!(said(&disk(free), bad), [now], "{free} after {before}");
        }
        let warm = |tenths| Numbers { temperature_tenths: Some(tenths), ..Numbers::default() };
        assert_eq!(said(&warm(900), &[]), ["temperature cool"]);
        assert_eq!(said(&warm(901), &[]), ["temperature hot"]);
        assert_eq!(said(&warm(851), &["temperature"]), ["temperature hot"]);
        assert_eq!(said(&warm(850), &["temperature"]), ["temperature cool"]);
    }

    #[test]
    fn what_cannot_be_measured_is_no_condition() {
        assert_eq!(said(&Numbers::default(), &[]), Vec::<String>::new());
        let endless = Numbers {
            inodes_total: Some(0),
            inodes_free: Some(0),
            disk_total_kib: Some(u64::MAX),
            disk_free_kib: Some(u64::MAX),
            ..Numbers::default()
        };
        assert_eq!(said(&endless, &[]), ["disk enough"]);
    }

    #[test]
    fn sentences_and_restarts_are_no_news_and_phases_are() {
        let text = include_str!("../../../protocol/tests/golden/reported-1-full.json");
        let before: ReportedState = serde_json::from_str(text).unwrap();
        let mut now = before.clone();
        now.sequence += 1;
        now.conditions[0].message = "another".into();
        now.workloads[0].replicas[0].restarts += 1;
        assert_eq!(Shape::of(&before), Shape::of(&now));
        now.workloads[0].phase = Phase::Idle;
        assert_ne!(Shape::of(&before), Shape::of(&now));
        let mut now = before.clone();
        now.conditions[0].status = ConditionStatus::Unknown;
        assert_ne!(Shape::of(&before), Shape::of(&now));
    }

    #[test]
    fn a_pulse_says_what_a_document_does() {
        let text = include_str!("../../../protocol/tests/golden/health-1-full.json");
        let mut now: Health = serde_json::from_str(text).unwrap();
        now.conditions[0].status = ConditionStatus::False;
        let pulse = pulse(&now, 7, 3);
        assert_eq!((pulse.health, pulse.boot, pulse.bad), (3, 0x5ac2_f1c0, Pulse::bit("disk")));
        assert_eq!((pulse.memory_available_mib, pulse.workloads, pulse.converged), (411, 1, 1));
    }

    /// IPv4 and TCP with timestamps.
    const SEGMENT: usize = 20 + 32;
    /// TLS 1.3: header, type and tag.
    const RECORD: usize = 5 + 1 + 16;

    /// What a packet of so many bytes takes on the wire, with the segment that acknowledges it.
    fn on_the_wire(packet: usize) -> usize {
        SEGMENT + RECORD + packet + SEGMENT
    }

    /// A PUBLISH packet of MQTT 5 without properties, and its PUBACK.
    fn published(payload: usize, acknowledged: bool) -> usize {
        let topic = format!("coracle/1/{}/health", "0".repeat(36));
        let packet = |rest: usize| 1 + if rest < 128 { 1 } else { 2 } + rest;
        let identifier = if acknowledged { 2 } else { 0 };
        let publish = packet(2 + topic.len() + identifier + 1 + payload);
        // An answer takes its acknowledgement along.
        on_the_wire(publish) + if acknowledged { SEGMENT + RECORD + 4 } else { 0 }
    }

    #[test]
    fn an_idle_gateway_keeps_to_its_bytes_a_day() {
        const DAY: usize = 86_400;
        let text = include_str!("../../../protocol/tests/golden/health-1-full.json");
        let mut health: Health = serde_json::from_str(text).unwrap();
        health.workloads = vec![health.workloads[0].clone(); 5];
        health.pods = vec![health.pods[0].clone(); 5];
        health.conditions = vec![health.conditions[0].clone(); 22];
        let document = published(health.encode(usize::MAX).len(), true);
        let pulse = published(pulse(&health, 7, health.sequence).encode().len(), false);
        // A ping, and its answer.
        let ping = on_the_wire(2) + SEGMENT + RECORD + 2;
        let day = |keep_alive: usize, interval: usize, changes: usize| {
            DAY / keep_alive * ping + DAY / interval * pulse + changes * document
        };
        // Measured: 59 kB and 15 kB a day for keep-alive alone.
        assert!((58_000..60_000).contains(&(DAY / 300 * ping)), "{}", DAY / 300 * ping);
        let idle = day(300, 300, 24);
        assert!(
            idle <= 250_000,
            "{idle} with a change every hour: {document} each, {pulse} a pulse"
        );
        let metered = day(1200, 1200, 4);
        assert!(metered <= 60_000, "{metered} with four changes");
    }
}
