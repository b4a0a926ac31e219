//! Images that cannot be had: the status says why and when the next try is, what runs keeps
//! running, and what can recover does.

use std::time::Duration;

use coracle_hil::{Gateway, Options, Status, orders};
use coracle_protocol::reported::ReplicaState;
use coracle_testbed::faulty::Fault;
use coracle_testbed::image::{Builder, Compression, Layer, Platform};
use coracle_testbed::{FaultyRegistry, Image, Index};

use super::{SOON, busybox, order};

const RETRY_AFTER: u32 = 4;

/// What a registry does wrong for `name`, and a word that the reason must hold.
const CASES: &[(&str, &str)] = &[
    ("missing", "not"),
    ("platform", "platform"),
    ("mismatch", "digest"),
    ("login", "401"),
    ("limited", "429"),
    ("broken", "500"),
];

fn registry() -> FaultyRegistry {
    let registry = FaultyRegistry::start().unwrap();
    let image = Image::busybox().unwrap();
    for name in ["login", "limited", "broken", "hangs"] {
        registry.put(&image, name, "1");
    }
    // With a layer of its own: what is on the gateway already is not fetched again.
    let layer = Layer::new().file("/mismatch", 0o644, b"x");
    let own = Builder::busybox(Compression::Gzip).unwrap().layer(layer, Compression::Gzip);
    registry.put(&own.build().unwrap(), "mismatch", "1");
    let strange = Builder::busybox(Compression::Gzip).unwrap().platform(Platform::linux("s390x"));
    registry.put(&Index::new(vec![strange.build().unwrap()]), "platform", "1");
    registry.fail_always("/mismatch/blobs/", Fault::WrongBytes);
    registry.fail_always("/login/", Fault::Unauthorized);
    registry.fail("/limited/", 1, Fault::TooManyRequests(Some(RETRY_AFTER)));
    registry.fail_always("/broken/", Fault::Status(500));
    registry
}

fn failing(status: &Status, name: &str) -> Option<String> {
    let replica = status.replica(name)?;
    let waits = replica.state == ReplicaState::BackOff && replica.next_try.is_some();
    replica.reason.clone().filter(|_| waits)
}

#[test]
fn each_failure_is_told_with_its_next_try_and_what_can_recover_does() {
    let registry = registry();
    let mut gateway = Gateway::prepare(Options::default()).unwrap();
    gateway.registries.push(registry.address());
    gateway.start_agent().unwrap();
    let keeper = orders::workload("keeper", &busybox(&gateway));
    order(&gateway, 1, vec![keeper.clone()]);
    let pid = gateway.wait_converged(1).unwrap().pid("keeper").unwrap();

    let mut workloads = vec![keeper];
    for (name, _) in CASES {
        workloads.push(orders::workload(name, &registry.reference(name, "1")));
    }
    order(&gateway, 2, workloads);
    for (name, word) in CASES {
        let reason =
            gateway.wait(name, SOON, |status| failing(status, name)).unwrap().to_lowercase();
        assert!(reason.contains(word), "{name}: {reason}");
        assert_eq!(gateway.status().unwrap().pid("keeper"), Some(pid), "{name}");
    }

    let runs = |gateway: &mut Gateway, name: &str| {
        gateway.wait(name, SOON * 2, |status| status.pid(name)).unwrap();
    };
    runs(&mut gateway, "limited");
    let asked: Vec<_> =
        registry.requests().into_iter().filter(|seen| seen.path.contains("/limited/")).collect();
    let pause = asked[1].at.duration_since(asked[0].at);
    assert!(pause >= Duration::from_secs(RETRY_AFTER.into()), "Retry-After: {pause:?}");

    registry.heal();
    runs(&mut gateway, "broken");
    assert_eq!(gateway.status().unwrap().pid("keeper"), Some(pid));
}

#[test]
fn a_registry_that_hangs_holds_up_nothing_but_its_own_image() {
    let registry = registry();
    registry.fail_always("/hangs/", Fault::Hang);
    let mut gateway = Gateway::prepare(Options::default()).unwrap();
    gateway.registries.push(registry.address());
    gateway.start_agent().unwrap();
    let good = busybox(&gateway);
    let hangs = orders::workload("hangs", &registry.reference("hangs", "1"));
    order(&gateway, 1, vec![hangs.clone(), orders::workload("one", &good)]);
    let pid = gateway.wait("the good one", SOON, |status| status.pid("one")).unwrap();
    gateway
        .wait("the pull to show", SOON, |status| {
            (status.replica("hangs")?.state == ReplicaState::Pulling).then_some(())
        })
        .unwrap();
    // While it hangs, the next order is carried out.
    order(&gateway, 2, vec![hangs, orders::workload("one", &good), orders::workload("two", &good)]);
    gateway.wait("the next order", SOON, |status| status.pid("two")).unwrap();
    let reason = gateway
        .wait("the reason", Duration::from_secs(100), |status| failing(status, "hangs"))
        .unwrap();
    assert!(!reason.is_empty());
    registry.heal();
    gateway.wait("its recovery", SOON * 2, |status| status.pid("hangs")).unwrap();
    assert_eq!(gateway.status().unwrap().pid("one"), Some(pid));
}
