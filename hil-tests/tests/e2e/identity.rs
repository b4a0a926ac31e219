//! Who the gateway is: given, missing, damaged, lost.

use std::fs;
use std::path::PathBuf;

use coracle_hil::gateway::stderr;
use coracle_hil::{Gateway, Options, orders};
use coracle_protocol::reported::ConditionStatus;

use super::{SOON, order, pids, sleepers};

struct Identified {
    gateway: Gateway,
    installed: PathBuf,
    factory: PathBuf,
}

/// A gateway that is only told by its identity who it is; there is none yet.
fn nobody() -> Identified {
    let mut gateway = Gateway::prepare(Options::default()).unwrap();
    let installed = gateway.state_dir.join("identity");
    let factory = gateway.place().run().join("factory");
    gateway.identity_dir = Some(installed.clone());
    Identified { gateway, installed, factory }
}

/// A gateway that was provisioned and runs `one`; its process id.
fn somebody() -> (Identified, Vec<i32>) {
    let mut it = nobody();
    it.gateway.write_identity(&it.installed).unwrap();
    it.gateway.start_agent().unwrap();
    let one = sleepers(&it.gateway, &["one"]);
    order(&it.gateway, 1, one);
    let before = pids(&mut it.gateway, 1, &["one"]);
    (it, before)
}

impl Identified {
    /// Reason and message of a condition that is not good.
    fn trouble(&mut self, name: &str) -> (String, String) {
        self.gateway
            .wait(&format!("{name} to be said"), SOON, |status| {
                let condition = status.condition(name)?;
                (condition.status == ConditionStatus::False)
                    .then(|| (condition.reason.clone(), condition.message.clone()))
            })
            .unwrap()
    }

    fn is_good(&mut self, name: &str) {
        self.gateway
            .wait(&format!("{name} to be good"), SOON, |status| {
                (status.condition(name)?.status == ConditionStatus::True).then_some(())
            })
            .unwrap();
    }

    /// Refusal codes of an order for this gateway that is given by hand.
    fn apply(&mut self, generation: u64) -> Vec<String> {
        let one = sleepers(&self.gateway, &["one"]);
        let order = orders::order(self.gateway.id(), generation, one);
        let signed = fs::read(self.gateway.sign(&order).unwrap()).unwrap();
        let applied = self.gateway.apply(&signed).unwrap();
        applied.refusals.iter().map(|refusal| refusal.code.as_str().to_owned()).collect()
    }
}

#[test]
fn a_gateway_without_identity_says_so_obeys_nobody_and_becomes_somebody_by_provisioning() {
    let mut it = nobody();
    it.gateway.start_agent().unwrap();
    let (reason, message) = it.trouble("identity");
    assert_eq!(reason, "not-provisioned");
    assert!(message.contains("coracle provision"), "{message}");
    assert_eq!(it.trouble("trust").0, "no-keys");
    assert_eq!(it.apply(1), ["untrusted-key"]);
    let page = it.gateway.coracle(&["status"]).unwrap();
    let page = String::from_utf8_lossy(&page.stdout).into_owned();
    assert!(page.contains("not provisioned, agent"), "{page}");
    assert!(page.contains("NOT GOOD"), "{page}");

    it.gateway.stop_agent().unwrap();
    it.gateway.write_identity(&it.factory).unwrap();
    let config = it.gateway.config().display().to_string();
    let output = it.gateway.coracle(&["provision", "--config", &config]).unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(it.installed.join("key.pem").exists());
    it.gateway.start_agent().unwrap();
    it.is_good("identity");
    it.is_good("trust");
    let one = sleepers(&it.gateway, &["one"]);
    order(&it.gateway, 1, one);
    pids(&mut it.gateway, 1, &["one"]);
}

#[test]
fn without_the_installed_identity_the_factorys_serves() {
    let mut it = nobody();
    it.gateway.write_identity(&it.factory).unwrap();
    it.gateway.start_agent().unwrap();
    it.is_good("identity");
    let one = sleepers(&it.gateway, &["one"]);
    order(&it.gateway, 1, one);
    pids(&mut it.gateway, 1, &["one"]);
    it.gateway.stop_agent().unwrap();
    fs::create_dir_all(&it.installed).unwrap();
    fs::write(it.installed.join("gateway.toml"), "\u{0}").unwrap();
    it.gateway.start_agent().unwrap();
    let (reason, message) = it.trouble("identity");
    assert_eq!(reason, "unusable");
    assert!(message.contains("from") && message.contains("factory"), "{message}");
    it.is_good("link");
}

#[test]
fn a_lost_identity_stops_nothing_that_was_ordered() {
    let (mut it, before) = somebody();
    it.gateway.stop_agent().unwrap();
    fs::remove_dir_all(&it.installed).unwrap();
    it.gateway.start_agent().unwrap();
    assert_eq!(it.trouble("identity").0, "not-provisioned");
    assert_eq!(pids(&mut it.gateway, 1, &["one"]), before);
    assert_eq!(it.gateway.status().unwrap().reported.gateway, it.gateway.id());
}

#[test]
fn keys_that_cannot_be_read_stop_nothing_and_let_nothing_new_in() {
    let (mut it, before) = somebody();
    it.gateway.stop_agent().unwrap();
    let good = fs::read(it.installed.join("orders.pub")).unwrap();
    fs::write(it.installed.join("orders.pub"), "nonsense").unwrap();
    it.gateway.start_agent().unwrap();
    assert_eq!(it.trouble("trust").0, "keys-unusable");
    it.is_good("link");
    assert_eq!(pids(&mut it.gateway, 1, &["one"]), before);
    assert_eq!(it.apply(2), ["untrusted-key"]);
    it.gateway.stop_agent().unwrap();
    fs::write(it.installed.join("orders.pub"), good).unwrap();
    it.gateway.start_agent().unwrap();
    assert_eq!(it.apply(2), Vec::<String>::new());
    assert_eq!(pids(&mut it.gateway, 2, &["one"]), before);
}

#[test]
fn a_missing_certificate_and_an_open_key_are_said_and_stop_nothing() {
    let (mut it, before) = somebody();
    it.gateway.stop_agent().unwrap();
    fs::rename(it.installed.join("cert.pem"), it.installed.join("away.pem")).unwrap();
    it.gateway.start_agent().unwrap();
    let (reason, message) = it.trouble("identity");
    assert_eq!(reason, "files-missing");
    assert!(message.contains("cert.pem"), "{message}");
    let log = it.gateway.agent_log();
    assert!(log.contains("ERROR") && log.contains("cert.pem"), "{log}");
    assert_eq!(pids(&mut it.gateway, 1, &["one"]), before);
    // Comes back by itself: the files are looked at before each connection.
    fs::rename(it.installed.join("away.pem"), it.installed.join("cert.pem")).unwrap();
    it.is_good("link");
    it.gateway.stop_agent().unwrap();
    use std::os::unix::fs::PermissionsExt;
    let key = it.installed.join("key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    it.gateway.start_agent().unwrap();
    let (reason, message) = it.trouble("identity");
    assert_eq!(reason, "open-to-others");
    assert!(message.contains("key.pem: others may read it (mode 0644)"), "{message}");
    it.is_good("link");
}
