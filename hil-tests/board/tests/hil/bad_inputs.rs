//! What a gateway may lack or find broken: the agent starts, says so on the console, in its status
//! and in its report, and does what is still possible.

use anyhow::{Context as _, ensure};
use coracle_board::board::PATIENCE;
use coracle_board::image::Image;
use coracle_board::{Boot, Change, Field, Wishes, hil, tools};
use coracle_hil::facts::Status;
use coracle_protocol::reported::{Condition, ConditionStatus};
use coracle_testbed::Result;

use crate::life::{running, untouched};

/// The condition `name`, if it says that something is wrong for that reason.
fn wrong<'a>(conditions: &'a [Condition], name: &str, reason: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| {
        condition.name == name
            && condition.status == ConditionStatus::False
            && condition.reason == reason
    })
}

/// Waits until the gateway's own status says so; the message.
fn in_status(field: &mut Field, name: &str, reason: &str) -> Result<String> {
    let what = format!("{name} to be wrong: {reason}");
    field.board.wait_status(&what, PATIENCE, |status| {
        wrong(&status.reported.conditions, name, reason).map(|found| found.message.clone())
    })
}

/// Waits until a report after the first `skip` says so.
fn in_report(field: &Field, skip: usize, name: &str, reason: &str) -> Result<()> {
    let what = format!("a report that {name} is wrong: {reason}");
    let seen = field.site.wait_report(&what, skip, PATIENCE, |report| {
        wrong(&report.conditions, name, reason).is_some()
    });
    seen.map(drop)
}

/// The console showed the agent say `message` as an error.
fn on_console(field: &mut Field, message: &str) -> Result<()> {
    // A sentence is as long as it is; its head will do, before the terminal folds it.
    let head: String = message.chars().take(40).collect();
    let log = field.board.wait("the agent's word on the console", PATIENCE, |board| {
        let log = board.boot_log();
        Ok(log.contains(&head).then_some(log))
    })?;
    let line = log.lines().find(|line| line.contains(&head)).unwrap_or_default();
    ensure!(line.contains("coracle"), "somebody else said it: {line}");
    eprintln!("on the console: {}", line.trim());
    Ok(())
}

/// All three places say it.
fn everywhere(field: &mut Field, skip: usize, name: &str, reason: &str) -> Result<()> {
    let message = in_status(field, name, reason)?;
    on_console(field, &message)?;
    in_report(field, skip, name, reason)
}

fn good(status: &Status, name: &str) -> Option<()> {
    let condition = status.condition(name)?;
    (condition.status == ConditionStatus::True).then_some(())
}

fn cut_and_boot(field: &mut Field, boot: &Boot) -> Result<usize> {
    field.board.sh("sync")?;
    let skip = field.site.reports();
    field.board.cold_boot(boot)?;
    Ok(skip)
}

#[test]
#[ignore = "a whole gateway: scripts/hil no_data_partition"]
fn no_data_partition() {
    hil("no_data_partition", Wishes::default(), |field| {
        running(field)?;
        let skip = cut_and_boot(field, &Boot { data: false, ..Boot::default() })?;
        everywhere(field, skip, "data", "read-only")?;
        everywhere(field, skip, "containerd", "not-reachable")?;
        // It knows itself by the factory's identity, and takes part.
        field.board.wait_status("the link", PATIENCE, |status| status.connected().then_some(()))?;
        // Nothing was lost: with the partition back all is as before.
        field.board.cold_boot(&Boot::without_network())?;
        field.wait_web(PATIENCE)?;
        field.board.wait_status("the data", PATIENCE, |status| good(status, "data")).map(drop)
    });
}

#[test]
#[ignore = "a whole gateway: scripts/hil full_data_partition"]
fn full_data_partition() {
    hil("full_data_partition", Wishes::default(), |field| {
        running(field)?;
        field.board.fill_data(0)?;
        let skip = cut_and_boot(field, &Boot::default())?;
        everywhere(field, skip, "data", "full")?;
        // Not a byte is left, not even for root: what that keeps from starting is said, and starts
        // by itself when there is room again.
        field.site.wait_report("what of the workload", skip, PATIENCE, |report| {
            let replicas = report.workloads.iter().flat_map(|workload| &workload.replicas);
            replicas.into_iter().any(|replica| replica.pid.is_some() || replica.reason.is_some())
        })?;
        field.board.free_data()?;
        field.wait_web(2 * PATIENCE)?;
        // Noticed by the routine look, without a restart.
        field.board.wait_status("room", 2 * PATIENCE, |status| good(status, "data")).map(drop)
    });
}

#[test]
#[ignore = "a whole gateway: scripts/hil damaged_data_file"]
fn damaged_data_file() {
    hil("damaged_data_file", Wishes::default(), |field| {
        running(field)?;
        field.board.sh("systemctl stop coracle; \
             dd if=/dev/urandom of=/var/lib/coracle/store.mdb bs=4096 count=8 conv=notrunc")?;
        let skip = cut_and_boot(field, &Boot::default())?;
        everywhere(field, skip, "store-intact", "not-as-left")?;
        field.wait_web(PATIENCE)?;
        let status = field.board.status()?;
        ensure!(status.reported.generation_applied == 1, "the order is gone: {status:?}");
        // The new store keeps orders.
        let web = field.site.push_web(&field.image, "version 2")?;
        field.site.order(2, vec![field.site.web("web", &web, field.port)])?;
        field.site.wait_converged(2, 3 * PATIENCE).map(drop)
    });
}

#[test]
#[ignore = "a whole gateway: scripts/hil missing_certificate"]
fn missing_certificate() {
    hil("missing_certificate", Wishes::default(), |field| {
        running(field)?;
        field.board.sh("mv /var/lib/coracle/identity/cert.pem /data/away.pem")?;
        // Without the factory's, or provisioning would put it back.
        cut_and_boot(field, &Boot { factory: false, ..Boot::default() })?;
        let message = in_status(field, "identity", "files-missing")?;
        ensure!(message.contains("cert.pem"), "which file? {message}");
        on_console(field, &message)?;
        field.wait_web(PATIENCE)?;
        // It cannot be reported without it; with it, it is by itself.
        let skip = field.site.reports();
        field.board.sh("mv /data/away.pem /var/lib/coracle/identity/cert.pem")?;
        field.site.wait_report("a report", skip, 2 * PATIENCE, |_| true)?;
        field.board.sh("rm /var/lib/coracle/identity/cert.pem; sync")?;
        // With the factory's, provisioning repairs it at boot.
        field.board.cold_boot(&Boot::default())?;
        field.board.wait_status("the identity", PATIENCE, |status| good(status, "identity"))
    });
}

#[test]
#[ignore = "a whole gateway: scripts/hil wrong_permissions"]
fn wrong_permissions() {
    hil("wrong_permissions", Wishes::default(), |field| {
        let web = running(field)?;
        let skip = field.site.reports();
        let open = "chmod 0777 /var/lib/coracle; chmod 0644 /var/lib/coracle/identity/key.pem";
        field.board.sh(&format!("{open}; systemctl restart coracle"))?;
        everywhere(field, skip, "identity", "open-to-others")?;
        untouched(field, web)?;
        // At boot provisioning closes the key, and the agent its directory.
        field.board.sh(open)?;
        cut_and_boot(field, &Boot::default())?;
        field.board.wait_status("the identity", PATIENCE, |status| good(status, "identity"))?;
        let modes = "stat -c %a /var/lib/coracle /var/lib/coracle/identity/key.pem";
        let modes = field.board.sh(modes)?;
        ensure!(modes.split_whitespace().eq(["700", "600"]), "still open: {modes}");
        field.wait_web(PATIENCE).map(drop)
    });
}

#[test]
#[ignore = "a whole gateway: scripts/hil read_only_data"]
fn read_only_data() {
    hil("read_only_data", Wishes::default(), |field| {
        let web = running(field)?;
        let skip = field.site.reports();
        // What the kernel does when a card no longer takes writes.
        field.board.sh("sysctl -w kernel.sysrq=1; sync; echo u >/proc/sysrq-trigger; sleep 2")?;
        let image = field.site.push_web(&field.image, "version 1")?;
        field.site.order(2, vec![field.site.web("web", &image, field.port)])?;
        everywhere(field, skip, "store", "not-writable")?;
        field.board.sh("systemctl restart coracle")?;
        everywhere(field, skip, "data", "read-only")?;
        untouched(field, web)?;
        let status = field.board.status()?;
        ensure!(status.reported.generation_applied == 1, "not stored, yet in force: {status:?}");
        // Writable again: the order that waited at the broker is taken.
        field.board.cold_boot(&Boot::default())?;
        field.site.wait_converged(2, 3 * PATIENCE).map(drop)
    });
}

#[test]
#[ignore = "a whole gateway: scripts/hil missing_cgroup_controllers"]
fn missing_cgroup_controllers() {
    hil("missing_cgroup_controllers", Wishes::default(), |field| {
        running(field)?;
        let kernel_arguments = vec!["cgroup_disable=memory,pids".to_owned()];
        let skip = cut_and_boot(field, &Boot { kernel_arguments, ..Boot::default() })?;
        everywhere(field, skip, "cgroups", "controllers-missing")?;
        // Nothing of it was asked for: it runs.
        field.wait_web(PATIENCE).map(drop)
    });
}

#[test]
#[ignore = "a whole gateway: scripts/hil missing_kernel_features"]
fn missing_kernel_features() {
    let outcome = Image::build(Wishes::default().architecture).and_then(|image| {
        let modules = tools::debugfs(&image.root(), "ls -p /usr/lib/modules\n")?;
        let release = modules
            .lines()
            .filter_map(|line| line.split('/').nth(5))
            .find(|name| name.starts_with(|c: char| c.is_ascii_digit()))
            .context("no modules in the image")?;
        let dir = format!("/usr/lib/modules/{release}");
        let list = tools::debugfs(&image.root(), &format!("cat {dir}/modules.dep\n"))?;
        let without: String = list
            .lines()
            .filter(|line| !line.starts_with("debugfs"))
            .filter(|line| !line.contains("/overlay.ko") && !line.contains("/veth.ko"))
            .flat_map(|line| [line, "\n"])
            .collect();
        ensure!(without.len() < list.len(), "overlay and veth are no modules of this kernel");
        Ok(vec![
            Change::write(&format!("{dir}/modules.dep"), without),
            Change::remove(&format!("{dir}/kernel/fs/overlayfs/overlay.ko")),
            Change::remove(&format!("{dir}/kernel/drivers/net/veth.ko")),
        ])
    });
    let changes = outcome.unwrap_or_else(|error| panic!("{error:?}"));
    hil("missing_kernel_features", Wishes { changes, ..Wishes::default() }, |field| {
        field.board.cold_boot(&Boot::default())?;
        let message = in_status(field, "kernel", "features-missing")?;
        ensure!(message.contains("overlay") && message.contains("veth"), "which? {message}");
        everywhere(field, 0, "kernel", "features-missing")?;
        // An order is taken, and what keeps it from running is said.
        let web = field.site.push_web(&field.image, "version 1")?;
        field.site.order(1, vec![field.site.web("web", &web, field.port)])?;
        let what = "a report with the reason";
        let report = field.site.wait_report(what, 0, PATIENCE, |report| {
            let replicas = report.workloads.iter().flat_map(|workload| &workload.replicas);
            replicas.into_iter().any(|replica| {
                replica.reason.as_ref().is_some_and(|reason| reason.contains("no such device"))
            })
        })?;
        ensure!(report.generation_applied == 1, "not in force: {report:?}");
        Ok(())
    });
}

#[test]
#[ignore = "a whole gateway: scripts/hil missing_containerd"]
fn missing_containerd() {
    let changes = vec![Change::remove("/usr/bin/containerd")];
    hil("missing_containerd", Wishes { changes, ..Wishes::default() }, |field| {
        field.board.cold_boot(&Boot::default())?;
        everywhere(field, 0, "containerd", "not-reachable")?;
        let web = field.site.push_web(&field.image, "version 1")?;
        field.site.order(1, vec![field.site.web("web", &web, field.port)])?;
        let what = "a report of the order being in force";
        field.site.wait_report(what, 0, PATIENCE, |report| report.generation_applied == 1)?;
        // Kept, also over a power cut.
        field.board.cold_boot(&Boot::without_network())?;
        let status = field.board.wait_status("the order", PATIENCE, |status| {
            (status.reported.generation_applied == 1).then(|| status.clone())
        })?;
        ensure!(status.reported.workloads.len() == 1, "{status:?}");
        Ok(())
    });
}

#[test]
#[ignore = "a whole gateway: scripts/hil missing_network_plugins"]
fn missing_network_plugins() {
    let plugins = ["bridge", "host-local", "loopback", "portmap"];
    let changes = plugins.map(|name| Change::remove(&format!("/usr/lib/cni/{name}"))).to_vec();
    hil("missing_network_plugins", Wishes { changes, ..Wishes::default() }, |field| {
        running(field)?;
        everywhere(field, 0, "cni", "plugins-missing")
    });
}
