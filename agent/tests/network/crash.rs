//! The agent dies at every step of making and removing networks, and at any moment; then it comes
//! back, and the host is as before.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use coracle::fault::FAULT_VARIABLE;
use coracle::network::{NetworkRequest, Networks};
use coracle_core::desired::{Network, Protocol};
use coracle_core::traffic::{Target, Traffic};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::host::{Host, ask, config, on_a_host, pause, port, replica, request, serve, wait};
use super::peers::shared;

const DIR_VARIABLE: &str = "CORACLE_TEST_NETWORK_DIR";

/// What the agent that dies works on.
fn requests() -> [NetworkRequest; 3] {
    let mut web = request("web", Network::Pod);
    web.ports = vec![port(80, 8080, Protocol::Tcp), port(80, 8080, Protocol::Udp)];
    [request("broker", Network::Host), web, request("alone", Network::None)]
}

/// The agent that dies, played by this test program.
#[test]
fn child_that_makes_and_removes_networks() {
    let Ok(dir) = std::env::var(DIR_VARIABLE) else { return };
    setrlimit(Resource::RLIMIT_CORE, 0, 0).unwrap();
    let networks = Networks::new(&config(Path::new(&dir)));
    wait(async {
        networks.sweep().await;
        for request in requests() {
            networks.ensure(&request).await.unwrap();
        }
        networks.share(&shared_out(&networks)).await.unwrap();
        networks.withdraw(&replica("web", 0)).await.unwrap();
        networks.share(&Traffic::default()).await.unwrap();
        for request in requests() {
            networks.remove(&request.replica).await.unwrap();
        }
    });
}

/// A port leads to `web`, besides the one that a plugin publishes.
fn shared_out(networks: &Networks) -> Traffic {
    let replica = replica("web", 0);
    let address = networks.address(&replica).unwrap();
    shared(vec![Target { replica, address, port: 80 }])
}

fn child(host: &Host) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let test = "crash::child_that_makes_and_removes_networks";
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(DIR_VARIABLE, host.config.runtime_dir.parent().unwrap());
    command
}

/// An agent comes back after a crash. What it does first differs: by `way`.
fn recover(host: &Host, way: usize) {
    let networks = host.networks();
    let [broker, web, alone] = requests();
    wait(async {
        match way % 3 {
            // The ordinary way: sweep, and what is ordered is made.
            0 => {
                networks.sweep().await;
                for request in [&broker, &web, &alone] {
                    networks.ensure(request).await.unwrap();
                }
                let pod = networks.ensure(&web).await.unwrap();
                networks.share(&shared_out(&networks)).await.unwrap();
                serve(pod.netns.as_ref().unwrap(), 80);
                ask("127.0.0.1".parse().unwrap(), 8080).unwrap();
                // The server holds a socket, and so the namespace, until the test ends.
            }
            // Nothing is ordered any more.
            1 => networks.sweep().await,
            // The sweep did not happen, or failed.
            _ => {
                networks.ensure(&web).await.unwrap();
            }
        }
        for replica in networks.list().unwrap().into_keys() {
            networks.remove(&replica).await.unwrap();
        }
        networks.share(&Traffic::default()).await.unwrap();
        // What is below records is the sweep's alone.
        if way % 3 == 2 {
            host.networks().sweep().await;
        }
    });
}

/// Every `stride`th step from `first` on; gives how many steps there are.
fn die_at_steps(first: usize, stride: usize) -> usize {
    on_a_host(|host| {
        let before = host.used();
        let mut step = first;
        loop {
            let output = child(host).env(FAULT_VARIABLE, step.to_string()).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() {
                return step;
            }
            assert_eq!(output.status.signal(), Some(6), "step {step}: {said}");
            recover(host, step / stride);
            host.comes_back_to(&before, &format!("after {said}"));
            step += stride;
        }
    })
}

#[test]
fn after_an_abort_at_every_step_the_host_is_as_before() {
    // Two hosts, so that both processors are used.
    let (odd, even) = std::thread::scope(|scope| {
        let even = scope.spawn(|| die_at_steps(2, 2));
        (die_at_steps(1, 2), even.join().unwrap())
    });
    let steps = odd.max(even);
    println!("{steps} steps");
    assert!(steps > 60, "only {steps} steps were reached");
}

/// A process and all below it.
fn family(pid: i32) -> Vec<i32> {
    let mut all = vec![pid];
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    for task in tasks {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            all.extend(family(child));
        }
    }
    all
}

#[test]
fn after_a_kill_at_any_moment_the_host_is_as_before() {
    on_a_host(|host| {
        let before = host.used();
        for round in 0..24_usize {
            let mut child =
                child(host).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            for _ in 0..round / 2 {
                pause();
            }
            let pid = i32::try_from(child.id()).unwrap();
            // Alone, as by a crash, so that plugins live on; or with its plugins, as by systemd.
            let victims = if round % 2 == 0 { vec![pid] } else { family(pid) };
            for victim in victims {
                // It may have ended by itself.
                kill(Pid::from_raw(victim), Signal::SIGKILL).ok();
            }
            child.wait().unwrap();
            recover(host, round / 2);
            host.comes_back_to(&before, &format!("after round {round}"));
        }
    });
}
