//! What only an emulated gateway shows: another processor, and the bench for real boards itself.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use coracle_board::board::PATIENCE;
use coracle_board::console::Login;
use coracle_board::qemu::{self, Qemu};
use coracle_board::real::Real;
use coracle_board::{Architecture, Boot, Change, Field, Image, LeftOut, Site, Wishes, hil};
use coracle_testbed::{Result, free_port};

use crate::smoke::main_job;

#[test]
#[ignore = "a whole gateway: scripts/hil amd64"]
fn amd64_does_the_main_job() {
    hil("amd64", Wishes { architecture: Architecture::Amd64, ..Wishes::default() }, main_job);
}

/// Of the tests' own means: what the disk had acknowledged and was never told to keep is gone, and
/// what it was told to keep is there.
#[test]
#[ignore = "a whole gateway: scripts/hil power_cut"]
fn power_cut_loses_what_was_not_flushed_and_nothing_else() {
    hil("power_cut", Wishes::default(), |field| {
        let board = &mut field.board;
        board.qemu()?;
        board.cold_boot(&Boot::default())?;
        board.sh("systemctl stop coracle containerd")?;
        board.sh("yes old | head -c 8192 >/data/kept; cp /data/kept /data/lost; sync")?;
        board.cold_boot(&Boot::default())?;
        // Straight to the disk, past the guest's cache; one of the two is flushed.
        let write = "yes new | head -c 4096 | dd bs=4096 oflag=direct conv=notrunc";
        board.sh(&format!("{write} of=/data/kept && sync -f /data"))?;
        board.sh(&format!("{write} of=/data/lost"))?;
        let seen = board.sh("head -c 3 /data/kept /data/lost")?;
        ensure!(seen.matches("new").count() == 2, "not written at all: {seen}");
        board.cold_boot(&Boot::default())?;
        ensure!(board.sh("head -c 3 /data/kept")? == "new", "a flushed write was lost");
        ensure!(board.sh("head -c 3 /data/lost")? == "old", "the power cut was none");
        Ok(())
    });
}

/// The power is lost at many instants of one boot in which an order came and was fulfilled: after
/// each of them the gateway goes on from a complete order, or from none, and gets to the new one.
#[test]
#[ignore = "a whole gateway: scripts/hil crash"]
fn crash_points_of_a_first_order_all_lead_to_it() {
    hil("crash", Wishes::default(), |field| {
        field.board.cold_boot(&Boot { log_writes: true, ..Boot::default() })?;
        field.order_web(1)?;
        field.board.power_cut()?;
        let log = field.board.crash_points()?;
        let flushes = log.flushes();
        eprintln!("{} writes, {flushes} flushes", log.writes());
        let points: usize =
            std::env::var("CORACLE_HIL_POINTS").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
        for point in 1..=points {
            let at = flushes * point / points;
            field.board.power_cut()?;
            field.board.crash_at(&log, at, Some(point as u64 * 7919))?;
            field.board.cold_boot(&Boot::default())?;
            let first = field.board.wait_status("the agent", PATIENCE, |status| {
                Some(status.reported.generation_applied)
            })?;
            ensure!(first <= 1, "generation {first} out of nowhere");
            field.wait_web(2 * PATIENCE)?;
            let intact = field.board.status()?;
            let intact = intact.condition("store-intact").map(|condition| condition.status);
            eprintln!("flush {at}: came up with generation {first}; store intact: {intact:?}");
        }
        Ok(())
    });
}

/// The tests' way to a real board, held against a board that happens to be emulated: all that
/// reaches it is a terminal device, a power command and a network command.
#[test]
#[ignore = "a whole gateway: scripts/hil bench"]
fn bench_drives_a_board_over_a_terminal_and_a_power_command() {
    let outcome = Bench::set_up().and_then(|bench| {
        let mut field = Field::real(bench.real.clone())?;
        field.port = bench.port;
        let outcome = main_job(&mut field).and_then(|()| says_what_it_leaves_out(&mut field));
        if outcome.is_err() {
            field.board.keep_log("bench");
        }
        outcome
    });
    // Nothing may be left out here: this bench has a network command and an address.
    if let Err(error) = outcome {
        panic!("bench: {error:?}");
    }
}

/// What a board on the bench cannot do is an error that can be told from others.
fn says_what_it_leaves_out(field: &mut Field) -> Result<()> {
    field.board.power_cut()?;
    let little = Boot { memory_mib: 256, ..Boot::default() };
    let refused = [field.board.power_on(&little), field.board.qemu().map(drop)];
    for refused in refused {
        let error = refused.err().context("a real board did what it cannot do")?;
        ensure!(error.is::<LeftOut>(), "not told from other errors: {error:#}");
    }
    Ok(())
}

/// An emulated board behind a terminal. Taken down when dropped.
struct Bench {
    /// How to reach it.
    real: Real,
    /// The port that its web server must use.
    port: u16,
    switch: Switch,
    /// The terminal must not hang up between two users of it.
    _terminal: OwnedFd,
    /// Only for its place; the site under test is another.
    _site: Site,
}

impl Bench {
    fn set_up() -> Result<Self> {
        let site = Site::emulated()?;
        let image = Image::build(Architecture::Arm64)?;
        let (port, registry_port) = (free_port()?, free_port()?);
        let packaged = coracle_board::tools::repository().join("systemd/coracle.toml");
        let configuration = format!(
            "{}\n[[registries]]\nhost = \"{}:{registry_port}\"\nplain_http = true\n",
            std::fs::read_to_string(packaged)?,
            qemu::HOST
        );
        let wishes = Wishes {
            identity: false,
            changes: vec![Change::write("/etc/coracle/coracle.toml", configuration)],
            ..Wishes::default()
        };
        let mut parts = Field::parts(&image, &site, wishes)?;
        parts.factory_writable = true;
        parts.forwarded = vec![(port, port)];
        let machine = Qemu::new(site.place(), parts)?;

        let pty = nix::pty::openpty(None, None)?;
        let serial = nix::unistd::ttyname(&pty.slave)?;
        let switch = Switch::start(site.place().run(), machine, File::from(pty.master))?;
        let script = switch.script.display();
        let real = Real {
            serial,
            power: format!("sh {script} power"),
            network: Some(format!("sh {script} network")),
            address: Some("127.0.0.1".to_owned()),
            host: qemu::HOST,
            registry_port,
            login: Login::default(),
        };
        Ok(Self { real, port, switch, _terminal: pty.slave, _site: site })
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.switch.end();
    }
}

/// How long a FIFO may be without a reader.
const READER: Duration = Duration::from_secs(5);

/// What a relay board does: `sh SCRIPT power|network on|off`.
struct Switch {
    script: PathBuf,
    ask: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// Starts it, off.
    fn start(dir: &Path, mut machine: Qemu, terminal: File) -> Result<Self> {
        let (ask, answer) = (dir.join("ask"), dir.join("answer"));
        for fifo in [&ask, &answer] {
            nix::unistd::mkfifo(fifo, nix::sys::stat::Mode::S_IRWXU)?;
        }
        let script = dir.join("switch");
        let (a, b) = (ask.display(), answer.display());
        std::fs::write(
            &script,
            format!("echo \"$1 $2\" >{a} && read -r said <{b} && [ \"$said\" = ok ]\n"),
        )?;
        let line = Arc::new(Mutex::new(None::<UnixStream>));
        let (mut typed, to_board) = (terminal.try_clone()?, line.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = typed.read(&mut buffer) {
                let mut line = to_board.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(line) = line.as_mut() {
                    // A board that is off reads nothing.
                    line.write_all(&buffer[..count]).ok();
                }
            }
        });
        // Open for writing too, so that neither opening it nor an end of file stops the thread.
        let questions = OpenOptions::new().read(true).write(true).open(&ask)?;
        let thread = std::thread::spawn(move || {
            let mut network = true;
            for asked in BufReader::new(questions).lines() {
                let Ok(asked) = asked else { return };
                let done = match asked.trim() {
                    "power on" => machine
                        .power_on(&Boot { network, ..Boot::default() })
                        .and_then(|stream| connect(stream, &line, &terminal)),
                    "power off" => machine.power_cut(),
                    "network on" | "network off" => {
                        network = asked.trim() == "network on";
                        if machine.is_on() { machine.set_carrier(network) } else { Ok(()) }
                    }
                    _ => return,
                };
                let said = match done {
                    Ok(()) => "ok".to_owned(),
                    Err(error) => format!("{error:#}"),
                };
                if let Err(error) = write_line(&answer, &said) {
                    eprintln!("the power command is not answered: {error:#}");
                }
            }
        });
        Ok(Self { script, ask, thread: Some(thread) })
    }

    /// Takes the board away.
    fn end(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        // Refused when the thread has ended, and nobody reads.
        if write_line(&self.ask, "end").is_ok() {
            thread.join().ok();
        }
    }
}

/// Writes a line into a FIFO that somebody reads, or soon will.
fn write_line(fifo: &Path, line: &str) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits());
    let end = Instant::now() + READER;
    loop {
        match options.open(fifo) {
            // A line is shorter than PIPE_BUF: it is written at once, or not at all.
            Ok(mut file) => return Ok(file.write_all(format!("{line}\n").as_bytes())?),
            Err(error) if Instant::now() > end => {
                return Err(error).with_context(|| format!("nobody reads {}", fifo.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Joins the board's serial line with the terminal.
fn connect(stream: UnixStream, line: &Mutex<Option<UnixStream>>, terminal: &File) -> Result<()> {
    let (mut from_board, mut shown) = (stream.try_clone()?, terminal.try_clone()?);
    *line.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
    std::thread::spawn(move || std::io::copy(&mut from_board, &mut shown).ok());
    Ok(())
}
