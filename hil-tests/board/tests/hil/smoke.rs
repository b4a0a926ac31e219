//! The main job, end to end.

use anyhow::ensure;
use coracle_board::board::PATIENCE;
use coracle_board::{Boot, Field, Network, Wishes, hil};
use coracle_testbed::Result;

#[test]
#[ignore = "a whole gateway: scripts/hil smoke"]
fn smoke() {
    hil("smoke", Wishes::default(), main_job);
}

/// Boots, is ordered over MQTT with TLS, runs the workload and a pod with limits, loses its power,
/// boots without network, and both run again, the pod at the same address.
pub(crate) fn main_job(field: &mut Field) -> Result<()> {
    field.board.cold_boot(&Boot::default())?;
    say(field, "booted to a login");
    field.order_web_and_pod(1)?;
    say(field, "ordered over MQTT with TLS, reported to run, answers from outside");
    let address = field.wait_pod(PATIENCE)?;
    limits_are_in_force(field)?;
    say(field, "a pod answers at its own address, within its limits (cgroup v2)");
    field.board.power_cut()?;

    field.board.power_on(&Boot::without_network())?;
    field.wait_web(PATIENCE)?;
    say(field, "after a power cut, without network: the workload runs again");
    let again = field.wait_pod(PATIENCE)?;
    ensure!(again == address, "the pod was at {address} and is at {again}: an address leaked");
    let given = field.board.sh("ls /run/coracle/network/ipam/* | grep -c '^[0-9]'")?;
    ensure!(given == "1", "{given} addresses are given away for one pod");
    say(field, "the pod is where it was: no address leaked");
    let status = field.board.status()?;
    ensure!(status.reported.generation_applied == 1, "the order was lost: {status:?}");
    ensure!(!status.connected(), "there was to be no network: {status:?}");

    let before = field.site.reports();
    field.board.network(Network::Good)?;
    field.site.wait_report("a report after the network came back", before, PATIENCE, |report| {
        report.workloads.iter().any(|workload| workload.name == "web")
    })?;
    field.board.wait_http(field.port, "/", PATIENCE)?;
    say(field, "network back: reported, and answers from outside");
    Ok(())
}

fn limits_are_in_force(field: &mut Field) -> Result<()> {
    let group = "/sys/fs/cgroup/coracle.slice/workloads/coracle/pod.0.main";
    for (file, expected) in
        [("memory.max", "67108864"), ("pids.max", "64"), ("cpu.max", "50000 100000")]
    {
        let found = field.board.sh(&format!("cat {group}/{file}"))?;
        ensure!(found == expected, "{file} is {found:?}, not {expected:?}");
    }
    Ok(())
}

fn say(field: &Field, what: &str) {
    eprintln!("{:6.1} s after power on: {what}", field.board.since_power_on().as_secs_f64());
}
