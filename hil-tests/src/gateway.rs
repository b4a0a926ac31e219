//! One gateway under test. In: options. Out: a private containerd, a broker, a registry, keys and
//! certificates, and the shipped agent over them; facts as the shipped binaries tell them; a hand
//! on every plug. Everything ends when it is dropped.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use coracle_protocol::topic::{Kind, Topic};
use coracle_protocol::{DesiredState, GatewayId};
use coracle_testbed::pki::Identity;
use coracle_testbed::process::{Process, run, run_with_input};
use coracle_testbed::{Broker, Containerd, Pki, Place, Registry, Result, Version, bin, broker};

use crate::facts::{Applied, Happening, Status};
use crate::orders::Signer;

/// How long a state may take to come about unless a test says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(30);
const COMMAND_LIMIT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(10);
/// The containerd namespace of the agent's containers.
pub const NAMESPACE: &str = "coracle";

/// What a gateway under test is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which containerd.
    pub containerd: Version,
    /// Whether the agent knows a broker.
    pub link: bool,
    /// `keep_alive_seconds` of the link.
    pub keep_alive_seconds: u16,
    /// `reconnect_window_seconds` of the link.
    pub reconnect_window_seconds: u32,
    /// Whether all of it runs on a network of its own, in place of the machine's: for pods, whose
    /// networks change the gateway's.
    pub private_network: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            containerd: Version::System,
            link: true,
            keep_alive_seconds: 10,
            reconnect_window_seconds: 1,
            private_network: false,
        }
    }
}

/// A gateway with everything around it; ended when dropped, the agent first.
#[derive(Debug)]
pub struct Gateway {
    agent: Option<Process>,
    /// Its container runtime.
    pub containerd: Containerd,
    /// The broker it connects to.
    pub broker: Broker,
    /// The registry it pulls from, `plain_http`.
    pub registry: Registry,
    /// The authority behind the broker's, the gateway's and the fleet's certificates.
    pub pki: Pki,
    /// How the agent shows itself to the broker; may be replaced before the agent is started.
    pub identity: Identity,
    /// Further registries, `HOST:PORT`, spoken to over plain HTTP, from the agent's next start on.
    pub registries: Vec<String>,
    /// The directory that must survive a reboot; may be replaced before the agent is started.
    pub state_dir: PathBuf,
    /// Further lines at the top level of the configuration, from the agent's next start on.
    pub lines: String,
    /// Directory of an identity that says what the configuration then leaves out.
    pub identity_dir: Option<PathBuf>,
    /// Variables of the agent's environment.
    pub environment: Vec<(String, String)>,
    /// Ends every waiting when it is set.
    pub stop: Arc<AtomicBool>,
    options: Options,
    id: GatewayId,
    key: PathBuf,
    public_key: PathBuf,
    /// Last, so that it is ended last.
    place: Place,
}

impl Gateway {
    /// Everything with default options, the agent running and connected.
    pub fn start() -> Result<Self> {
        let mut gateway = Self::prepare(Options::default())?;
        gateway.start_agent()?;
        gateway.wait("the link to stand", PATIENCE, |status| status.connected().then_some(()))?;
        Ok(gateway)
    }

    /// Everything but the agent.
    pub fn prepare(options: Options) -> Result<Self> {
        let place = Place::new()?;
        if options.private_network {
            place.isolate()?;
        }
        let containerd = Containerd::start(&place, options.containerd)?;
        let pki = Pki::new(&place.run().join("pki"))?;
        let broker = Broker::start(&place, &pki)?;
        let registry = Registry::start(&place)?;
        Self::assemble(place, containerd, pki, broker, registry, options)
    }

    /// From parts that run already.
    pub fn assemble(
        place: Place,
        containerd: Containerd,
        pki: Pki,
        broker: Broker,
        registry: Registry,
        options: Options,
    ) -> Result<Self> {
        let id = GatewayId::random();
        let identity = pki.client(&id.to_string())?;
        let keys = place.run().join("keys");
        std::fs::create_dir(&keys)?;
        let prefix = keys.join("orders");
        run(Command::new(bin("coracle-fleet")?).args(["keygen", "--out"]).arg(&prefix), PATIENCE)?;
        let key = pem_file(&keys, "PRIVATE KEY")?;
        let public_key = pem_file(&keys, "PUBLIC KEY")?;
        let state_dir = place.data().join("state");
        Ok(Self {
            agent: None,
            containerd,
            broker,
            registry,
            pki,
            identity,
            registries: Vec::new(),
            state_dir,
            lines: String::new(),
            identity_dir: None,
            environment: Vec::new(),
            stop: Arc::default(),
            options,
            id,
            key,
            public_key,
            place,
        })
    }

    /// Its id.
    pub fn id(&self) -> GatewayId {
        self.id
    }

    /// The directories of everything here.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The agent's configuration file, written anew at each start of the agent.
    pub fn config(&self) -> PathBuf {
        self.place.run().join("coracle.toml")
    }

    /// The directory for what must not survive a reboot; in memory.
    pub fn runtime_dir(&self) -> PathBuf {
        self.place.run().join("runtime")
    }

    /// The gateway's policy, read at the agent's start; none is there unless a test writes one.
    pub fn policy(&self) -> PathBuf {
        self.place.run().join("policy.toml")
    }

    /// The local API's socket.
    pub fn socket(&self) -> PathBuf {
        self.place.run().join("api.sock")
    }

    /// The private key that signs its orders, PEM.
    pub fn key(&self) -> &Path {
        &self.key
    }

    /// The public key that it trusts, PEM.
    pub fn public_key(&self) -> &Path {
        &self.public_key
    }

    /// The key that signs its orders, for what `coracle-fleet` would not sign.
    pub fn signer(&self) -> Result<Signer> {
        Signer::read(&self.key)
    }

    /// The topic of `kind`.
    pub fn topic(&self, kind: Kind) -> String {
        Topic::new(self.id, kind).to_string()
    }

    /// The parent of the workloads' cgroups.
    pub fn cgroup(&self) -> String {
        format!("{}/workloads", self.place.cgroup())
    }

    // --- the agent's life ---------------------------------------------------------------------

    /// Writes the configuration, starts `coracle agent` and waits until its API answers.
    pub fn start_agent(&mut self) -> Result<()> {
        self.spawn_agent()?;
        self.wait("the agent to answer", PATIENCE, |_| Some(()))
    }

    /// Writes the configuration and starts `coracle agent`, and waits for nothing.
    pub fn spawn_agent(&mut self) -> Result<()> {
        ensure!(!self.agent_is_running(), "the agent runs already");
        std::fs::write(self.config(), self.configuration())?;
        let command = self.agent_command(&self.config())?;
        self.agent = Some(self.place.spawn("agent", &command)?);
        Ok(())
    }

    /// `coracle agent --config FILE`, where it sees the mounts that the containers see.
    pub fn agent_command(&self, config: &Path) -> Result<Command> {
        let mut command = self.containerd.inside(bin("coracle")?);
        command.arg("agent").arg("--config").arg(config);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }

    /// SIGKILL.
    pub fn kill_agent(&mut self) -> Result<()> {
        self.agent_process()?.kill().map(drop)?;
        self.agent = None;
        Ok(())
    }

    /// SIGTERM, as a service manager sends it; gives how the agent ended.
    pub fn stop_agent(&mut self) -> Result<ExitStatus> {
        let status = self.agent_process()?.terminate(Duration::from_secs(10))?;
        self.agent = None;
        Ok(status)
    }

    /// Whether the agent's process lives.
    pub fn agent_is_running(&mut self) -> bool {
        self.agent.as_mut().is_some_and(Process::is_running)
    }

    /// The agent's process id, while it was not ended by us.
    pub fn agent_pid(&self) -> Option<i32> {
        self.agent.as_ref().map(Process::pid)
    }

    /// The agent's process, for signals of all kinds.
    pub fn agent_process(&mut self) -> Result<&mut Process> {
        self.agent.as_mut().context("the agent was not started")
    }

    /// What the agent has written (of all its lives, at most the last 256 KiB of this one).
    pub fn agent_log(&self) -> String {
        let path = self.place.run().join("log/agent.log");
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// The text of the configuration file.
    pub fn configuration(&self) -> String {
        let path = |path: &Path| format!("{:?}", path.display().to_string());
        let who = match &self.identity_dir {
            Some(dir) => format!("identity = {}\n", path(dir)),
            None => format!("gateway = \"{}\"\n", self.id),
        };
        let trust = match &self.identity_dir {
            Some(_) => String::new(),
            None => format!("[trust]\nkeys = [{}]\n", path(&self.public_key)),
        };
        let program = |name| bin(name).unwrap_or_else(|_| Path::new("/no").join(name));
        let mut text = format!(
            "{who}factory = {}\nstate_dir = {}\nruntime_dir = {}\npolicy = {}\n{}\n{trust}\n\
             [logs]\nprogram = {}\n\n[templates]\nprogram = {}\n\n[containerd]\naddress = {}\n\
             namespace = {NAMESPACE:?}\ncgroup = {:?}\n\n[api]\nsocket = {}\n",
            path(&self.place.run().join("factory")),
            path(&self.state_dir),
            path(&self.runtime_dir()),
            path(&self.policy()),
            self.lines,
            path(&program("coracle-log")),
            path(&program("coracle-config-check")),
            path(self.containerd.address()),
            self.cgroup(),
            path(&self.socket()),
        );
        if self.options.link && self.identity_dir.is_none() {
            text.push_str(&format!(
                "\n[link]\nhost = \"localhost\"\nport = {}\nca = {}\ncert = {}\nkey = {}\n\
                 keep_alive_seconds = {}\nwill_delay_seconds = 0\nreconnect_window_seconds = {}\n",
                self.broker.port(),
                path(&self.pki.ca()),
                path(&self.identity.cert),
                path(&self.identity.key),
                self.options.keep_alive_seconds,
                self.options.reconnect_window_seconds,
            ));
        }
        for host in [self.registry.address()].iter().chain(&self.registries) {
            text.push_str(&format!("\n[[registries]]\nhost = {host:?}\nplain_http = true\n"));
        }
        text
    }

    /// Writes this gateway's identity into `dir`, as it is given in the factory.
    pub fn write_identity(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir)?;
        let text = format!(
            "gateway = \"{}\"\n[link]\nhost = \"localhost\"\nport = {}\n\
             keep_alive_seconds = {}\nwill_delay_seconds = 0\nreconnect_window_seconds = {}\n",
            self.id,
            self.broker.port(),
            self.options.keep_alive_seconds,
            self.options.reconnect_window_seconds,
        );
        std::fs::write(dir.join("gateway.toml"), text)?;
        std::fs::copy(self.pki.ca(), dir.join("ca.pem"))?;
        std::fs::copy(&self.identity.cert, dir.join("cert.pem"))?;
        std::fs::copy(&self.identity.key, dir.join("key.pem"))?;
        std::fs::copy(&self.public_key, dir.join("orders.pub"))?;
        Ok(())
    }

    // --- the shipped commands -----------------------------------------------------------------

    /// `coracle --socket SOCKET ARGS…`, run to its end.
    pub fn coracle(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(bin("coracle")?);
        command.arg("--socket").arg(self.socket()).args(args);
        run_with_input(&mut command, &[], COMMAND_LIMIT)
    }

    /// `coracle-fleet ARGS…`, run to its end.
    pub fn fleet(&self, args: &[&str]) -> Result<Output> {
        self.fleet_with_input(args, &[])
    }

    /// `coracle-fleet ARGS…` with something on its standard input.
    pub fn fleet_with_input(&self, args: &[&str], input: &[u8]) -> Result<Output> {
        let mut command = self.place.command(bin("coracle-fleet")?);
        command.args(args);
        run_with_input(&mut command, input, COMMAND_LIMIT)
    }

    /// `coracle status --json`.
    pub fn status(&self) -> Result<Status> {
        let output = self.coracle(&["status", "--json"])?;
        // 1 says that not all is well, and comes with the facts all the same.
        if !matches!(output.status.code(), Some(0 | 1)) || output.stdout.is_empty() {
            bail!("coracle status failed ({}): {}", output.status, stderr(&output));
        }
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!("coracle status --json printed {}", String::from_utf8_lossy(&output.stdout))
        })
    }

    /// `coracle events --json`: what happened since the agent started, the newest last.
    pub fn events(&self) -> Result<Vec<Happening>> {
        let output = self.coracle(&["events", "--json"])?;
        ensure!(output.status.success(), "coracle events failed: {}", stderr(&output));
        let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| Ok(serde_json::from_slice(line)?)).collect()
    }

    /// `coracle apply FILE --json` with a signed order; the answer, whether yes or no.
    pub fn apply(&self, signed: &[u8]) -> Result<Applied> {
        let file = self.file("applied.json", signed)?;
        let output = self.coracle(&["apply", &file, "--json"])?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("coracle apply failed: {}", stderr(&output)))
    }

    /// `coracle-fleet order sign`: the path of the signed order.
    pub fn sign(&self, order: &DesiredState) -> Result<PathBuf> {
        self.sign_text(order.generation, &serde_json::to_string_pretty(order)?)
    }

    /// The same with an order as a person writes it, in YAML or JSON.
    pub fn sign_text(&self, generation: u64, order: &str) -> Result<PathBuf> {
        let file = self.file(&format!("order-{generation}.yaml"), order.as_bytes())?;
        let signed = self.place.run().join(format!("order-{generation}.signed.json"));
        let (key, out) = (text(&self.key)?, text(&signed)?);
        let output = self.fleet(&["order", "sign", &file, "--key", key, "--out", out])?;
        ensure!(output.status.success(), "coracle-fleet order sign failed: {}", stderr(&output));
        Ok(signed)
    }

    /// The arguments of `coracle-fleet order publish` for a signed order.
    pub fn publish_args(&self, signed: &Path) -> Result<Vec<String>> {
        let fleet = self.pki.client(broker::FLEET)?;
        let broker = format!("localhost:{}", self.broker.port());
        let words = ["order", "publish", text(signed)?, "--broker", &broker, "--ca"];
        let mut args: Vec<String> = words.map(str::to_owned).into();
        args.push(text(&self.pki.ca())?.to_owned());
        for (option, path) in [("--cert", &fleet.cert), ("--key", &fleet.key)] {
            args.extend([option.to_owned(), text(path)?.to_owned()]);
        }
        Ok(args)
    }

    /// `coracle-fleet order publish` of a signed order.
    pub fn publish(&self, signed: &Path) -> Result<()> {
        let args = self.publish_args(signed)?;
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = self.fleet(&args)?;
        ensure!(output.status.success(), "coracle-fleet order publish failed: {}", stderr(&output));
        Ok(())
    }

    /// Signs an order and publishes it, by the shipped commands.
    pub fn order(&self, order: &DesiredState) -> Result<()> {
        self.publish(&self.sign(order)?)
    }

    /// Publishes any bytes as the newest order, past `coracle-fleet`, which would refuse some.
    pub fn publish_raw(&self, bytes: &[u8]) -> Result<()> {
        self.broker.publish(&self.topic(Kind::Desired), bytes, true)
    }

    /// A secret for this gateway, as an order carries it: sealed by the shipped commands.
    pub fn seal(&self, name: &str, value: &str) -> Result<String> {
        let output = self.coracle(&["secrets", "key"])?;
        ensure!(output.status.success(), "coracle secrets key failed: {}", stderr(&output));
        let (id, key) = (self.id.to_string(), String::from_utf8(output.stdout)?);
        let args = ["secret", "seal", "--gateway", &id, "--key", key.trim(), "--name", name];
        let output = self.fleet_with_input(&args, value.as_bytes())?;
        ensure!(output.status.success(), "coracle-fleet secret seal failed: {}", stderr(&output));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// What the containers of a workload said, by `coracle logs`, which asks no agent.
    pub fn logs(&self, args: &[&str]) -> Result<String> {
        let config = self.config();
        let output = self.coracle(&[&["logs", "--config", text(&config)?], args].concat())?;
        ensure!(output.status.success(), "coracle logs failed: {}", stderr(&output));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    // --- waiting ------------------------------------------------------------------------------

    /// Asks for the status until `seen` gives a value. At the end of `timeout`, or if the agent
    /// ends: an error, and as its cause the last status and the end of the agent's log.
    pub fn wait<T>(
        &mut self,
        what: &str,
        timeout: Duration,
        mut seen: impl FnMut(&Status) -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + timeout;
        loop {
            let status = self.status();
            if let Some(value) = status.as_ref().ok().and_then(&mut seen) {
                return Ok(value);
            }
            let why = match () {
                () if self.stop.load(Ordering::SeqCst) => "interrupted".to_owned(),
                () if !self.agent_is_running() => "the agent ended".to_owned(),
                () if Instant::now() > end => format!("not in {} s", timeout.as_secs()),
                () => {
                    std::thread::sleep(POLL);
                    continue;
                }
            };
            let last = status.map_or_else(|error| format!("{error:#}"), |s| format!("{s:#?}"));
            return Err(anyhow!("status: {last}\nagent's log:\n{}", self.tail()))
                .with_context(|| format!("waited for {what}: {why}"));
        }
    }

    /// Waits until the order of that generation is in force and everything is as ordered.
    pub fn wait_converged(&mut self, generation: u64) -> Result<Status> {
        self.wait(&format!("generation {generation} to converge"), PATIENCE, |status| {
            let reported = &status.reported;
            let converged = reported.generation_applied == generation
                && reported.phase == coracle_protocol::reported::Phase::Converged;
            converged.then(|| status.clone())
        })
    }

    /// Waits until a workload's first replica runs under another process id than `old`.
    pub fn wait_replaced(&mut self, name: &str, old: i32) -> Result<i32> {
        self.wait(&format!("{name} to run anew"), PATIENCE, |status| {
            status.pid(name).filter(|pid| *pid != old)
        })
    }

    /// The end of the agent's log.
    pub fn tail(&self) -> String {
        let log = self.agent_log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    // --- the machine --------------------------------------------------------------------------

    /// A power cut: agent, containerd, shims and containers die at once.
    pub fn power_off(&mut self) -> Result<()> {
        if self.agent_is_running() {
            self.kill_agent()?;
        }
        self.containerd.power_off()
    }

    /// Boots: containerd, then the agent, with what the disk holds.
    pub fn power_on(&mut self) -> Result<()> {
        self.containerd.power_on()?;
        self.start_agent()
    }

    fn file(&self, name: &str, bytes: &[u8]) -> Result<String> {
        let path = self.place.run().join(name);
        std::fs::write(&path, bytes)?;
        Ok(text(&path)?.to_owned())
    }
}

/// A loopback port for a workload that uses the host's network.
pub fn free_port() -> Result<u16> {
    let port = coracle_testbed::free_port()?;
    drop(TcpListener::bind(("127.0.0.1", port))?);
    Ok(port)
}

/// What a command said on standard error.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("path is not UTF-8: {}", path.display()))
}

/// The file in `dir` that holds a PEM block of that kind.
fn pem_file(dir: &Path, kind: &str) -> Result<PathBuf> {
    let marker = format!("-----BEGIN {kind}-----");
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if std::fs::read_to_string(&path).is_ok_and(|text| text.contains(&marker)) {
            return Ok(path);
        }
    }
    bail!("coracle-fleet keygen wrote no {kind} into {}", dir.display())
}
