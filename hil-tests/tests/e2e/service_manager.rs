//! What the agent tells the service manager that started it: a socket of our own stands in for it.

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

use coracle_hil::{Gateway, Options};
use coracle_testbed::process::run;
use coracle_testbed::wait_for;

use super::{SOON, gateway_running, order, pids, sleepers};

/// After that long without a sign of life the service manager would restart the agent.
const LIMIT: Duration = Duration::from_secs(2);
const NO_LIMIT: Duration = Duration::from_secs(10);

struct Manager(UnixDatagram);

impl Manager {
    /// Told by the next agent of `gateway`.
    fn of(gateway: &mut Gateway) -> Self {
        let path = gateway.place().run().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        gateway.environment = vec![
            ("NOTIFY_SOCKET".into(), path.display().to_string()),
            ("WATCHDOG_USEC".into(), LIMIT.as_micros().to_string()),
        ];
        Self(socket)
    }

    /// The next message; `None` if there is none in that time.
    fn next(&self, within: Duration) -> Option<String> {
        self.0.set_read_timeout(Some(within.max(Duration::from_millis(1)))).unwrap();
        let mut bytes = [0; 4096];
        let length = self.0.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..length]).trim_end().to_owned())
    }

    /// What is told until `wanted` is, and that.
    fn until(&self, wanted: &str) -> Vec<String> {
        let deadline = Instant::now() + SOON;
        let mut told = Vec::new();
        while let Some(message) = self.next(deadline.saturating_duration_since(Instant::now())) {
            told.push(message);
            if told.last().is_some_and(|last| last.contains(wanted)) {
                return told;
            }
        }
        panic!("{wanted} was never told: {told:?}");
    }

    /// Whether the agent would be taken for dead.
    fn gives_up(&self) -> bool {
        while self.next(Duration::ZERO).is_some() {}
        let begun = Instant::now();
        let mut last = begun;
        while begun.elapsed() < 3 * LIMIT {
            if self.next(LIMIT / 8).is_some_and(|message| message == "WATCHDOG=1") {
                last = Instant::now();
            }
            if last.elapsed() > LIMIT {
                return true;
            }
        }
        false
    }
}

#[test]
fn it_is_told_of_readiness_with_the_orders_loaded_and_of_life_while_there_is_some() {
    let (mut gateway, before) = gateway_running(&["one"]);
    gateway.stop_agent().unwrap();
    gateway.broker.kill().unwrap();
    let manager = Manager::of(&mut gateway);
    gateway.spawn_agent().unwrap();
    let told = manager.until("READY=1");
    assert!(told.iter().any(|message| message.starts_with("STATUS=generation 1:")), "{told:?}");
    manager.until("STATUS=generation 1: 1 of 1 replicas as ordered; not connected");
    assert!(!manager.gives_up(), "a healthy agent gives signs of life");
    gateway.agent_process().unwrap().freeze().unwrap();
    assert!(manager.gives_up(), "a stopped agent gives none");
    gateway.agent_process().unwrap().thaw().unwrap();
    assert!(!manager.gives_up());
    assert!(gateway.stop_agent().unwrap().success());
    manager.until("STOPPING=1");
    gateway.start_agent().unwrap();
    assert_eq!(pids(&mut gateway, 1, &["one"]), before);
}

#[test]
fn a_store_that_hangs_is_a_reason_to_give_up_on_the_agent() {
    let mut gateway = Gateway::prepare(Options::default()).unwrap();
    let run_dir = gateway.place().run();
    let (image, disk) = (run_dir.join("disk.ext4"), run_dir.join("disk"));
    std::fs::create_dir(&disk).unwrap();
    run(Command::new("truncate").args(["-s", "16M"]).arg(&image), NO_LIMIT).unwrap();
    run(Command::new("mkfs.ext4").arg("-q").arg(&image), NO_LIMIT).unwrap();
    let inside = |gateway: &Gateway, program: &str, args: &[&std::ffi::OsStr]| {
        run(gateway.containerd.inside(program).args(args), NO_LIMIT).unwrap()
    };
    let disk = disk.as_os_str();
    inside(&gateway, "mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), disk]);
    gateway.state_dir = std::path::Path::new(disk).join("state");
    let manager = Manager::of(&mut gateway);
    gateway.start_agent().unwrap();
    let one = sleepers(&gateway, &["one"]);
    order(&gateway, 1, one.clone());
    let before = pids(&mut gateway, 1, &["one"]);
    assert!(!manager.gives_up());

    // What a flash card that no longer answers looks like: writes do not end.
    inside(&gateway, "fsfreeze", &["--freeze".as_ref(), disk]);
    order(&gateway, 2, one);
    let gave_up = manager.gives_up();
    inside(&gateway, "fsfreeze", &["--unfreeze".as_ref(), disk]);
    assert!(gave_up, "with a hanging store no sign of life is given");
    assert_eq!(pids(&mut gateway, 2, &["one"]), before, "the order was not lost");
    assert!(!manager.gives_up());
    // What the workload says is kept on that disk, too.
    order(&gateway, 3, Vec::new());
    gateway.wait_converged(3).unwrap();
    gateway.stop_agent().unwrap();
    let unmount = || run(gateway.containerd.inside("umount").arg(disk), NO_LIMIT).ok();
    wait_for("the disk to be idle", NO_LIMIT, unmount).unwrap();
}
