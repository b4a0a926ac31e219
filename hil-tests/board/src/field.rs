//! A gateway where it stands: the [`Board`] and the [`Site`] around it, put together. In: what a
//! test wants of it, and the environment, which may name a real board. Out: both, ready to boot.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use coracle_protocol::desired::{Limits, Network};
use coracle_protocol::reported::ReplicaState;
use coracle_testbed::Result;
use coracle_testbed::image::GREETING;

use crate::board::{Board, Boot, LeftOut, PATIENCE};
use crate::console::quoted;
use crate::image::{Architecture, Change, Image};
use crate::qemu::Parts;
use crate::real::Real;
use crate::site::{Site, WEB_PORT};

/// What a test wants of its gateway.
#[derive(Debug, Clone)]
pub struct Wishes {
    /// Which processor.
    pub architecture: Architecture,
    /// Changes to the root file system.
    pub changes: Vec<Change>,
    /// Size of the data disk.
    pub data_mib: u32,
    /// Whether an identity lies on the factory disk.
    pub identity: bool,
}

impl Default for Wishes {
    fn default() -> Self {
        Self {
            architecture: Architecture::Arm64,
            changes: Vec::new(),
            data_mib: 512,
            identity: true,
        }
    }
}

impl Wishes {
    fn is_plain(&self) -> bool {
        self.architecture == Architecture::Arm64
            && self.changes.is_empty()
            && self.data_mib == Self::default().data_mib
            && self.identity
    }
}

/// A gateway and what is around it.
#[derive(Debug)]
pub struct Field {
    /// The gateway. Before the site, so that it goes off first.
    pub board: Board,
    /// What is around it.
    pub site: Site,
    /// The gateway's port on which the web server is to answer.
    pub port: u16,
    /// What it runs, or what an emulated one of its kind would run.
    pub image: Image,
}

impl Field {
    /// The board that the environment names, or else an emulated one; off.
    pub fn prepare(wishes: Wishes) -> Result<Self> {
        match Real::from_environment()? {
            None => Self::emulated(wishes),
            Some(_) if !wishes.is_plain() => {
                Err(LeftOut("the test wants another system than the one on the board").into())
            }
            Some(real) => Self::real(real),
        }
    }

    /// An emulated one, off.
    pub fn emulated(wishes: Wishes) -> Result<Self> {
        let image = Image::build(wishes.architecture)?;
        let site = Site::emulated()?;
        let parts = Self::parts(&image, &site, wishes)?;
        let board = Board::emulated(site.place(), parts)?;
        Ok(Self { board, site, image, port: WEB_PORT })
    }

    /// What an emulated machine at a site is made of.
    pub fn parts(image: &Image, site: &Site, wishes: Wishes) -> Result<Parts> {
        let mut changes = vec![Change::write("/etc/coracle/coracle.toml", site.configuration()?)];
        changes.extend(wishes.changes);
        let empty = site.place().run().join("empty");
        std::fs::create_dir(&empty)?;
        Ok(Parts {
            image: image.clone(),
            root: image.changed(site.place(), &changes)?,
            factory: Some(if wishes.identity { site.identity()? } else { empty }),
            factory_writable: false,
            data_mib: wishes.data_mib,
            forwarded: vec![(coracle_testbed::free_port()?, WEB_PORT)],
        })
    }

    /// One on the bench: boots it once, puts this site's identity on its factory partition, makes
    /// it forget whose it was and what it ran, and leaves it off.
    pub fn real(real: Real) -> Result<Self> {
        let site = Site::real(real.host, real.registry_port)?;
        let image = Image::build(Architecture::Arm64)?;
        let mut board = Board::real(real)?;
        board.cold_boot(&Boot::default())?;
        let known = board.sh("cat /etc/coracle/coracle.toml")?;
        ensure!(
            known.contains(site.registry_address()),
            "the board's coracle.toml does not name the registry {}: see docs/hil.md",
            site.registry_address()
        );
        board.set_factory(&site.identity()?)?;
        board.sh("systemctl stop coracle; rm -rf /var/lib/coracle/*; coracle provision")?;
        board.power_off()?;
        Ok(Self { board, site, image, port: WEB_PORT })
    }

    /// Orders the web server as that generation and waits until it is reported to run and answers
    /// from outside.
    pub fn order_web(&mut self, generation: u64) -> Result<()> {
        let web = self.site.push_web(&self.image, "version 1")?;
        self.site.order(generation, vec![self.site.web("web", &web, self.port)])?;
        self.site.wait_converged(generation, 3 * PATIENCE)?;
        let page = self.board.wait_http(self.port, "/", PATIENCE)?;
        ensure!(page.starts_with(GREETING), "an odd page: {page}");
        Ok(())
    }

    /// As [`order_web`](Self::order_web), with a pod beside it that has a network of its own and
    /// limits: `pod`.
    pub fn order_web_and_pod(&mut self, generation: u64) -> Result<()> {
        let image = self.site.push_web(&self.image, "version 1")?;
        let web = self.site.web("web", &image, self.port);
        let mut pod = self.site.web("pod", &image, WEB_PORT);
        pod.network = Some(Network::Pod);
        pod.containers[0].limits =
            Limits { memory_mib: Some(64), cpu_millis: Some(500), pids: Some(64) };
        self.site.order(generation, vec![web, pod])?;
        self.site.wait_converged(generation, 3 * PATIENCE)?;
        let page = self.board.wait_http(self.port, "/", PATIENCE)?;
        ensure!(page.starts_with(GREETING), "an odd page: {page}");
        Ok(())
    }

    /// The address of the pod that [`order_web_and_pod`](Self::order_web_and_pod) ordered, once it
    /// answers there on the gateway.
    pub fn wait_pod(&mut self, timeout: Duration) -> Result<IpAddr> {
        let address = self.board.wait_status("the pod to run", timeout, |status| {
            let replica = status.replica("pod")?;
            replica.address.filter(|_| replica.state == ReplicaState::Running)
        })?;
        let get = format!("wget -q -O - http://{address}:{WEB_PORT}/");
        self.board.wait("the pod's page, on the gateway", timeout, |board| {
            let answer = board.run(&get)?;
            Ok((answer.code == 0 && answer.text.starts_with(GREETING)).then_some(()))
        })?;
        Ok(address)
    }

    /// Waits until the web server runs, by `coracle status --json`, and answers on the gateway
    /// itself; its process id.
    pub fn wait_web(&mut self, timeout: Duration) -> Result<i32> {
        let pid = self.board.wait_status("the web server to run", timeout, |status| {
            let replica = status.replica("web")?;
            (replica.state == ReplicaState::Running).then(|| status.pid("web"))?
        })?;
        let get = format!("wget -q -O - http://127.0.0.1:{}/", self.port);
        let page = self.board.wait("the page, on the gateway", timeout, |board| {
            let answer = board.run(&get)?;
            Ok((answer.code == 0).then_some(answer.text))
        })?;
        ensure!(page.starts_with(GREETING), "an odd page: {page}");
        Ok(pid)
    }

    /// Brings a file of this machine onto the gateway, over the network.
    pub fn bring(&mut self, own: &PathBuf, path: &str) -> Result<()> {
        let bytes = std::fs::read(own).with_context(|| format!("cannot read {}", own.display()))?;
        let name = path.rsplit('/').next().unwrap_or(path);
        let url = self.site.serve(name, bytes);
        self.board.sh(&format!(
            "wget -q -O {0} {1} && chmod 755 {0}",
            quoted(path),
            quoted(&url)
        ))?;
        Ok(())
    }
}

/// Runs one test. What a real board cannot do is said, and counted by `scripts/hil`; any other
/// error fails the test, and the serial line's log is kept.
pub fn hil(name: &str, wishes: Wishes, test: impl FnOnce(&mut Field) -> Result<()>) {
    let outcome = Field::prepare(wishes).and_then(|mut field| {
        let outcome = test(&mut field);
        if outcome.as_ref().is_err_and(|error| error.downcast_ref::<LeftOut>().is_none()) {
            field.board.ask_why();
            field.board.keep_log(name);
        }
        outcome
    });
    settle(name, outcome);
}

/// What [`hil`] does with a test's outcome.
pub fn settle(name: &str, outcome: Result<()>) {
    let Err(error) = outcome else { return };
    let Some(left_out) = error.downcast_ref::<LeftOut>() else { panic!("{name}: {error:?}") };
    let line = format!("left out: {name}: {}\n", left_out.0);
    // Not `eprint!`, which the test harness swallows when the test passes.
    std::io::stderr().write_all(line.as_bytes()).ok();
    if let Some(file) = std::env::var_os("CORACLE_HIL_LEFT_OUT") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(file);
        if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
            panic!("cannot record what was left out: {error}");
        }
    }
}
