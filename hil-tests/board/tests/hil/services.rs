//! Services on a whole gateway: several replicas behind one port, software that is no image, and
//! what keeps failing while the clock jumps.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use coracle_board::board::PATIENCE;
use coracle_board::{Board, Boot, Field, Wishes, hil};
use coracle_hil::Status;
use coracle_hil::callers::Callers;
use coracle_hil::orders;
use coracle_testbed::image::GREETING;
use coracle_testbed::{Result, wait_for};

use super::life::untouched;

/// Pages of each version that are waited for.
const PAGES: u64 = 20;

#[test]
#[ignore = "a whole gateway: scripts/hil shared_port"]
fn shared_port_is_served_through_an_update_and_new_limits() {
    hil("shared_port", Wishes::default(), |field| {
        field.board.cold_boot(&Boot::default())?;
        let example = coracle_board::tools::repository().join("docs/examples/replicas.yaml");
        let example = std::fs::read_to_string(example)?;
        let [first, second] =
            [1, 2].map(|version| field.site.push_web(&field.image, &format!("version {version}")));
        let (first, second) = (first?, second?);
        let (image, limit) = ("registry.example/web:1", "memory_mib: 64");
        field.site.order_text(1, &example, &[(image, &first)])?;
        field.site.wait_converged(1, 3 * PATIENCE)?;
        let old = replicas(&field.board.status()?)?;

        let callers = Callers::from_here(&field.board.outside(field.port)?);
        wait_pages(&callers, 1)?;
        field.site.order_text(2, &example, &[(image, &second)])?;
        field.site.wait_converged(2, 3 * PATIENCE)?;
        wait_pages(&callers, 2)?;
        let new = replicas(&field.board.status()?)?;
        let pids = |replicas: &[(u32, u32)]| -> BTreeSet<u32> {
            replicas.iter().map(|(_, pid)| *pid).collect()
        };
        ensure!(pids(&old).is_disjoint(&pids(&new)), "of {old:?} some are in {new:?}");
        ensure!(memory_limits(&mut field.board, &new)? == ["67108864"; 3], "the limits at first");

        // More than before, and less.
        for (generation, mib) in [(3, 96_u64), (4, 48)] {
            let limits = format!("memory_mib: {mib}");
            field.site.order_text(generation, &example, &[(image, &second), (limit, &limits)])?;
            field.site.wait_converged(generation, 3 * PATIENCE)?;
            let now = replicas(&field.board.status()?)?;
            ensure!(now == new, "{new:?} became {now:?}");
            let found = memory_limits(&mut field.board, &now)?;
            let wanted = (mib << 20).to_string();
            ensure!(found.iter().all(|limit| *limit == wanted), "{mib} MiB: {found:?}");
            eprintln!("memory.max of the three is now {wanted}, their processes are the same");
        }
        let seen = callers.end();
        eprintln!("answers from outside: {:?}", seen.answers);
        ensure!(seen.broken.is_empty(), "not answered: {:?}", seen.broken);
        Ok(())
    });
}

/// Index and process of the three replicas, which are to be ready.
fn replicas(status: &Status) -> Result<Vec<(u32, u32)>> {
    let replicas = &status.workload("api").context("no workload")?.replicas;
    ensure!(
        replicas.len() == 3 && replicas.iter().all(|replica| replica.ready),
        "not three that are ready: {replicas:?}"
    );
    replicas.iter().map(|it| Ok((it.index, it.pid.context("no process")?))).collect()
}

fn wait_pages(callers: &Callers, version: u32) -> Result<()> {
    let page = format!("{GREETING} (version {version})");
    let some = || callers.so_far().answers.get(&page).filter(|seen| seen.count > PAGES).map(drop);
    wait_for(&format!("{PAGES} times {page}"), PATIENCE, some)
        .with_context(|| format!("{:?}", callers.so_far()))
}

fn memory_limits(board: &mut Board, replicas: &[(u32, u32)]) -> Result<Vec<String>> {
    let group = "/sys/fs/cgroup/coracle.slice/workloads/coracle";
    let limit =
        |(index, _): &(u32, u32)| board.sh(&format!("cat {group}/api.{index}.main/memory.max"));
    replicas.iter().map(limit).collect()
}

const NATIVE: &str = "\
schema: 1
gateway: 3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11
generation: 1
workloads:
  - name: counter
    network: host
    coordinate: a.counter.alice.line-1
    service:
      artifact: org.example:counter:1
      command: [bin/count]
";

/// Counts its starts in the directory that it may write to, and tries what it may not.
const COUNT: &str = "\
#!/bin/sh
cd \"$CORACLE_RUNTIME\" || exit 1
count=$(($(cat count 2>/dev/null || echo 0) + 1))
echo \"$count\" >next && sync next && mv next count && sync .
echo \"start $count as $(id -u)\"
echo x >\"$CORACLE_ARTIFACT/x\"
echo x >/etc/x
trap 'exit 0' TERM
while :; do sleep 1; done
";

const RUNTIME: &str = "/var/lib/coracle/native/runtime/line-1/alice/counter/a";
const SOFTWARE: &str = "/var/lib/coracle/native/software/org.example/counter/1";

#[test]
#[ignore = "a whole gateway: scripts/hil native_service"]
fn native_service_writes_where_it_may_and_outlives_a_power_cut() {
    hil("native_service", Wishes::default(), |field| {
        // The repository is named in coracle.toml, which a test cannot change on a real board.
        field.board.qemu()?;
        publish_counter(field)?;
        field.board.cold_boot(&Boot::default())?;
        field.site.order_text(1, NATIVE, &[])?;
        field.site.wait_converged(1, 3 * PATIENCE)?;
        let said = wait_said(&mut field.board, "start 1 as 65534")?;
        for path in [&format!("{SOFTWARE}/x"), "/etc/x"] {
            let refused =
                |line: &str| line.contains(path) && line.contains("Read-only file system");
            ensure!(said.lines().any(refused), "{path} was not refused:\n{said}");
        }
        let pid = field.board.status()?.pid("counter").context("no process")?;
        within_its_walls(&mut field.board, pid)?;
        eprintln!("it said:\n{said}");

        field.board.power_cut()?;
        field.board.cold_boot(&Boot::without_network())?;
        let said = wait_said(&mut field.board, "start 2 as 65534")?;
        let pid = field
            .board
            .wait_status("the service to run", PATIENCE, |status| status.pid("counter"))?;
        within_its_walls(&mut field.board, pid)?;
        let count = field.board.sh(&format!("cat {RUNTIME}/count"))?;
        ensure!(count == "2", "it counted {count} starts");
        eprintln!("after a power cut, without network, it said:\n{said}");
        Ok(())
    });
}

fn publish_counter(field: &Field) -> Result<()> {
    let dir = field.site.place().run().join("counter");
    let program = dir.join("bin/count");
    std::fs::create_dir_all(dir.join("bin"))?;
    std::fs::write(&program, COUNT)?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    field.site.serve_artifact("org.example:counter:1", &dir)
}

fn wait_said(board: &mut Board, wanted: &str) -> Result<String> {
    board.wait(&format!("{wanted:?}"), PATIENCE, |board| {
        let said = board.run("coracle logs counter")?.text;
        // What it tries and is refused comes after it.
        Ok((said.contains(wanted) && said.contains("/etc/x")).then_some(said))
    })
}

/// The service is nobody, on the gateway's root file system, read-only; what it writes is on the
/// data partition, and of the agent's state it sees nothing else.
fn within_its_walls(board: &mut Board, pid: i32) -> Result<()> {
    let user = board.sh(&format!("awk '/^Uid:/ {{ print $2, $3 }}' /proc/{pid}/status"))?;
    ensure!(user == "65534 65534", "it runs as {user}");
    let root = board.sh(&format!("awk '$5 == \"/\" {{ print $6 }}' /proc/{pid}/mountinfo"))?;
    ensure!(root.split(',').any(|option| option == "ro"), "its root is {root}");
    let same = board.sh(&format!("stat -c %d:%i / /proc/{pid}/root/."))?;
    let same: BTreeSet<&str> = same.lines().collect();
    ensure!(same.len() == 1, "its root is not the gateway's: {same:?}");
    let devices = board.sh(&format!("stat -c %d {RUNTIME} {SOFTWARE} /data"))?;
    let devices: BTreeSet<&str> = devices.lines().collect();
    ensure!(devices.len() == 1, "not all on the data partition: {devices:?}");
    let owned = board.sh(&format!("stat -c '%u %g %a' {RUNTIME}"))?;
    ensure!(owned == "65534 65534 750", "its directory: {owned}");
    let state = board.sh(&format!("ls -A /proc/{pid}/root/var/lib/coracle"))?;
    ensure!(state == "native", "it sees {state:?} of the agent's state");
    Ok(())
}

const FAILING: [&str; 2] = ["failing", "broken"];

/// How many failures in a row each has before the clock jumps.
const FAILURES: u32 = 6;

const MINUTE: Duration = Duration::from_secs(60);

const YEAR: i64 = 365 * 86_400;

#[test]
#[ignore = "a whole gateway: scripts/hil clock_jump"]
fn clock_jump_neither_hurries_nor_holds_what_waits_for_its_next_try() {
    hil("clock_jump", Wishes::default(), |field| {
        field.board.cold_boot(&Boot::default())?;
        order_with_failing(field)?;
        let web = field.wait_web(PATIENCE)?;
        let web = (web, field.board.started(web)?);
        field.board.wait_status("failures in a row", 3 * PATIENCE, |status| {
            let restarts = restarts(status)?;
            restarts.iter().all(|restarts| *restarts >= FAILURES).then_some(())
        })?;
        let now = field.board.clock()?;
        for jump in [5 * YEAR, -3 * YEAR] {
            let before = restarts(&field.board.status()?).context("no replica")?;
            field.board.set_clock(now + jump)?;
            std::thread::sleep(MINUTE);
            let after = restarts(&field.board.status()?).context("no replica")?;
            let elapsed = MINUTE + PATIENCE / 8;
            let most = before.map(|restarts| most_restarts(restarts, elapsed));
            eprintln!(
                "{} years: restarts {before:?}, a minute later {after:?}, at most {most:?} more",
                jump / YEAR
            );
            for ((before, after), most) in before.iter().zip(after).zip(most) {
                ensure!(after - before <= most, "{} restarts in a minute", after - before);
            }
            untouched(field, web)?;
        }
        // Nor does one that waits wait for years now: its pause is of minutes.
        let before = restarts(&field.board.status()?).context("no replica")?;
        field.board.wait_status("another try of each", 3 * PATIENCE, |status| {
            let now = restarts(status)?;
            before.iter().zip(now).all(|(before, now)| now > *before).then_some(())
        })?;
        let reports = field.site.reports();
        field.board.set_clock(now)?;
        field.site.wait_report(
            "a report with the clock put right",
            reports,
            3 * PATIENCE,
            |_| true,
        )?;
        untouched(field, web)?;
        let status = field.board.status()?;
        let restarts = status.replica("web").context("no replica")?.restarts;
        ensure!(restarts == 0, "{restarts} restarts of what runs");
        Ok(())
    });
}

/// Orders the web server, and two of the kind that end at once.
fn order_with_failing(field: &mut Field) -> Result<()> {
    let image = field.site.push_web(&field.image, "version 1")?;
    let mut workloads = vec![field.site.web("web", &image, field.port)];
    for name in FAILING {
        let mut failing = orders::workload(name, &image);
        failing.containers[0].args = Some(vec!["-D".into(), "-f".into(), "/nowhere".into()]);
        workloads.push(failing);
    }
    field.site.order(1, workloads)
}

/// Restarts of those that fail.
fn restarts(status: &Status) -> Option<[u32; 2]> {
    let [failing, broken] = FAILING.map(|name| Some(status.replica(name)?.restarts));
    Some([failing?, broken?])
}

/// The most restarts within a time after that many failures in a row, by the pauses that
/// docs/workload-life.md promises: half of 1, 2, 4 seconds and so on at least.
fn most_restarts(failures: u32, within: Duration) -> u32 {
    let mut restarts = 0;
    let mut passed = Duration::ZERO;
    while passed <= within {
        restarts += 1;
        let pause = Duration::from_secs(1) * (1 << (failures + restarts).saturating_sub(2).min(8));
        passed += pause / 2;
    }
    restarts
}
