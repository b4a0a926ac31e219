//! RabbitMQ with its MQTT plugin and mutual TLS, as a gateway meets it. In: a place, an authority,
//! who may come. Out: a port for gateways and the fleet.
//!
//! A client's user name is its certificate's common name. Users have to exist before they come, so
//! they are given at the start. Deliberately not here: a back door; `fleet` comes by the port.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;

use crate::broker::FLEET;
use crate::pki::Pki;
use crate::place::Place;
use crate::process::Process;
use crate::root::Root;
use crate::{Result, free_port, wait_for};

const LIMIT: Duration = Duration::from_secs(90);

/// What a gateway may write and read, as RabbitMQ matches it: levels are parted by dots in there,
/// and `{username}` is the gateway's id.
const MAY_WRITE: &str =
    r"^coracle\.1\.{username}\.(reported|status|results(\..+)?|output|events|health|requests)$";
const MAY_READ: &str = r"^coracle\.1\.{username}\.(desired|commands|receipts|chunks)$";

/// A running RabbitMQ; ended when dropped.
#[derive(Debug)]
pub struct RabbitMq {
    server: Process,
    _names: Process,
    root: Root,
    name: String,
    dir: PathBuf,
    ports: Ports,
    place: Place,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    mqtt: u16,
    /// Of Erlang's own register of names.
    names: u16,
    /// Between nodes.
    nodes: u16,
}

impl RabbitMq {
    /// Starts the one of that name under `target/brokers`, for these clients and [`FLEET`], and
    /// waits until it answers. Packets may have `packet_limit` bytes.
    pub fn start(
        place: &Place,
        pki: &Pki,
        version: &str,
        clients: &[String],
        packet_limit: Option<u32>,
    ) -> Result<Self> {
        let root = Root::find(version)?;
        let name = format!("rabbitmq{}", place.number());
        let dir = place.data().join(&name);
        std::fs::create_dir(&dir)?;
        let ports = Ports { mqtt: free_port()?, names: free_port()?, nodes: free_port()? };
        std::fs::write(dir.join("definitions.json"), definitions(clients).to_string())?;
        std::fs::write(dir.join("rabbitmq.conf"), settings(&dir, pki, ports, packet_limit))?;
        std::fs::write(dir.join("plugins"), "[rabbitmq_mqtt,rabbitmq_auth_mechanism_ssl].\n")?;
        let mut epmd = root.command(place, "/usr/bin/epmd")?;
        environment(&mut epmd, &dir, ports);
        let mut names = place.spawn(&format!("{name}-names"), &epmd)?;
        let listens = || std::net::TcpStream::connect(("127.0.0.1", ports.names)).ok();
        names.wait_until("the register of names listens", LIMIT, || {
            place.in_network(listens).ok().flatten()
        })?;
        let server = launch(&root, place, &name, &dir, ports)?;
        let place = place.clone();
        Ok(Self { server, _names: names, root, name, dir, ports, place })
    }

    /// The TLS port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.ports.mqtt
    }

    /// Its log.
    pub fn log(&self) -> String {
        self.server.log()
    }

    /// Orderly stop. Connections are then refused.
    pub fn stop(&mut self) -> Result<()> {
        self.server.terminate(LIMIT).map(drop)
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.server.kill().map(drop)
    }

    /// Throws away what it had saved. It must not run.
    pub fn forget(&self) -> Result<()> {
        let base = self.dir.join("base");
        std::fs::remove_dir_all(&base).with_context(|| format!("cannot remove {}", base.display()))
    }

    /// Starts it again on the same port.
    pub fn start_again(&mut self) -> Result<()> {
        if !self.server.is_running() {
            self.server = launch(&self.root, &self.place, &self.name, &self.dir, self.ports)?;
        }
        Ok(())
    }
}

fn launch(
    root: &Root,
    place: &Place,
    name: &str,
    dir: &std::path::Path,
    ports: Ports,
) -> Result<Process> {
    // What a killed one had registered is forgotten when its connection closes, which it must be.
    let mut command = root.command(place, "/usr/lib/rabbitmq/bin/rabbitmq-server")?;
    environment(&mut command, dir, ports);
    let mut process = place.spawn(name, &command)?;
    process.wait_until("the broker listens", LIMIT, || {
        let connect = || std::net::TcpStream::connect(("127.0.0.1", ports.mqtt)).ok();
        place.in_network(connect).ok().flatten()
    })?;
    wait_for("the broker to be up", LIMIT, || {
        process.log().contains("Server startup complete").then_some(())
    })?;
    Ok(process)
}

/// The variables are those of rabbitmq-env(5) and epmd(1).
fn environment(command: &mut Command, dir: &std::path::Path, ports: Ports) {
    let base = dir.join("base");
    command
        .env("HOME", dir)
        .env("PATH", "/usr/bin:/usr/sbin")
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("ERL_EPMD_PORT", ports.names.to_string())
        .env("RABBITMQ_DIST_PORT", ports.nodes.to_string())
        .env("RABBITMQ_NODENAME", "rabbit@localhost")
        .env("RABBITMQ_CONFIG_FILE", dir.join("rabbitmq.conf"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", dir.join("plugins"))
        .env("RABBITMQ_CONF_ENV_FILE", dir.join("none"))
        .env("RABBITMQ_MNESIA_BASE", base)
        .env("RABBITMQ_LOG_BASE", dir.join("log"))
        .env("RABBITMQ_LOGS", "-")
        // One scheduler: the tests' own machine has few processors.
        .env(
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            "+S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
        )
        // Keeps it in the foreground, as one process.
        .env("RUNNING_UNDER_SYSTEMD", "true");
}

fn definitions(clients: &[String]) -> serde_json::Value {
    let user = |name: &str| json!({"name": name, "password_hash": "", "tags": []});
    // What RabbitMQ makes for a client's session carries the client's id.
    let permission = |name: &str| {
        let own = format!("mqtt-(subscription|will)-{name}(qos[01])?");
        let read = format!("^({own}|amq\\.topic)$");
        // By the default exchange a delayed will comes into its queue.
        let write = format!("^({own}|amq\\.topic|amq\\.default)$");
        json!({"user": name, "vhost": "/", "configure": format!("^{own}$"), "write": write, "read": read})
    };
    let topics = |name: &str, write: &str, read: &str| json!({"user": name, "vhost": "/", "exchange": "amq.topic", "write": write, "read": read});
    let mut users = vec![user(FLEET)];
    let mut permissions =
        vec![json!({"user": FLEET, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"})];
    let mut topic_permissions = vec![topics(FLEET, r"^coracle\.", r"^coracle\.")];
    for client in clients {
        users.push(user(client));
        permissions.push(permission(client));
        topic_permissions.push(topics(client, MAY_WRITE, MAY_READ));
    }
    json!({
        "vhosts": [{"name": "/"}],
        "users": users,
        "permissions": permissions,
        "topic_permissions": topic_permissions,
    })
}

fn settings(dir: &std::path::Path, pki: &Pki, ports: Ports, packet_limit: Option<u32>) -> String {
    let (ca, server) = (pki.ca(), pki.server());
    let (ca, cert, key) = (ca.display(), server.cert.display(), server.key.display());
    let limit = packet_limit.map(|bytes| format!("mqtt.max_packet_size_authenticated = {bytes}\n"));
    format!(
        "listeners.tcp = none
mqtt.listeners.tcp = none
mqtt.listeners.ssl.1 = 127.0.0.1:{}
mqtt.allow_anonymous = false
mqtt.ssl_cert_login = true
ssl_cert_login_from = common_name
ssl_options.cacertfile = {ca}
ssl_options.certfile = {cert}
ssl_options.keyfile = {key}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
mqtt.max_session_expiry_interval_seconds = 86400
definitions.import_backend = local_filesystem
definitions.local.path = {}/definitions.json
log.console = true
log.console.level = info
log.file = false
{}",
        ports.mqtt,
        dir.display(),
        limit.unwrap_or_default(),
    )
}
