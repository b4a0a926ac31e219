//! What a container may use, as the OCI specification says it: memory, processor time, processes,
//! devices.

use coracle_core::desired::Limits;
use serde_json::{Value, json};

use super::devices::Node;
use super::oci::Host;

/// Processes and threads of a container that asks for no limit: no fork bomb reaches its
/// neighbours, and hardly a program needs more.
const DEFAULT_PIDS: u64 = 1024;

/// The kernel shares processor time out in periods of this many microseconds.
const CPU_PERIOD: u64 = 100_000;

/// The shortest share of a period that the kernel takes.
const CPU_LEAST: u64 = 1_000;

/// Character devices that every container may use: major, minor (all if `None`).
const DEVICES: [(u32, Option<u32>); 9] = [
    (1, Some(3)), // null
    (1, Some(5)), // zero
    (1, Some(7)), // full
    (1, Some(8)), // random
    (1, Some(9)), // urandom
    (5, Some(0)), // tty
    (5, Some(1)), // console
    (5, Some(2)), // ptmx
    (136, None),  // pseudo terminals
];

/// The `linux.resources` object. What the machine cannot limit is left out where nobody asked for
/// it; where somebody did, the OCI runtime refuses the start.
pub(super) fn resources(limits: &Limits, devices: &[Node], host: &Host) -> Value {
    let mut resources = json!({ "devices": rules(devices) });
    if let Some(mib) = limits.memory_mib {
        let bytes = mib.saturating_mul(1 << 20).min(i64::MAX.unsigned_abs());
        resources["memory"] = json!({ "limit": bytes });
        if host.swap_limit {
            // Memory and swap together: so, no swap.
            resources["memory"]["swap"] = bytes.into();
        }
    }
    if let Some(millis) = limits.cpu_millis {
        let quota = millis.saturating_mul(CPU_PERIOD / 1000).max(CPU_LEAST);
        resources["cpu"] = json!({ "quota": quota, "period": CPU_PERIOD });
    }
    if let Some(pids) = limits.pids.or(host.pids_limit.then_some(DEFAULT_PIDS)) {
        resources["pids"] = json!({ "limit": pids });
    }
    resources
}

/// The same as [`resources`] for a container that runs, without devices: what is no longer limited
/// must be said. -1 is no limit, and leaving something out leaves it as it is.
pub(super) fn changed(limits: &Limits, host: &Host) -> Value {
    const NONE: i64 = -1;
    let mut changed = resources(limits, &[], host);
    if let Some(object) = changed.as_object_mut() {
        object.remove("devices");
    }
    if limits.memory_mib.is_none() {
        changed["memory"] = json!({ "limit": NONE });
        if host.swap_limit {
            changed["memory"]["swap"] = NONE.into();
        }
    }
    if limits.cpu_millis.is_none() {
        changed["cpu"] = json!({ "quota": NONE, "period": CPU_PERIOD });
    }
    changed
}

fn rules(devices: &[Node]) -> Vec<Value> {
    let mut rules = vec![
        json!({ "allow": false, "access": "rwm" }),
        json!({ "allow": true, "type": "c", "access": "m" }),
        json!({ "allow": true, "type": "b", "access": "m" }),
    ];
    rules.extend(DEVICES.iter().map(|(major, minor)| {
        let mut rule = json!({ "allow": true, "type": "c", "major": major, "access": "rwm" });
        if let Some(minor) = minor {
            rule["minor"] = (*minor).into();
        }
        rule
    }));
    rules.extend(devices.iter().map(Node::rule));
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::oci::tests::HOST;

    #[test]
    fn limits_in_the_kernels_units() {
        let limits = Limits { memory_mib: Some(64), cpu_millis: Some(1500), pids: Some(7) };
        let made = resources(&limits, &[], &HOST);
        assert_eq!(made["memory"], json!({ "limit": 67_108_864, "swap": 67_108_864 }));
        assert_eq!(made["cpu"], json!({ "quota": 150_000, "period": 100_000 }));
        assert_eq!(made["pids"], json!({ "limit": 7 }));
    }

    #[test]
    fn what_is_no_longer_limited_is_said() {
        let limits = Limits { memory_mib: Some(64), cpu_millis: Some(1500), pids: Some(7) };
        let mut same = resources(&limits, &[], &HOST);
        same.as_object_mut().unwrap().remove("devices");
        assert_eq!(changed(&limits, &HOST), same);
        let free = json!({
            "memory": { "limit": -1, "swap": -1 },
            "cpu": { "quota": -1, "period": 100_000 },
            "pids": { "limit": 1024 },
        });
        assert_eq!(changed(&Limits::default(), &HOST), free);
        let bare = Host { pids_limit: false, swap_limit: false, ..HOST };
        let free = json!({ "memory": { "limit": -1 }, "cpu": { "quota": -1, "period": 100_000 } });
        assert_eq!(changed(&Limits::default(), &bare), free);
    }

    #[test]
    fn the_extremes_stay_what_the_kernel_takes() {
        let limits =
            Limits { memory_mib: Some(u64::MAX), cpu_millis: Some(1), ..Limits::default() };
        let made = resources(&limits, &[], &HOST);
        assert_eq!(made["memory"]["limit"], i64::MAX);
        assert_eq!(made["cpu"]["quota"], 1000);
    }

    #[test]
    fn only_processes_are_limited_unasked_and_only_where_they_can_be() {
        let made = resources(&Limits::default(), &[], &HOST);
        assert!(made["memory"].is_null() && made["cpu"].is_null());
        assert_eq!(made["pids"], json!({ "limit": 1024 }));
        let bare = Host { pids_limit: false, swap_limit: false, ..HOST };
        assert!(resources(&Limits::default(), &[], &bare)["pids"].is_null());
        let limits = Limits { memory_mib: Some(1), pids: Some(5), ..Limits::default() };
        let made = resources(&limits, &[], &bare);
        assert_eq!(made["memory"], json!({ "limit": 1 << 20 }));
        assert_eq!(made["pids"], json!({ "limit": 5 }), "who asks for a limit is not cheated");
    }
}
