//! What the gateway costs, as a table. Asserted is only that the idle agent writes nothing and that
//! 256 MiB are enough.

use std::time::Duration;

use anyhow::ensure;
use coracle_board::board::PATIENCE;
use coracle_board::{Board, Boot, Field, LeftOut, Wishes, hil};
use coracle_testbed::Result;

/// How long an idle gateway is watched: `CORACLE_HIL_IDLE` seconds, or 600.
fn idle() -> u64 {
    std::env::var("CORACLE_HIL_IDLE").ok().and_then(|text| text.parse().ok()).unwrap_or(600)
}

#[test]
#[ignore = "a whole gateway: scripts/hil measure"]
fn measure() {
    hil("measure", Wishes::default(), |field| {
        let mut rows = Vec::new();
        field.board.cold_boot(&Boot::default())?;
        field.order_web(1)?;
        for boot in 1..=3 {
            field.board.cold_boot(&Boot::without_network())?;
            let pid = field.wait_web(PATIENCE)?;
            let moments = moments(&mut field.board, pid)?;
            for (what, seconds) in moments {
                rows.push((format!("boot {boot}: {what}"), format!("{seconds:.1} s")));
            }
        }
        field.board.cold_boot(&Boot::default())?;
        field.wait_web(PATIENCE)?;
        settle();
        for unit in ["coracle", "containerd"] {
            let pid = field.board.main_pid(unit)?;
            rows.push((format!("{unit}: PSS"), format!("{} KiB", field.board.pss_kib(pid)?)));
        }

        let (bytes, writes) = field.board.data_written()?;
        let before = written(&mut field.board)?;
        eprintln!("watching the idle gateway for {} s", idle());
        std::thread::sleep(Duration::from_secs(idle()));
        let after = written(&mut field.board)?;
        let (bytes_after, writes_after) = field.board.data_written()?;
        rows.push((
            format!("data disk in {} idle s", idle()),
            format!("{} bytes in {} writes", bytes_after - bytes, writes_after - writes),
        ));
        let mut agent = 0;
        for ((unit, before), (_, after)) in before.iter().zip(&after) {
            rows.push((format!("  of it by {unit}"), format!("{} bytes", after - before)));
            if *unit == "coracle" {
                agent = after - before;
            }
        }

        if let Ok(qemu) = field.board.qemu() {
            let statistics = qemu.data_statistics()?;
            eprintln!("QEMU's statistics of the data disk: {statistics}");
        }
        field.board.power_cut()?;
        let little = with_little_memory(field);
        let value = little.as_ref().map_or_else(|error| format!("{error:#}"), String::clone);
        rows.push(("boot with 256 MiB".to_owned(), value));
        for (what, value) in &rows {
            eprintln!("{what:42} {value}");
        }
        ensure!(agent == 0, "the idle agent wrote {agent} bytes");
        match little {
            // The rest was measured: the table says what was not.
            Err(error) if !error.is::<LeftOut>() => Err(error),
            _ => Ok(()),
        }
    });
}

/// Boots with 256 MiB; what came of it.
fn with_little_memory(field: &mut Field) -> Result<String> {
    field.board.cold_boot(&Boot { memory_mib: 256, ..Boot::default() })?;
    let pid = field.wait_web(PATIENCE)?;
    let begun = field.board.started(pid)?;
    let free = field.board.sh("sed -n 's/^MemAvailable: *//p' /proc/meminfo")?;
    Ok(format!("workload after {begun:.1} s, {free} available"))
}

/// Lets the boot's own work end.
fn settle() {
    std::thread::sleep(Duration::from_secs(30));
}

/// Seconds since the kernel's start.
fn moments(board: &mut Board, workload: i32) -> Result<Vec<(&'static str, f64)>> {
    let unit = |board: &mut Board, unit: &str, which: &str| -> Result<f64> {
        let text =
            board.sh(&format!("systemctl show --property={which}Monotonic --value {unit}"))?;
        Ok(text.parse::<f64>()? / 1e6)
    };
    let workload = board.started(workload)?;
    let systemd = board.sh("systemctl show --property=UserspaceTimestampMonotonic --value")?;
    let containerd = unit(board, "containerd", "ActiveEnterTimestamp")?;
    let begun = unit(board, "coracle", "ExecMainStartTimestamp")?;
    let ready = unit(board, "coracle", "ActiveEnterTimestamp")?;
    Ok(vec![
        ("systemd begins", systemd.parse::<f64>()? / 1e6),
        ("containerd is ready", containerd),
        ("the agent is started", begun),
        ("the agent is ready", ready),
        ("all workloads run", workload),
        ("of it ours, from the agent's start", workload - begun),
    ])
}

/// Bytes that each process caused to be written to disks (proc_pid_io(5), `write_bytes`).
fn written(board: &mut Board) -> Result<Vec<(&'static str, u64)>> {
    let mut found = Vec::new();
    for unit in ["coracle", "containerd"] {
        let pid = board.main_pid(unit)?;
        let text = board.sh(&format!("sed -n 's/^write_bytes: //p' /proc/{pid}/io"))?;
        found.push((unit, text.parse()?));
    }
    Ok(found)
}
