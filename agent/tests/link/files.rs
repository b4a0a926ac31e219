use std::fs;
use std::path::Path;

use coracle::config::LinkConfig;
use coracle_testbed::pki::Identity;

use crate::bed::{Bed, Gateway, SOON};

/// Copies of the files that may be spoilt and mended.
fn own_files(bed: &Bed) -> LinkConfig {
    let mut config = bed.config();
    let dir = bed.place.run().join("own");
    fs::create_dir(&dir).unwrap();
    for path in [&mut config.ca, &mut config.cert, &mut config.key] {
        let copy = dir.join(path.file_name().unwrap());
        fs::copy(&*path, &copy).unwrap();
        *path = copy;
    }
    config
}

/// Replaces a file as a renewal would.
fn replace(path: &Path, content: impl AsRef<[u8]>) {
    let part = path.with_extension("part");
    fs::write(&part, content).unwrap();
    fs::rename(part, path).unwrap();
}

/// Spoils the files, expects the reason, mends them, and expects a connection.
fn check(spoil: impl FnOnce(&Bed, &LinkConfig), reason: &str) {
    let bed = Bed::new();
    let config = own_files(&bed);
    spoil(&bed, &config);
    let gateway = Gateway::start(config.clone(), bed.id);
    let said = gateway.disconnected(SOON);
    assert!(said.contains(reason), "expected {reason:?} in {said:?}");
    assert!(!said.contains("PRIVATE"), "{said}");
    let good = bed.config();
    replace(&config.ca, fs::read(good.ca).unwrap());
    replace(&config.cert, fs::read(good.cert).unwrap());
    replace(&config.key, fs::read(good.key).unwrap());
    gateway.connected();
}

fn use_identity(config: &LinkConfig, identity: Identity) {
    fs::copy(identity.cert, &config.cert).unwrap();
    fs::copy(identity.key, &config.key).unwrap();
}

#[test]
fn a_missing_certificate() {
    check(|_, config| fs::remove_file(&config.cert).unwrap(), "cannot read the certificate");
}

#[test]
fn a_key_that_is_no_key() {
    check(|_, config| fs::write(&config.key, "nonsense").unwrap(), "the private key /");
}

#[test]
fn an_authority_that_is_a_directory() {
    let spoil = |_: &Bed, config: &LinkConfig| {
        fs::remove_file(&config.ca).unwrap();
        fs::create_dir(&config.ca).unwrap();
    };
    let bed = Bed::new();
    let config = own_files(&bed);
    spoil(&bed, &config);
    let said = Gateway::start(config, bed.id).disconnected(SOON);
    assert!(said.contains("cannot read the authorities' certificates"), "{said}");
}

#[test]
fn a_key_of_another_certificate() {
    check(
        |bed, config| {
            let other = bed.pki.client("somebody-else").unwrap();
            fs::copy(other.key, &config.key).unwrap();
        },
        "cannot be used together",
    );
}

#[test]
fn an_endless_file_is_not_read() {
    check(|_, config| fs::write(&config.cert, vec![b'x'; 1_000_000]).unwrap(), "is larger than");
}

#[test]
fn an_authority_that_does_not_vouch_for_the_broker() {
    check(
        |bed, config| assert!(fs::copy(bed.pki.foreign_ca(), &config.ca).is_ok()),
        "not signed by an authority in link.ca",
    );
}

#[test]
fn a_certificate_that_has_expired() {
    check(
        |bed, config| use_identity(config, bed.pki.expired(&bed.id.to_string()).unwrap()),
        "refuses this gateway's certificate: it has expired",
    );
}

#[test]
fn a_certificate_of_an_authority_that_the_broker_does_not_know() {
    check(
        |bed, config| use_identity(config, bed.pki.foreign(&bed.id.to_string()).unwrap()),
        "refuses this gateway's certificate",
    );
}

#[test]
fn a_host_that_does_not_exist() {
    let bed = Bed::new();
    let mut config = bed.config();
    config.host = "broker.invalid".into();
    let said = Gateway::start(config, bed.id).disconnected(2 * SOON);
    assert!(said.contains("cannot reach the broker broker.invalid:"), "{said}");
}
