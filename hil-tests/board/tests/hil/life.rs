//! What happens to a gateway in its life: upgrades, hangs, bad networks, bad clocks, full disks.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use coracle_board::board::PATIENCE;
use coracle_board::{Boot, Field, Network, Wishes, hil};
use coracle_protocol::reported::{ConditionStatus, Phase};
use coracle_testbed::Result;
use coracle_testbed::image::GREETING;

/// A gateway that runs the web server; the server's process id and when it began.
pub(crate) fn running(field: &mut Field) -> Result<(i32, f64)> {
    field.board.cold_boot(&Boot::default())?;
    field.order_web(1)?;
    let pid = field.wait_web(PATIENCE)?;
    Ok((pid, field.board.started(pid)?))
}

/// The same process still serves.
pub(crate) fn untouched(field: &mut Field, (pid, begun): (i32, f64)) -> Result<()> {
    let now = field.wait_web(PATIENCE)?;
    ensure!(now == pid, "process {pid} became {now}");
    ensure!(field.board.started(pid)? == begun, "another process with the id {pid}");
    Ok(())
}

#[test]
#[ignore = "a whole gateway: scripts/hil upgrade"]
fn upgrade_of_the_agent_leaves_the_workload_alone() {
    hil("upgrade", Wishes::default(), |field| {
        let web = running(field)?;
        let old = field.board.main_pid("coracle")?;
        // Another file with other bytes: a note at the end of the program.
        let own = field.image.architecture.agent();
        let other = field.site.place().run().join("coracle");
        let mut bytes = std::fs::read(&own)?;
        bytes.extend_from_slice(b"\nupgraded");
        std::fs::write(&other, bytes)?;
        field.bring(&other, "/data/coracle.next")?;
        field.board.sh("mount --bind /data/coracle.next /usr/bin/coracle")?;
        field.board.sh("systemctl restart coracle")?;
        let new = field.board.main_pid("coracle")?;
        ensure!(new != old, "the agent was not restarted");
        let path = field.board.sh(&format!("tail -c 8 /proc/{new}/exe"))?;
        ensure!(path == "upgraded", "the agent is still the old program");
        untouched(field, web)
    });
}

#[test]
#[ignore = "a whole gateway: scripts/hil stopped_agent"]
fn stopped_agent_is_restarted_by_systemd() {
    hil("stopped_agent", Wishes::default(), |field| {
        let web = running(field)?;
        let old = field.board.main_pid("coracle")?;
        let limit = field.board.sh("systemctl show --property=WatchdogUSec --value coracle")?;
        eprintln!("the agent's watchdog: {limit}");
        field.board.sh(&format!("kill -STOP {old}"))?;
        let new = field.board.wait("another agent", 3 * PATIENCE, |board| {
            Ok(board.main_pid("coracle").ok().filter(|pid| *pid != old))
        })?;
        let why = field.board.sh("journalctl --no-pager -b -u coracle -o cat | tail -n 40")?;
        ensure!(why.contains("Watchdog timeout"), "restarted, but not by the watchdog:\n{why}");
        eprintln!("process {old} was stopped; now {new}");
        untouched(field, web)
    });
}

#[test]
#[ignore = "a whole gateway: scripts/hil hung_kernel"]
fn hung_kernel_is_reset_by_the_hardware_watchdog() {
    hil("hung_kernel", Wishes::default(), |field| {
        running(field)?;
        let said = field.board.sh("wdctl -x -o TIMEOUT 2>&1 || true; cat /proc/1/comm")?;
        eprintln!("the hardware watchdog: {}", said.replace('\n', " "));
        field.board.sh("sysctl -w kernel.panic=0 kernel.sysrq=1")?;
        let before = field.board.watchdog_resets()?;
        // The kernel panics and does nothing any more, so that nobody feeds the watchdog.
        field.board.console().send("echo c >/proc/sysrq-trigger\n")?;
        let at = std::time::Instant::now();
        field.board.wait_watchdog_reset(before, PATIENCE)?;
        eprintln!("logged in again {:.0} s after the kernel hung", at.elapsed().as_secs_f64());
        field.wait_web(PATIENCE)?;
        field.board.wait_http(field.port, "/", PATIENCE).map(drop)
    });
}

#[test]
#[ignore = "a whole gateway: scripts/hil network"]
fn network_off_on_slow_and_lossy_restarts_nothing() {
    hil("network", Wishes::default(), |field| {
        let web = running(field)?;
        field.board.network(Network::Off)?;
        field.board.wait_status("the agent to notice", PATIENCE, |status| {
            (!status.connected()).then_some(())
        })?;
        untouched(field, web)?;
        let before = field.site.reports();
        field.board.network(Network::Good)?;
        field.site.wait_report("a report", before, PATIENCE, |_| true)?;
        untouched(field, web)?;

        field.board.network(Network::Poor { delay_ms: 400, loss_percent: 10, kbit: 256 })?;
        let image = field.site.push_web(&field.image, "version 2")?;
        let web = field.site.web("web", &image, field.port);
        field.site.order(2, vec![web])?;
        field.site.wait_converged(2, 3 * PATIENCE)?;
        field.board.network(Network::Good)?;
        let page = field.board.wait_http(field.port, "/", PATIENCE)?;
        ensure!(page.contains("version 2"), "still the old page: {page}");
        Ok(())
    });
}

#[test]
#[ignore = "a whole gateway: scripts/hil clock"]
fn clock_set_back_and_forth_restarts_nothing() {
    hil("clock", Wishes::default(), |field| {
        let web = running(field)?;
        let now = field.board.clock()?;
        for jump in [-40 * 86_400, 400 * 86_400, 0] {
            field.board.set_clock(now + jump)?;
            std::thread::sleep(Duration::from_secs(3));
            untouched(field, web)?;
        }
        let status = field.board.status()?;
        let restarts = status.replica("web").context("no replica")?.restarts;
        ensure!(restarts == 0, "{restarts} restarts");
        Ok(())
    });
}

#[test]
#[ignore = "a whole gateway: scripts/hil wrong_clock"]
fn wrong_clock_at_boot_does_not_keep_workloads_down() {
    hil("wrong_clock", Wishes::default(), |field| {
        running(field)?;
        field.board.power_cut()?;
        let clock = Some("1999-12-31T23:59:00".to_owned());
        field.board.power_on(&Boot { clock, network: false, ..Boot::default() })?;
        field.wait_web(PATIENCE).map(drop)
    });
}

#[test]
#[ignore = "a whole gateway: scripts/hil disk_full"]
fn data_disk_full_and_free_again_restarts_nothing() {
    hil("disk_full", Wishes::default(), |field| {
        let web = running(field)?;
        field.board.fill_data(0)?;
        // ext4 keeps some blocks even from root, so no figure tells.
        let more = field
            .board
            .run("head -c 65536 /dev/zero >/data/more; C=$?; rm -f /data/more; (exit $C)")?;
        ensure!(more.code != 0, "not full: 64 KiB more could be written to /data");
        untouched(field, web)?;
        let sleeper = field.site.push_web(&field.image, "another")?;
        let both = vec![
            field.site.web("web", &web_image(field)?, field.port),
            field.site.web("more", &sleeper, field.port + 1),
        ];
        field.site.order(2, both)?;
        std::thread::sleep(Duration::from_secs(10));
        untouched(field, web)?;
        let status = field.board.status()?;
        let unwell: Vec<_> = status
            .reported
            .conditions
            .iter()
            .filter(|c| c.status != ConditionStatus::True)
            .collect();
        eprintln!("with a full disk: {:?}, {unwell:?}", status.reported.phase);
        // Said by an agent that starts on a full disk, too.
        field.board.sh("systemctl restart coracle")?;
        field.board.wait_status("the full disk to be said", 2 * PATIENCE, |status| {
            let data = status.condition("data")?;
            (data.status == ConditionStatus::False && data.reason == "full").then_some(())
        })?;
        untouched(field, web)?;
        field.board.free_data()?;
        field.site.wait_report("the order fulfilled after all", 0, 3 * PATIENCE, |report| {
            report.generation_applied == 2 && report.phase == Phase::Converged
        })?;
        untouched(field, web)
    });
}

#[test]
#[ignore = "a whole gateway: scripts/hil containerd_stopped"]
fn containerd_stopped_and_started_under_a_running_workload() {
    hil("containerd_stopped", Wishes::default(), |field| {
        let web = running(field)?;
        field.board.sh("systemctl stop containerd")?;
        wait_containerd(field, ConditionStatus::False)?;
        // Without containerd nobody but the kernel knows of the process.
        ensure!(field.board.started(web.0)? == web.1, "another process with the id {}", web.0);
        let page = field.board.wait_http(field.port, "/", PATIENCE)?;
        ensure!(page.starts_with(GREETING), "an odd page: {page}");
        field.board.sh("systemctl start containerd")?;
        wait_containerd(field, ConditionStatus::True)?;
        untouched(field, web)?;
        let status = field.board.status()?;
        let restarts = status.replica("web").context("no replica")?.restarts;
        ensure!(restarts == 0, "{restarts} restarts");
        Ok(())
    });
}

/// Waits until the gateway says so of containerd.
fn wait_containerd(field: &mut Field, wanted: ConditionStatus) -> Result<()> {
    let what = format!("containerd to be {wanted:?}");
    field.board.wait_status(&what, PATIENCE, |status| {
        (status.condition("containerd")?.status == wanted).then_some(())
    })
}

/// The image that the web server runs already: the same bytes have the same digest.
fn web_image(field: &Field) -> Result<String> {
    field.site.push_web(&field.image, "version 1")
}
