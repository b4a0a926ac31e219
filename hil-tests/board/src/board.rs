//! The gateway under test. In: a machine, emulated or real. Out: a small vocabulary for tests.
//! What a real board cannot do is an error of its own kind, [`LeftOut`], never a silent pass.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use coracle_hil::facts::Status;
use coracle_testbed::{Place, Result, http, wait_for};

use crate::console::{Answer, Console, Login};
use crate::qemu::{Parts, Qemu};
use crate::real::Real;
use crate::tools;
use crate::writes::WriteLog;

/// How long a command on the gateway may take unless a test says otherwise.
pub const COMMAND: Duration = Duration::from_secs(60);
/// How long a boot, or anything that needs one, may take. Four times what a quiet machine needs.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A real board cannot do this, or was not told how; the test that needs it is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("left out: {0}")]
pub struct LeftOut(
    /// What is missing.
    pub &'static str,
);

const EMULATED_ONLY: LeftOut = LeftOut("only an emulated gateway can do this");

/// What one boot is to be like.
#[derive(Debug, Clone)]
pub struct Boot {
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Whether the network has a carrier from the start.
    pub network: bool,
    /// What the clock chip says: `2020-01-01T00:00:00`, in UTC; the right time by default.
    pub clock: Option<String>,
    /// Further words on the kernel's command line, such as `cgroup_disable=memory`.
    pub kernel_arguments: Vec<String>,
    /// Whether the data disk is there.
    pub data: bool,
    /// Whether the factory disk is there.
    pub factory: bool,
    /// Whether all writes to the data disk are logged, for [`Board::crash_points`].
    pub log_writes: bool,
}

impl Default for Boot {
    fn default() -> Self {
        Self {
            memory_mib: 512,
            network: true,
            clock: None,
            kernel_arguments: Vec::new(),
            data: true,
            factory: true,
            log_writes: false,
        }
    }
}

impl Boot {
    /// Without network from the first moment.
    pub fn without_network() -> Self {
        Self { network: false, ..Self::default() }
    }

    /// Whether it can be had by switching a real board on.
    fn is_plain(&self) -> bool {
        let Self { memory_mib, network: _, clock, kernel_arguments, data, factory, log_writes } =
            self;
        *memory_mib == Self::default().memory_mib
            && clock.is_none()
            && kernel_arguments.is_empty()
            && *data
            && *factory
            && !log_writes
    }
}

/// What the network is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// As it should be.
    Good,
    /// No carrier.
    Off,
    /// What the gateway sends is delayed, lost at random, and limited.
    Poor {
        /// Milliseconds that each packet is late.
        delay_ms: u32,
        /// Of a hundred packets, how many are lost.
        loss_percent: u32,
        /// Kilobits in a second.
        kbit: u32,
    },
}

/// What the board is.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one of it")]
pub enum Backend {
    /// QEMU.
    Qemu(Qemu),
    /// One on the bench.
    Real(Real),
}

/// A gateway, on or off. Off when dropped; on a failure its serial log is kept in a file.
#[derive(Debug)]
pub struct Board {
    backend: Backend,
    console: Console,
    login: Login,
    /// Where the serial line stood when it was switched on last.
    boot_position: usize,
    booted: Instant,
    shell: bool,
    _place: Option<Place>,
}

impl Board {
    /// An emulated one, off.
    pub fn emulated(place: &Place, parts: Parts) -> Result<Self> {
        let qemu = Qemu::new(place, parts)?;
        let mut board = Self::new(Backend::Qemu(qemu), Console::new(), Login::default());
        board._place = Some(place.clone());
        Ok(board)
    }

    /// One on the bench, switched off.
    pub fn real(real: Real) -> Result<Self> {
        let mut console = Console::new();
        console.open(&real.serial)?;
        real.switch_power(false)?;
        let login = real.login.clone();
        Ok(Self::new(Backend::Real(real), console, login))
    }

    fn new(backend: Backend, console: Console, login: Login) -> Self {
        Self {
            backend,
            console,
            login,
            boot_position: 0,
            booted: Instant::now(),
            shell: false,
            _place: None,
        }
    }

    /// The machine behind it.
    pub fn backend(&mut self) -> &mut Backend {
        &mut self.backend
    }

    /// The emulated machine, for what only that can do.
    pub fn qemu(&mut self) -> Result<&mut Qemu> {
        match &mut self.backend {
            Backend::Qemu(qemu) => Ok(qemu),
            Backend::Real(_) => Err(EMULATED_ONLY.into()),
        }
    }

    /// The serial line.
    pub fn console(&mut self) -> &mut Console {
        &mut self.console
    }

    /// What came over the serial line since it was switched on.
    pub fn boot_log(&self) -> String {
        self.console.since(self.boot_position)
    }

    // --- power --------------------------------------------------------------------------------

    /// Switches it on and waits for nothing.
    pub fn power_on(&mut self, boot: &Boot) -> Result<()> {
        self.boot_position = self.console.position();
        self.shell = false;
        match &mut self.backend {
            Backend::Qemu(qemu) => {
                let line = qemu.power_on(boot)?;
                self.console.attach(line.try_clone()?, line);
            }
            Backend::Real(real) => {
                if !boot.is_plain() {
                    return Err(EMULATED_ONLY.into());
                }
                if !boot.network || real.network.is_some() {
                    real.switch_network(boot.network)?;
                }
                real.switch_power(true)?;
            }
        }
        self.booted = Instant::now();
        Ok(())
    }

    /// Takes the power away at once. What an emulated data disk loses by that: see
    /// [`qemu`](crate::qemu).
    pub fn power_cut(&mut self) -> Result<()> {
        self.shell = false;
        match &mut self.backend {
            Backend::Qemu(qemu) => qemu.power_cut(),
            Backend::Real(real) => real.switch_power(false),
        }
    }

    /// Shuts it down in order, then takes the power away.
    pub fn power_off(&mut self) -> Result<()> {
        self.log_in()?;
        self.console.send("systemctl poweroff\n")?;
        self.shell = false;
        match &mut self.backend {
            Backend::Qemu(qemu) => qemu.wait_off(PATIENCE),
            Backend::Real(real) => {
                self.console.wait_any(
                    self.boot_position,
                    &["reboot: Power down", "Powering off", "System halted"],
                    PATIENCE,
                )?;
                real.switch_power(false)
            }
        }
    }

    /// Takes the power away, if it is on, and switches it on; back when one can log in.
    pub fn cold_boot(&mut self, boot: &Boot) -> Result<()> {
        self.power_cut()?;
        self.power_on(boot)?;
        self.log_in()
    }

    /// Since it was switched on last.
    pub fn since_power_on(&self) -> Duration {
        self.booted.elapsed()
    }

    // --- the serial line ------------------------------------------------------------------------

    /// Logs in over the serial line, if nobody is.
    pub fn log_in(&mut self) -> Result<()> {
        if !self.shell {
            self.console.log_in(&self.login, self.boot_position, PATIENCE)?;
            self.shell = true;
        }
        Ok(())
    }

    /// Says that whoever was logged in is not any more, because the machine was reset.
    pub fn was_reset(&mut self, position: usize) {
        self.shell = false;
        self.boot_position = position;
    }

    /// Runs a command as root, for at most [`COMMAND`].
    pub fn run(&mut self, command: &str) -> Result<Answer> {
        self.run_within(command, COMMAND)
    }

    /// The same with another limit.
    pub fn run_within(&mut self, command: &str, timeout: Duration) -> Result<Answer> {
        self.log_in()?;
        self.console.run(command, timeout)
    }

    /// Runs a command that must succeed; what it printed, trimmed.
    pub fn sh(&mut self, command: &str) -> Result<String> {
        let answer = self.run(command)?;
        let text = answer.text.trim().to_owned();
        ensure!(answer.code == 0, "{command} ended with {}: {text}", answer.code);
        Ok(text)
    }

    /// Puts a file on the gateway over the serial line. For kilobytes; see
    /// [`Site::serve`](crate::Site::serve) for more.
    pub fn put(&mut self, path: &str, content: &[u8]) -> Result<()> {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(content);
        self.sh(&format!(": >{path}.b64"))?;
        for chunk in text.as_bytes().chunks(3_000) {
            let chunk = String::from_utf8_lossy(chunk);
            self.sh(&format!("printf %s {chunk} >>{path}.b64"))?;
        }
        self.sh(&format!("base64 -d <{path}.b64 >{path} && rm {path}.b64")).map(drop)
    }

    /// Asks again and again until `seen` gives a value.
    pub fn wait<T>(
        &mut self,
        what: &str,
        timeout: Duration,
        mut seen: impl FnMut(&mut Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let end = Instant::now() + timeout;
        let mut last = None;
        loop {
            match seen(self) {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => {}
                Err(error) => last = Some(error),
            }
            if Instant::now() > end {
                let error = last.map(|error| format!("; last: {error:#}")).unwrap_or_default();
                bail!("waited {timeout:?} in vain for {what}{error}");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    // --- the agent and its workloads --------------------------------------------------------------

    /// `coracle status --json`, on the gateway.
    pub fn status(&mut self) -> Result<Status> {
        let answer = self.run("coracle status --json")?;
        // 1 says that not all is well, and comes with the facts all the same.
        ensure!(matches!(answer.code, 0 | 1), "coracle status: {}", answer.text.trim());
        serde_json::from_str(&answer.text)
            .with_context(|| format!("coracle status --json printed {}", answer.text))
    }

    /// Waits until `coracle status --json` shows what is wanted.
    pub fn wait_status<T>(
        &mut self,
        what: &str,
        timeout: Duration,
        mut seen: impl FnMut(&Status) -> Option<T>,
    ) -> Result<T> {
        let mut last = None;
        let waited = self.wait(what, timeout, |board| {
            let status = board.status()?;
            let value = seen(&status);
            last = Some(status);
            Ok(value)
        });
        waited.with_context(|| format!("the last status: {last:#?}"))
    }

    /// The process id of a unit's main process.
    pub fn main_pid(&mut self, unit: &str) -> Result<i32> {
        let pid = self.sh(&format!("systemctl show --property=MainPID --value {unit}"))?;
        let pid: i32 = pid.parse().context("MainPID")?;
        ensure!(pid > 0, "{unit} does not run");
        Ok(pid)
    }

    /// When a process began, in seconds since the kernel's start, and what tells it from a later
    /// one with the same id.
    pub fn started(&mut self, pid: i32) -> Result<f64> {
        // Clock ticks as the kernel shows them are hundredths of a second on ARM and x86.
        const TICKS: f64 = 100.0;
        let stat = self.sh(&format!("cat /proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(") ").context("odd /proc/PID/stat")?;
        let start: f64 = fields.split(' ').nth(19).context("short /proc/PID/stat")?.parse()?;
        Ok(start / TICKS)
    }

    /// A process's proportional set size in KiB.
    pub fn pss_kib(&mut self, pid: i32) -> Result<u64> {
        let text = self.sh(&format!("sed -n 's/^Pss: *//p' /proc/{pid}/smaps_rollup"))?;
        Ok(text.split_whitespace().next().context("no Pss")?.parse()?)
    }

    /// `HOST:PORT` by which one of the gateway's ports is reached from this machine.
    pub fn outside(&self, port: u16) -> Result<String> {
        match &self.backend {
            Backend::Qemu(qemu) => Ok(format!("127.0.0.1:{}", qemu.forwarded(port)?)),
            Backend::Real(real) => {
                let missing = LeftOut("CORACLE_BOARD_ADDRESS is not set");
                let address = real.address.as_ref().ok_or(missing)?;
                Ok(format!("{address}:{port}"))
            }
        }
    }

    /// GET on one of the gateway's ports, from outside.
    pub fn http(&self, port: u16, path: &str) -> Result<http::Response> {
        http::get(&format!("http://{}{path}", self.outside(port)?))
    }

    /// Waits until that answers with 200.
    pub fn wait_http(&mut self, port: u16, path: &str, timeout: Duration) -> Result<String> {
        self.wait(&format!("an answer on port {port}"), timeout, |board| {
            let answer = board.http(port, path)?;
            Ok((answer.status == 200).then(|| answer.text()))
        })
    }

    // --- network, clock, disks, watchdog ------------------------------------------------------------

    /// Changes the network while it runs.
    pub fn network(&mut self, network: Network) -> Result<()> {
        match &mut self.backend {
            Backend::Qemu(qemu) => qemu.set_carrier(network != Network::Off)?,
            Backend::Real(real) if real.network.is_some() || network == Network::Off => {
                real.switch_network(network != Network::Off)?;
            }
            Backend::Real(_) => {}
        }
        // The wired interface, whether or not there is a route now.
        let device = "D=$(for d in /sys/class/net/*; do [ -e $d/device ] && basename $d; done \
                      | head -n 1)";
        match network {
            Network::Off => Ok(()),
            Network::Good => {
                self.run(&format!("{device}; tc qdisc del dev $D root"))?;
                Ok(())
            }
            Network::Poor { delay_ms, loss_percent, kbit } => {
                let answer = self.run(&format!(
                    "{device}; modprobe sch_netem; tc qdisc replace dev $D root netem delay \
                     {delay_ms}ms loss {loss_percent}% rate {kbit}kbit"
                ))?;
                if answer.code != 0 && matches!(self.backend, Backend::Real(_)) {
                    return Err(LeftOut("the board has no tc with netem").into());
                }
                ensure!(answer.code == 0, "tc failed: {}", answer.text);
                Ok(())
            }
        }
    }

    /// Sets the clock while it runs, to seconds since 1970.
    pub fn set_clock(&mut self, seconds: i64) -> Result<()> {
        self.sh(&format!("date -u -s @{seconds}")).map(drop)
    }

    /// Its clock, in seconds since 1970.
    pub fn clock(&mut self) -> Result<i64> {
        Ok(self.sh("date +%s")?.parse()?)
    }

    /// Fills the data partition but for `left_kib`, also of what only root may use.
    pub fn fill_data(&mut self, left_kib: u64) -> Result<()> {
        // At one blow what is said to be free, then the blocks kept for root, one by one.
        self.sh(&format!(
            "fallocate -l $(df -k --output=avail /data | tail -n 1)K /data/filler; \
             dd if=/dev/zero bs=64k >>/data/filler 2>/dev/null; \
             dd if=/dev/zero bs=4k >>/data/filler 2>/dev/null; \
             truncate -s -{left_kib}K /data/filler && sync"
        ))
        .map(drop)
    }

    /// Ends [`fill_data`](Self::fill_data).
    pub fn free_data(&mut self) -> Result<()> {
        self.sh("rm -f /data/filler && sync").map(drop)
    }

    /// Bytes written to the data disk since it was switched on, and by how many writes, as the
    /// gateway's kernel counts them (Documentation/block/stat.rst).
    pub fn data_written(&mut self) -> Result<(u64, u64)> {
        let text = self
            .sh("cat /sys/class/block/$(basename $(readlink -f /dev/disk/by-label/data))/stat")?;
        let fields: Vec<u64> = text.split_whitespace().flat_map(str::parse).collect();
        let (writes, sectors) = (fields.get(4), fields.get(6));
        Ok((sectors.context("short block statistics")? * 512, *writes.context("no writes")?))
    }

    /// After a boot with `log_writes` and a power cut: all that was written, to be put back with
    /// [`crash_at`](Self::crash_at).
    pub fn crash_points(&mut self) -> Result<WriteLog> {
        self.qemu()?.write_log()
    }

    /// Makes the data disk what it was after that many flushes of the logged boot, and with a
    /// seed, with some of the writes that followed.
    pub fn crash_at(&mut self, log: &WriteLog, flushes: usize, seed: Option<u64>) -> Result<()> {
        self.qemu()?.crash_at(log, flushes, seed)
    }

    /// How often the hardware watchdog has reset it since it was switched on.
    pub fn watchdog_resets(&mut self) -> Result<usize> {
        Ok(self.qemu()?.qmp()?.events("WATCHDOG").len())
    }

    /// Waits for the hardware watchdog to reset it, and logs in again.
    pub fn wait_watchdog_reset(&mut self, before: usize, timeout: Duration) -> Result<()> {
        let position = self.console.position();
        match &mut self.backend {
            Backend::Qemu(qemu) => drop(qemu.wait_watchdog(before, timeout)?),
            // The next login prompt without anybody having touched the power.
            Backend::Real(_) => drop(self.console.wait_for(position, "login: ", timeout)?),
        }
        self.was_reset(position);
        self.log_in()
    }

    /// Puts an identity on the factory disk, before the first boot of an emulated gateway; on a
    /// real one, over the serial line.
    pub fn set_factory(&mut self, dir: &Path) -> Result<()> {
        if let Backend::Qemu(qemu) = &mut self.backend {
            return qemu.set_factory(dir);
        }
        let ready = "mount -o remount,rw /factory && touch /factory/.try && rm /factory/.try";
        if self.run(ready)?.code != 0 {
            return Err(LeftOut("/factory of the board cannot be written").into());
        }
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).context("odd name")?;
            self.put(&format!("/factory/{name}"), &std::fs::read(&path)?)?;
        }
        self.sh("chmod 600 /factory/key.pem; sync; mount -o remount,ro /factory").map(drop)
    }

    /// Asks the gateway for its side of a failure, if somebody is logged in there, for the log.
    pub fn ask_why(&mut self) {
        let questions = "coracle status; systemctl --no-pager --failed; ip -br addr; \
                         journalctl --no-pager -b -o short-monotonic | tail -n 150";
        if self.shell {
            match self.run(questions) {
                Ok(answer) => self.console.note(&answer.text),
                Err(error) => self.console.note(&format!("no answer: {error:#}")),
            }
        }
    }

    /// Keeps all that came over the serial line in a file, and says where and how it ended.
    pub fn keep_log(&self, name: &str) {
        let file = tools::cache().join("log").join(format!("{name}.serial"));
        let dir = file.parent().unwrap_or(&file);
        let kept =
            std::fs::create_dir_all(dir).and_then(|()| std::fs::write(&file, self.console.text()));
        match kept {
            Ok(()) => eprintln!("the serial line's log: {}", file.display()),
            Err(error) => eprintln!("cannot keep the serial line's log: {error}"),
        }
        eprintln!("its end:\n{}", self.console.tail());
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_log("panicked");
        }
        if let Err(error) = self.power_cut() {
            eprintln!("cannot switch the board off: {error:#}");
        }
    }
}

/// Waits until a port of this machine answers at all.
pub fn wait_port(port: u16, timeout: Duration) -> Result<()> {
    wait_for(&format!("port {port}"), timeout, || {
        std::net::TcpStream::connect(("127.0.0.1", port)).ok().map(drop)
    })
}
