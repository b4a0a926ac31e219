//! The story that the demo tells, in four chapters. In: options. Out: steps on the screen. Every
//! claim on the screen is checked before it is made.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use coracle_hil::gateway::{PATIENCE, free_port};
use coracle_hil::{Gateway, Options, Status, orders};
use coracle_protocol::Envelope;
use coracle_protocol::desired::{Network, Workload};
use coracle_protocol::reported::ReplicaState;
use coracle_testbed::process::is_alive;
use coracle_testbed::{
    Broker, Containerd, Image, Pki, Place, Registry, Result, Version, bin, http,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Args;
use crate::screen::{Screen, size};

const GENERATION: u64 = 1;
const WORKLOAD: &str = "web";
/// How long a replica may wait for its next try before the demo gives up.
const BACK_OFF_LIMIT: Duration = Duration::from_secs(20);

/// The story with all that it has started so far.
pub(crate) struct Story {
    args: Args,
    stop: Arc<AtomicBool>,
    gateway: Option<Gateway>,
    /// Where the workload's page is, if it is ours.
    page: Option<String>,
    signed: PathBuf,
    /// Last, so that it is ended last.
    place: Place,
}

impl Story {
    pub(crate) fn begin(args: Args, stop: Arc<AtomicBool>) -> Result<Self> {
        let place = Place::new()?;
        Ok(Self { args, stop, gateway: None, page: None, signed: PathBuf::new(), place })
    }

    /// The name of the place in which everything happens.
    pub(crate) fn name(&self) -> &str {
        self.place.name()
    }

    /// Tells all of it.
    pub(crate) fn tell(&mut self, screen: &mut Screen) -> Result<()> {
        let begun = Instant::now();
        screen.line(&format!(
            "Coracle: one gateway on this machine with all that it needs, private, in\n  {}\n  {}\n\
             Ctrl-C, at any moment, removes all of it.",
            self.place.run().display(),
            self.place.data().display(),
        ));
        screen.heading("Around the gateway");
        let image = self.surroundings(screen)?;
        screen.heading("An order reaches the gateway");
        self.order(screen, &image)?;
        self.carried_out(screen)?;
        screen.heading("Without the cloud, and without the agent");
        self.on_its_own(screen)?;
        screen.line(&format!("\nAll of this took {:.1} s.", begun.elapsed().as_secs_f64()));
        if !self.args.once {
            self.how_to_look_around(screen)?;
        }
        Ok(())
    }

    /// For a failure: what `coracle status` says, and the end of the agent's log.
    pub(crate) fn details(&self, error: &anyhow::Error) -> Vec<(&'static str, String)> {
        let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
        let Some(gateway) = &self.gateway else {
            return vec![("Because", causes.join("\n"))];
        };
        // A wait's cause is status and log in full: the text for people says it shorter.
        let causes = causes.into_iter().filter(|cause| !cause.starts_with("status: "));
        let status = gateway
            .coracle(&["status"])
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        vec![
            ("Because", causes.collect::<Vec<_>>().join("\n")),
            ("coracle status", status.unwrap_or_default()),
            ("The end of the agent's log", gateway.tail()),
        ]
    }

    fn go_on(&self) -> Result<()> {
        ensure!(!self.stop.load(Ordering::SeqCst), "interrupted");
        Ok(())
    }

    fn gateway(&mut self) -> Result<&mut Gateway> {
        self.go_on()?;
        self.gateway.as_mut().context("no gateway yet")
    }

    /// Starts everything; gives the reference of the image to run.
    fn surroundings(&mut self, screen: &mut Screen) -> Result<String> {
        let place = self.place.clone();
        let containerd = screen.step("starting containerd", |_| {
            let containerd = Containerd::start(&place, Version::System)?;
            let version = containerd.version()?;
            let version = version.split_whitespace().nth(2).unwrap_or("?").to_owned();
            let told = format!("containerd {version}, private: root, state and socket of its own");
            Ok((containerd, told))
        })?;
        self.go_on()?;
        let (pki, broker) = screen.step("starting the broker", |_| {
            let pki = Pki::new(&place.run().join("pki"))?;
            let broker = Broker::start(&place, &pki)?;
            let told = format!(
                "broker mosquitto at localhost:{}: mutual TLS, each gateway\nheld to its own topics",
                broker.port()
            );
            Ok(((pki, broker), told))
        })?;
        self.go_on()?;
        let registry = screen.step("starting the registry", |_| {
            let registry = Registry::start(&place)?;
            let told = format!("registry at {}", registry.address());
            Ok((registry, told))
        })?;
        self.go_on()?;
        let image = match self.args.image.clone() {
            Some(image) => image,
            None => screen.step("building an image", |_| build_image(&registry))?,
        };
        self.go_on()?;
        let options = Options { keep_alive_seconds: 20, ..Options::default() };
        let gateway = screen.step("starting the agent", |_| {
            let mut gateway = Gateway::assemble(place, containerd, pki, broker, registry, options)?;
            gateway.stop = Arc::clone(&self.stop);
            let gateway = self.gateway.insert(gateway);
            gateway.start_agent()?;
            gateway.wait("the link to the broker", PATIENCE, |s| s.connected().then_some(()))?;
            let pid = gateway.agent_pid().unwrap_or_default();
            Ok(((), format!("coracle agent, pid {pid}, connected as gateway\n{}", gateway.id())))
        });
        gateway?;
        Ok(image)
    }

    fn workload(&mut self, image: &str) -> Result<Workload> {
        if self.args.image.is_some() {
            let mut workload = orders::workload(WORKLOAD, image);
            workload.network = Some(Network::Host);
            return Ok(workload);
        }
        let port = free_port()?;
        self.page = Some(format!("http://127.0.0.1:{port}/"));
        Ok(orders::web(WORKLOAD, image, port))
    }

    fn order(&mut self, screen: &mut Screen, image: &str) -> Result<()> {
        let workload = self.workload(image)?;
        let gateway = self.gateway()?;
        let order = orders::order(gateway.id(), GENERATION, vec![workload]);
        let signed = screen.step("signing an order", |_| {
            let signed = gateway.sign(&order)?;
            let bytes = std::fs::read(&signed)?;
            let envelope = Envelope::decode(&bytes).map_err(|r| anyhow::anyhow!(r.to_string()))?;
            let key: String = envelope.signatures[0].keyid.chars().take(16).collect();
            let told = format!("order signed: generation {GENERATION}, one workload, key {key}");
            Ok((signed, told))
        })?;
        self.signed = signed.clone();
        let gateway = self.gateway()?;
        screen.step("publishing it", |_| {
            gateway.publish(&signed)?;
            Ok(((), "order published to the broker".to_owned()))
        })?;
        screen.step("waiting for the gateway to accept it", |_| {
            gateway.wait("the order to be accepted", PATIENCE, |status| {
                if let Some(refused) = &status.reported.refused {
                    let reasons: Vec<_> =
                        refused.refusals.iter().map(ToString::to_string).collect();
                    return Some(Err(anyhow::anyhow!("refused: {}", reasons.join("; "))));
                }
                (status.reported.generation_applied == GENERATION).then_some(Ok(()))
            })??;
            Ok(((), "order accepted: signature good, stored, then acknowledged".to_owned()))
        })
    }

    fn carried_out(&mut self, screen: &mut Screen) -> Result<()> {
        let ours = self.args.image.is_none();
        let limit = if ours { PATIENCE } else { Duration::from_secs(self.args.patience) };
        let begun = Instant::now();
        let page = self.page.clone();
        let gateway = self.gateway()?;
        let digest = screen.step("pulling the image", |screen| {
            let (digest, bytes) = pull(gateway, screen, limit)?;
            screen.progress_done(bytes);
            let size = if bytes > 0 { format!("{}, ", size(bytes)) } else { String::new() };
            Ok((digest.clone(), format!("image pulled: {size}{}", short(&digest))))
        })?;
        let left = limit.saturating_sub(begun.elapsed());
        let pid = screen.step("starting the workload", |_| {
            let pid = running(gateway, left)?;
            let at = page.map(|page| format!(", {page}")).unwrap_or_default();
            Ok((pid, format!("workload {WORKLOAD} runs, pid {pid}{at}")))
        })?;
        ensure!(is_alive(pid), "process {pid} is not there");
        ensure!(!digest.is_empty(), "the image has no digest");
        self.fetch(screen, "its page says")
    }

    fn fetch(&mut self, screen: &mut Screen, what: &str) -> Result<()> {
        let Some(page) = self.page.clone() else {
            screen.line(
                "          (its page is left out: only the demo's own image is known to have one)",
            );
            return Ok(());
        };
        let gateway = self.gateway()?;
        screen.step("fetching its page", |_| {
            let first = gateway.wait("the page", PATIENCE, |_| {
                let response = http::get(&page).ok().filter(|response| response.status == 200)?;
                Some(response.text().lines().next().unwrap_or_default().to_owned())
            })?;
            Ok(((), format!("{what}: {first}")))
        })
    }

    fn on_its_own(&mut self, screen: &mut Screen) -> Result<()> {
        let gateway = self.gateway()?;
        screen.step("stopping the broker", |_| {
            gateway.broker.stop()?;
            gateway.wait("the agent to notice", PATIENCE, |s| (!s.connected()).then_some(()))?;
            Ok(((), "broker stopped: the gateway is on its own".to_owned()))
        })?;
        let pid = running(gateway, PATIENCE)?;
        let new = screen.step("killing the workload's process", |_| {
            let killed = Instant::now();
            kill(Pid::from_raw(pid), Signal::SIGKILL).context("cannot kill it")?;
            let new = gateway.wait_replaced(WORKLOAD, pid)?;
            let later = killed.elapsed().as_secs_f64();
            let told = format!(
                "process {pid} killed; {later:.2} s later pid {new} runs in its place, offline"
            );
            Ok((new, told))
        })?;
        self.go_on()?;
        let gateway = self.gateway()?;
        screen.step("killing the agent", |_| {
            gateway.kill_agent()?;
            gateway.start_agent()?;
            let after = running(gateway, PATIENCE)?;
            ensure!(after == new, "the workload was restarted: pid {new} became {after}");
            let agent = gateway.agent_pid().unwrap_or_default();
            let told = "agent killed with SIGKILL, started again as pid";
            Ok((
                (),
                format!(
                    "{told} {agent};\nthe workload still has pid {after}: nothing was restarted"
                ),
            ))
        })?;
        self.fetch(screen, "its page still says")?;
        let gateway = self.gateway()?;
        screen.step("starting the broker", |_| {
            gateway.broker.start_again()?;
            gateway.wait("the link to stand again", PATIENCE, |s| s.connected().then_some(()))?;
            let after = running(gateway, PATIENCE)?;
            ensure!(after == new, "reconnecting restarted the workload: {new} became {after}");
            Ok(((), format!("broker started, agent reconnected; pid {after} as before")))
        })
    }

    fn how_to_look_around(&mut self, screen: &mut Screen) -> Result<()> {
        let (signed, page) = (self.signed.clone(), self.page.clone());
        let gateway = self.gateway()?;
        let args = gateway.publish_args(&signed)?;
        let run = gateway.place().run().to_owned();
        let here = |path: &str| path.replace(&format!("{}/", run.display()), "");
        let bins = bin("coracle")?;
        let bins = bins.parent().unwrap_or(Path::new("."));
        screen.heading("Look around, in another terminal");
        screen.line(&format!("  export PATH={}:$PATH", bins.display()));
        screen.line(&format!("  cd {}", run.display()));
        let socket = here(&gateway.socket().display().to_string());
        for command in ["status", "ps", "events --follow"] {
            screen.line(&format!("  coracle --socket {socket} {command}"));
        }
        if let Some(page) = page {
            screen.line(&format!("  curl {page}"));
        }
        let order = format!("order-{GENERATION}.json");
        let options: Vec<String> = args[3..].iter().map(|arg| here(arg)).collect();
        screen.heading("Give another order: edit it, raise its generation, then");
        screen.line(&format!("  coracle validate {order}"));
        let key = here(&gateway.key().display().to_string());
        screen.line(&format!("  coracle-fleet order sign {order} --key {key} --out next.signed"));
        screen.line(&format!(
            "  coracle-fleet order publish next.signed --wait 60 \\\n    {}",
            options.join(" ")
        ));
        screen.line(
            "\nAlso there: coracle.toml, keys/, pki/ (certificates), log/ (of every process).",
        );
        Ok(())
    }
}

fn build_image(registry: &Registry) -> Result<(String, String)> {
    let image = Image::lighttpd()?;
    let digest = registry.push(&image, "demo/lighttpd", "1")?;
    let layers: Vec<String> =
        image.layers.iter().map(|layer| size(layer.bytes.len() as u64)).collect();
    let told = format!(
        "image built from the installed lighttpd and pushed:\n{} layers, {}",
        layers.len(),
        layers.join(" + ")
    );
    Ok((registry.pinned("demo/lighttpd", &digest), told))
}

/// Waits for the image while showing how far it is; its digest, and its size where it was seen.
fn pull(gateway: &mut Gateway, screen: &mut Screen, limit: Duration) -> Result<(String, u64)> {
    let mut bytes = 0;
    let mut patience = Patience::default();
    let digest = gateway.wait("the image", limit, |status| {
        if let Some(pull) = status.pulls.first() {
            bytes = pull.bytes_total.unwrap_or(0).max(pull.bytes_done).max(bytes);
            screen.progress(&pull.phase, pull.bytes_done, pull.bytes_total);
        }
        if let Err(error) = patience.check(status) {
            return Some(Err(error));
        }
        status.workload(WORKLOAD)?.image_digest.clone().map(Ok)
    })??;
    Ok((digest, bytes))
}

/// Waits until the workload runs; its process id.
fn running(gateway: &mut Gateway, limit: Duration) -> Result<i32> {
    let mut patience = Patience::default();
    gateway.wait("the workload to run", limit, |status| {
        if let Err(error) = patience.check(status) {
            return Some(Err(error));
        }
        let replica = status.replica(WORKLOAD)?;
        (replica.state == ReplicaState::Running).then(|| status.pid(WORKLOAD))?.map(Ok)
    })?
}

/// Gives up on a replica that has been failing for long, with the reason that the agent gives.
#[derive(Default)]
struct Patience {
    failing_since: Option<Instant>,
}

impl Patience {
    fn check(&mut self, status: &Status) -> Result<()> {
        let Some(replica) = status.replica(WORKLOAD) else { return Ok(()) };
        if !matches!(replica.state, ReplicaState::BackOff | ReplicaState::Failed) {
            return Ok(());
        }
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        if since.elapsed() > BACK_OFF_LIMIT {
            bail!("{WORKLOAD}: {}", replica.reason.as_deref().unwrap_or("it fails"));
        }
        Ok(())
    }
}

fn short(digest: &str) -> String {
    digest.chars().take("sha256:".len() + 12).collect()
}
