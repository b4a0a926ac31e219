//! mosquitto with mutual TLS, as a gateway meets it. In: a place, an authority, topic rules.
//! Out: a port for gateways and the fleet, and a back door for tests.
//!
//! On the TLS port a client's user name and client id are its certificate's common name, so two
//! clients with one certificate push each other out. Tests' own publishing and listening goes
//! through a Unix socket without rules ([`Broker::publish`], [`Broker::listen`]), so that it
//! disturbs no identity.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::pki::Pki;
use crate::place::Place;
use crate::process::{Process, run_with_input};
use crate::root::Root;
use crate::{Result, free_port, installed, wait_for};

const LIMIT: Duration = Duration::from_secs(20);

/// What a gateway may do; `%u` is its id. mosquitto.conf(5), "acl_file".
pub const GATEWAY_RULES: &[&str] = &[
    "read coracle/1/%u/desired",
    "read coracle/1/%u/commands",
    "read coracle/1/%u/receipts",
    "read coracle/1/%u/chunks",
    "write coracle/1/%u/reported",
    "write coracle/1/%u/status",
    "write coracle/1/%u/results/#",
    "write coracle/1/%u/output",
    "write coracle/1/%u/events",
    "write coracle/1/%u/health",
    "write coracle/1/%u/requests",
];

/// The common name of the client that may read and write everything under `coracle/`.
pub const FLEET: &str = "fleet";

/// A running broker; ended when dropped.
#[derive(Debug)]
pub struct Broker {
    process: Process,
    name: String,
    port: u16,
    websocket_port: u16,
    socket: PathBuf,
    configuration: PathBuf,
    data: PathBuf,
    /// Where another release of it lies; none for the installed one.
    root: Option<Root>,
    place: Place,
}

/// A message that a [`Subscription`] received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Whether it came from the retained store.
    pub retained: bool,
    /// Its topic.
    pub topic: String,
    /// Its content.
    pub payload: Vec<u8>,
}

/// A client that keeps all it receives; ended when dropped.
#[derive(Debug)]
pub struct Subscription {
    process: Process,
}

impl Broker {
    /// Starts one with [`GATEWAY_RULES`] and waits until it answers.
    pub fn start(place: &Place, pki: &Pki) -> Result<Self> {
        Self::start_with(place, pki, GATEWAY_RULES, "")
    }

    /// Starts one with other rules for gateways and further lines of mosquitto.conf(5), such as
    /// `max_packet_size 1000`.
    pub fn start_with(place: &Place, pki: &Pki, rules: &[&str], lines: &str) -> Result<Self> {
        Self::launch_new(place, pki, None, rules, lines)
    }

    /// Starts another release, by its name under `target/brokers`, such as `mosquitto-2.1`. Its
    /// rules are those of all its listeners, so nothing comes by its back door; `lines` may say
    /// `per_listener_settings true`, with what that means (docs/brokers.md).
    pub fn start_release(place: &Place, pki: &Pki, name: &str, lines: &str) -> Result<Self> {
        Self::launch_new(place, pki, Some(Root::find(name)?), GATEWAY_RULES, lines)
    }

    fn launch_new(
        place: &Place,
        pki: &Pki,
        root: Option<Root>,
        rules: &[&str],
        lines: &str,
    ) -> Result<Self> {
        let (port, websocket_port) = (free_port()?, free_port()?);
        let name = format!("broker{}", place.number());
        let (dir, data) = (place.run().join(&name), place.data().join(&name));
        std::fs::create_dir(&dir)?;
        std::fs::create_dir(&data)?;
        let socket = dir.join("mqtt.sock");
        let rules: String = rules.iter().map(|rule| format!("pattern {rule}\n")).collect();
        let acl = dir.join("acl");
        std::fs::write(&acl, format!("user {FLEET}\ntopic readwrite coracle/#\n\n{rules}"))?;
        // Newer releases insist on it.
        std::fs::set_permissions(&acl, std::fs::Permissions::from_mode(0o600))?;
        let configuration = dir.join("mosquitto.conf");
        let apart = if root.is_none() { "per_listener_settings true\n" } else { "" };
        let lines = format!("{apart}{lines}");
        let ports = [port, websocket_port];
        std::fs::write(&configuration, settings(&dir, &data, pki, ports, &lines))?;
        let process = launch(place, root.as_ref(), &name, &configuration, &socket, port)?;
        let place = place.clone();
        Ok(Self { process, name, port, websocket_port, socket, configuration, data, root, place })
    }

    /// The TLS port on 127.0.0.1 (also `localhost` in its certificate).
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The same over WebSockets, at any path.
    pub fn websocket_port(&self) -> u16 {
        self.websocket_port
    }

    /// Its log: connections, subscriptions, errors.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Orderly stop; sessions and retained messages are saved. Connections are then refused.
    pub fn stop(&mut self) -> Result<()> {
        self.process.terminate(LIMIT).map(drop)
    }

    /// SIGKILL: what it had not saved is lost. Connections are then refused.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill().map(drop)
    }

    /// Starts it again on the same port, with what it had saved.
    pub fn start_again(&mut self) -> Result<()> {
        if !self.process.is_running() {
            let (name, config, root) = (&self.name, &self.configuration, self.root.as_ref());
            self.process = launch(&self.place, root, name, config, &self.socket, self.port)?;
        }
        Ok(())
    }

    /// Throws away what it had saved: sessions and retained messages. It must not run.
    pub fn forget(&self) -> Result<()> {
        std::fs::remove_dir_all(&self.data)?;
        Ok(std::fs::create_dir(&self.data)?)
    }

    /// A black hole (SIGSTOP): connections stay open, and new ones open, but nothing answers.
    pub fn cut(&mut self) -> Result<()> {
        self.process.freeze()
    }

    /// Ends [`cut`](Self::cut).
    pub fn restore(&mut self) -> Result<()> {
        self.process.thaw()
    }

    /// Publishes with QoS 1 through the back door. An empty retained payload deletes.
    pub fn publish(&self, topic: &str, payload: &[u8], retain: bool) -> Result<()> {
        let mut command = self.client("mosquitto_pub")?;
        command.args(["-q", "1", "-t", topic]).arg(if payload.is_empty() { "-n" } else { "-s" });
        if retain {
            command.arg("-r");
        }
        let output = run_with_input(&mut command, payload, LIMIT)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "cannot publish to {topic}: {said}");
        Ok(())
    }

    /// The retained message of a topic (no wildcards), waited for at most `timeout`.
    pub fn retained(&self, topic: &str, timeout: Duration) -> Result<Option<Vec<u8>>> {
        let mut command = self.client("mosquitto_sub")?;
        let seconds = timeout.as_secs().max(1).to_string();
        command.args(["-q", "1", "-C", "1", "-N", "-W", &seconds, "-t", topic]);
        let output = run_with_input(&mut command, &[], timeout + LIMIT)?;
        Ok(output.status.success().then_some(output.stdout))
    }

    /// Listens to a topic filter through the back door, from the moment this returns. Retained
    /// messages come first.
    pub fn listen(&self, filter: &str) -> Result<Subscription> {
        // stdbuf (coreutils): it would otherwise keep lines back until it has 4 KiB of them.
        let mut command = Command::new("stdbuf");
        command.arg("-oL").arg(installed("mosquitto_sub")?).args(self.back_door());
        command.args(["-d", "-q", "1", "-F", "message %r %t %x", "-t", filter]);
        let name = format!("{}-listener{}", self.name, self.place.number());
        let mut process = self.place.spawn(&name, &command)?;
        let log = process.log_path().to_owned();
        process.wait_until("the subscription is granted", LIMIT, || {
            let text = std::fs::read_to_string(&log).ok()?;
            text.contains("Subscribed (mid").then_some(())
        })?;
        Ok(Subscription { process })
    }

    fn client(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(installed(program)?);
        command.args(self.back_door());
        Ok(command)
    }

    fn back_door(&self) -> [&OsStr; 4] {
        ["-V".as_ref(), "mqttv5".as_ref(), "--unix".as_ref(), self.socket.as_os_str()]
    }
}

impl Subscription {
    /// What came so far, oldest first.
    pub fn messages(&self) -> Vec<Message> {
        let text = std::fs::read_to_string(self.process.log_path()).unwrap_or_default();
        // A last line without its end is still being written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().filter_map(parse_message).collect()
    }

    /// Waits for a message that `wanted` accepts, among those before and after this call.
    pub fn wait(
        &self,
        what: &str,
        timeout: Duration,
        wanted: impl Fn(&Message) -> bool,
    ) -> Result<Message> {
        wait_for(what, timeout, || self.messages().into_iter().find(|message| wanted(message)))
            .with_context(|| format!("{} other messages came", self.messages().len()))
    }
}

fn parse_message(line: &str) -> Option<Message> {
    let mut fields = line.strip_prefix("message ")?.splitn(3, ' ');
    let retained = fields.next()? == "1";
    let topic = fields.next()?.to_owned();
    let hex = fields.next().unwrap_or_default();
    let bytes =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok());
    Some(Message { retained, topic, payload: bytes.collect::<Option<_>>()? })
}

fn launch(
    place: &Place,
    root: Option<&Root>,
    name: &str,
    configuration: &Path,
    socket: &Path,
    port: u16,
) -> Result<Process> {
    let mut command = match root {
        Some(root) => root.command(place, "/usr/sbin/mosquitto")?,
        None => Command::new(installed("mosquitto")?),
    };
    command.arg("-c").arg(configuration);
    let mut process = place.spawn(name, &command)?;
    process.wait_until("the broker listens", LIMIT, || {
        std::os::unix::net::UnixStream::connect(socket).ok()?;
        let connect = || std::net::TcpStream::connect(("127.0.0.1", port)).ok();
        place.in_network(connect).ok().flatten()
    })?;
    Ok(process)
}

fn settings(dir: &Path, data: &Path, pki: &Pki, ports: [u16; 2], lines: &str) -> String {
    let (dir, data) = (dir.display(), data.display());
    let (ca, server) = (pki.ca(), pki.server());
    let (ca, cert, key) = (ca.display(), server.cert.display(), server.key.display());
    let listener = |port: u16, protocol: &str| {
        format!(
            "listener {port} 127.0.0.1
protocol {protocol}
cafile {ca}
certfile {cert}
keyfile {key}
require_certificate true
use_identity_as_username true
use_username_as_clientid true
allow_anonymous false
acl_file {dir}/acl
"
        )
    };
    let listeners = [listener(ports[0], "mqtt"), listener(ports[1], "websockets")].join("\n");
    format!(
        "user root
persistence true
persistence_location {data}/
log_dest stdout
log_type error
log_type warning
log_type notice
log_type information
log_type subscribe
{lines}

{listeners}
listener 0 {dir}/mqtt.sock
allow_anonymous true
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_listeners_lines() {
        let message = parse_message("message 1 coracle/1/a/status 00ff41").unwrap();
        assert!(message.retained);
        assert_eq!(
            (message.topic.as_str(), &*message.payload),
            ("coracle/1/a/status", &[0, 255, 65][..])
        );
        assert_eq!(parse_message("Client received PUBLISH"), None);
        assert_eq!(parse_message("message 0 t ").unwrap().payload, b"");
    }
}
