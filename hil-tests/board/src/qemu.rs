//! The emulated machine. In: an image, disks, what a boot is to be like. Out: a serial line, QMP,
//! and power that can be cut.
//!
//! A power cut is SIGKILL. The data disk is written to a fresh overlay in each boot, whose tables
//! QEMU holds in memory until the guest flushes. So what a boot wrote for the first time into a
//! cluster (4 KiB), and QEMU has not flushed the tables for, is lost. What overwrites a cluster that
//! the overlay has already goes to this machine's cache and survives. [`WriteLog`] covers that: it
//! can leave out any write after a flush. `quit` and `system_reset` are no power cuts.

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use coracle_testbed::process::{Process, run};
use coracle_testbed::{Place, Result};
use serde_json::{Value, json};

use crate::Boot;
use crate::image::{Architecture, Image};
use crate::qmp::Qmp;
use crate::tools;
use crate::writes::WriteLog;

const LIMIT: Duration = Duration::from_secs(30);

/// How the guest reaches this machine's loopback.
pub const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2));

/// What a machine is made of.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Kernel, initramfs, workload.
    pub image: Image,
    /// The root file system, attached read-only.
    pub root: PathBuf,
    /// What the factory disk holds; without it there is none.
    pub factory: Option<PathBuf>,
    /// Whether the guest may write to the factory disk.
    pub factory_writable: bool,
    /// Size of the data disk.
    pub data_mib: u32,
    /// Ports of this machine's loopback, and the guest's ports that they lead to.
    pub forwarded: Vec<(u16, u16)>,
}

/// A machine, on or off.
#[derive(Debug)]
pub struct Qemu {
    parts: Parts,
    place: Place,
    /// The data disk as the last boot left it.
    data: (PathBuf, &'static str),
    factory: Option<PathBuf>,
    /// The data disk when the last logged boot began, and its log.
    logged: Option<(PathBuf, PathBuf)>,
    running: Option<Running>,
    boots: u32,
}

#[derive(Debug)]
struct Running {
    // Before the process, so that the thread behind it ends.
    qmp: Qmp,
    process: Process,
}

impl Qemu {
    /// A machine that is off, its data disk empty.
    pub fn new(place: &Place, parts: Parts) -> Result<Self> {
        let data = place.data().join("data.ext4");
        tools::make_ext4(&data, parts.data_mib, "data", None)?;
        let mut qemu = Self {
            parts,
            place: place.clone(),
            data: (data, "raw"),
            factory: None,
            logged: None,
            running: None,
            boots: 0,
        };
        if let Some(dir) = qemu.parts.factory.clone() {
            qemu.set_factory(&dir)?;
        }
        Ok(qemu)
    }

    /// Makes the factory disk anew from a directory, while the machine is off.
    pub fn set_factory(&mut self, dir: &Path) -> Result<()> {
        ensure!(self.running.is_none(), "the machine is on");
        let file = self.place.data().join("factory.ext4");
        tools::make_ext4(&file, 8, "factory", Some(dir))?;
        self.factory = Some(file);
        Ok(())
    }

    /// Switches it on; gives its serial line. It begins to run when all is connected.
    pub fn power_on(&mut self, boot: &Boot) -> Result<UnixStream> {
        ensure!(self.running.is_none(), "the machine is on");
        self.boots += 1;
        if boot.data && boot.log_writes {
            self.log_writes()?;
        } else if boot.data {
            let overlay = self.place.data().join(format!("data{}.qcow2", self.boots));
            tools::make_overlay(&overlay, &self.data.0, self.data.1)?;
            self.data = (overlay, "qcow2");
        }
        let dir = self.place.run().join(format!("qemu{}", self.boots));
        std::fs::create_dir(&dir)?;
        let (serial, control) = (dir.join("serial"), dir.join("qmp"));
        let command = self.command(boot, &serial, &control)?;
        let mut process = self.place.spawn("qemu", &command)?;
        // The file is there before anybody listens.
        let line = process.wait_until("QEMU to listen on the serial line", LIMIT, || {
            UnixStream::connect(&serial).ok()
        })?;
        let mut qmp = Qmp::connect(&control).context("cannot talk to QEMU")?;
        if !boot.network {
            qmp.execute("set_link", json!({ "name": "net", "up": false }))?;
        }
        qmp.execute("cont", json!({}))?;
        self.running = Some(Running { qmp, process });
        Ok(line)
    }

    /// The log wants a plain disk below it: a copy, so that crash points start from what was.
    fn log_writes(&mut self) -> Result<()> {
        let file = |name: &str| self.place.data().join(format!("data{}.{name}", self.boots));
        let (before, disk, log) = (file("before"), file("raw"), file("log"));
        tools::flatten(&self.data.0, self.data.1, &before)?;
        copy(&before, &disk)?;
        std::fs::write(&log, [])?;
        self.data = (disk, "raw");
        self.logged = Some((before, log));
        Ok(())
    }

    /// What was written in the last logged boot.
    pub fn write_log(&self) -> Result<WriteLog> {
        ensure!(self.running.is_none(), "the machine is on");
        let (_, log) = self.logged.as_ref().context("no boot was logged")?;
        WriteLog::read(log)
    }

    /// Makes the data disk what it was at a crash point of the logged boot.
    pub fn crash_at(&mut self, log: &WriteLog, flushes: usize, seed: Option<u64>) -> Result<()> {
        ensure!(self.running.is_none(), "the machine is on");
        let (before, _) = self.logged.as_ref().context("no boot was logged")?;
        self.boots += 1;
        let disk = self.place.data().join(format!("data{}.crashed", self.boots));
        copy(before, &disk)?;
        log.replay(&disk, flushes, seed)?;
        self.data = (disk, "raw");
        Ok(())
    }

    fn command(&self, boot: &Boot, serial: &Path, control: &Path) -> Result<Command> {
        let (program, console, machine): (_, _, &[&str]) = match self.parts.image.architecture {
            Architecture::Arm64 => {
                ("qemu-system-aarch64", "ttyAMA0", &["-M", "virt", "-cpu", "max,pauth-impdef=on"])
            }
            Architecture::Amd64 => ("qemu-system-x86_64", "ttyS0", &["-M", "q35", "-cpu", "max"]),
        };
        let mut command = tools::qemu(program)?;
        command.args(machine);
        command.args(["-accel", "tcg,thread=multi", "-smp", "2", "-m"]);
        command.arg(format!("{}M", boot.memory_mib));
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-S"]);
        command.args(["-rtc", &format!("base={}", boot.clock.as_deref().unwrap_or("utc"))]);
        command.arg("-kernel").arg(self.parts.image.kernel());
        command.arg("-initrd").arg(self.parts.image.initramfs());
        let mut arguments = vec![
            format!("console={console}"),
            "loglevel=4".to_owned(),
            "systemd.getty_auto=no".to_owned(),
            "systemd.show_status=error".to_owned(),
            "systemd.tty.term.console=dumb".to_owned(),
            "net.ifnames=0".to_owned(),
            // As a boot loader would from the board's serial number.
            format!(
                "systemd.machine_id={:032x}",
                0x0b0a_4d00_u128 + u128::from(std::process::id())
            ),
        ];
        arguments.extend(boot.kernel_arguments.iter().cloned());
        command.arg("-append").arg(arguments.join(" "));
        command.arg("-serial").arg(format!("unix:{},server=on,wait=off", serial.display()));
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", control.display()));
        let disk = |command: &mut Command, id: &str, file: &Path, format: &str, readonly: &str| {
            // `unsafe` for what is never written; `writeback` reports a write as done when it is
            // in this machine's cache, and flushes when the guest flushes.
            let cache = if readonly == "on" { "unsafe" } else { "writeback" };
            command.arg("-drive").arg(format!(
                "id={id},if=none,file={},format={format},readonly={readonly},cache={cache}",
                file.display()
            ));
            command.arg("-device").arg(format!("virtio-blk-pci,drive={id},serial={id}"));
        };
        disk(&mut command, "root", &self.parts.root, "raw", "on");
        if boot.data && boot.log_writes {
            let (_, log) = self.logged.as_ref().context("no log of writes")?;
            let node = json!({
                "driver": "blklogwrites",
                "node-name": "data",
                "file": { "driver": "file", "filename": self.data.0 },
                "log": { "driver": "file", "filename": log },
            });
            command.arg("-blockdev").arg(node.to_string());
            command.args(["-device", "virtio-blk-pci,drive=data,serial=data"]);
        } else if boot.data {
            disk(&mut command, "data", &self.data.0, self.data.1, "off");
        }
        if let Some(factory) = self.factory.as_deref().filter(|_| boot.factory) {
            let readonly = if self.parts.factory_writable { "off" } else { "on" };
            disk(&mut command, "factory", factory, "raw", readonly);
        }
        let mut net = "user,id=net,ipv6=off".to_owned();
        for (own, guest) in &self.parts.forwarded {
            net.push_str(&format!(",hostfwd=tcp:127.0.0.1:{own}-:{guest}"));
        }
        command.args(["-netdev", &net, "-device", "virtio-net-pci,netdev=net,romfile="]);
        command.args(["-device", "virtio-rng-pci"]);
        command.args(["-device", "i6300esb", "-action", "watchdog=reset"]);
        Ok(command)
    }

    /// SIGKILL.
    pub fn power_cut(&mut self) -> Result<()> {
        match self.running.take() {
            Some(mut running) => running.process.kill().map(drop),
            None => Ok(()),
        }
    }

    /// Waits until the guest has switched itself off.
    pub fn wait_off(&mut self, timeout: Duration) -> Result<()> {
        if let Some(running) = self.running.as_mut() {
            running.process.wait(timeout)?;
        }
        self.running = None;
        Ok(())
    }

    /// Whether it is on.
    pub fn is_on(&mut self) -> bool {
        self.running.as_mut().is_some_and(|running| running.process.is_running())
    }

    /// The control channel of the running machine.
    pub fn qmp(&mut self) -> Result<&mut Qmp> {
        Ok(&mut self.running.as_mut().context("the machine is off")?.qmp)
    }

    /// The loopback port of this machine that leads to a guest's port.
    pub fn forwarded(&self, guest: u16) -> Result<u16> {
        let found = self.parts.forwarded.iter().find(|(_, port)| *port == guest);
        Ok(found.with_context(|| format!("guest port {guest} is not forwarded"))?.0)
    }

    /// Lets `edit` read and change the data disk as one plain file, while the machine is off.
    pub fn edit_data(&mut self, edit: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        ensure!(self.running.is_none(), "the machine is on");
        let file = self.place.data().join(format!("data{}.raw", self.boots));
        tools::flatten(&self.data.0, self.data.1, &file)?;
        edit(&file)?;
        self.data = (file, "raw");
        Ok(())
    }

    /// QEMU's statistics of the data disk since it was switched on.
    pub fn data_statistics(&mut self) -> Result<Value> {
        let all = self.qmp()?.execute("query-blockstats", json!({}))?;
        let disks = all.as_array().context("no list of disks")?;
        let disk =
            disks.iter().find(|disk| disk["device"] == "data" || disk["node-name"] == "data");
        Ok(disk.context("no data disk")?["stats"].clone())
    }

    /// Takes the carrier away, or gives it back.
    pub fn set_carrier(&mut self, up: bool) -> Result<()> {
        self.qmp()?.execute("set_link", json!({ "name": "net", "up": up })).map(drop)
    }

    /// Waits for the hardware watchdog to reset the machine.
    pub fn wait_watchdog(&mut self, before: usize, timeout: Duration) -> Result<Value> {
        self.qmp()?.wait_event("WATCHDOG", before, timeout)
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("cp");
    command.arg("--sparse=always").arg(from).arg(to);
    run(&mut command, LIMIT).map(drop)
}
