//! What is around a gateway: broker, registry, a file server, certificates and keys; its identity;
//! its orders and reports. In: the address by which the gateway reaches this machine. Out: facts as
//! the fleet sees them.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use coracle_hil::{native, orders};
use coracle_protocol::desired::Workload;
use coracle_protocol::topic::{Kind, Topic};
use coracle_protocol::{DesiredState, GatewayId, ReportedState};
use coracle_testbed::broker::Subscription;
use coracle_testbed::image::{Builder, Compression};
use coracle_testbed::process::{run, run_with_input};
use coracle_testbed::{Broker, Image as Oci, Pki, Place, Registry, Result, bin, broker};

use crate::image::Image;
use crate::qemu;

const LIMIT: Duration = Duration::from_secs(60);

/// The guest's port on which the workload answers.
pub const WEB_PORT: u16 = 8080;

/// The gateway that the orders in `docs/examples` are for.
const EXAMPLE_GATEWAY: &str = "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11";

/// Broker, registry and files for one gateway, and the fleet's tools.
#[derive(Debug)]
pub struct Site {
    /// The broker.
    pub broker: Broker,
    /// The registry, plain HTTP.
    pub registry: Registry,
    /// Who vouches for the broker, the gateway and the fleet.
    pub pki: Pki,
    host: IpAddr,
    registry_address: String,
    id: GatewayId,
    key: PathBuf,
    reports: Subscription,
    files: Files,
    _relays: Vec<Relay>,
    place: Place,
}

impl Site {
    /// For an emulated gateway.
    pub fn emulated() -> Result<Self> {
        Self::new(qemu::HOST, None)
    }

    /// For a gateway on the bench that reaches this machine at `host`, and whose configuration
    /// names the registry there under `registry_port`.
    pub fn real(host: IpAddr, registry_port: u16) -> Result<Self> {
        Self::new(host, Some(registry_port))
    }

    fn new(host: IpAddr, registry_port: Option<u16>) -> Result<Self> {
        let place = Place::new()?;
        let pki = Pki::with_addresses(&place.run().join("pki"), &[host])?;
        let broker = Broker::start(&place, &pki)?;
        let registry = Registry::start(&place)?;
        let keys = place.run().join("keys");
        std::fs::create_dir(&keys)?;
        let prefix = keys.join("orders");
        run(Command::new(bin("coracle-fleet")?).args(["keygen", "--out"]).arg(&prefix), LIMIT)?;
        let id = GatewayId::random();
        let reports = broker.listen(&Topic::new(id, Kind::Reported).to_string())?;
        let files = Files::start()?;
        let own_port = registry.address().rsplit(':').next().unwrap_or_default().parse()?;
        let mut relays = Vec::new();
        if host != qemu::HOST {
            for port in [broker.port(), files.port] {
                relays.push(Relay::start(SocketAddr::new(host, port), port)?);
            }
        }
        if let Some(port) = registry_port {
            // An emulated gateway reaches this machine's loopback.
            let own = if host == qemu::HOST { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { host };
            relays.push(Relay::start(SocketAddr::new(own, port), own_port)?);
        }
        let registry_address = format!("{host}:{}", registry_port.unwrap_or(own_port));
        let key = keys.join("orders.key");
        ensure!(key.is_file(), "coracle-fleet keygen did not write {}", key.display());
        Ok(Self {
            broker,
            registry,
            pki,
            host,
            registry_address,
            id,
            key,
            reports,
            files,
            _relays: relays,
            place,
        })
    }

    /// Where everything here lies.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The gateway's id.
    pub fn id(&self) -> GatewayId {
        self.id
    }

    /// `HOST:PORT` of the registry, as the gateway reaches it.
    pub fn registry_address(&self) -> &str {
        &self.registry_address
    }

    /// An identity as it lies on a factory partition: a new directory with the gateway's id, its
    /// broker, certificate and key, and whose orders it obeys.
    pub fn identity(&self) -> Result<PathBuf> {
        let dir = self.place.run().join("identity");
        if dir.exists() {
            return Ok(dir);
        }
        std::fs::create_dir(&dir)?;
        let client = self.pki.client(&self.id.to_string())?;
        std::fs::copy(self.pki.ca(), dir.join("ca.pem"))?;
        std::fs::copy(client.cert, dir.join("cert.pem"))?;
        std::fs::copy(client.key, dir.join("key.pem"))?;
        std::fs::copy(self.key.with_extension("pub"), dir.join("orders.pub"))?;
        let text = format!(
            "gateway = \"{}\"\n\n[link]\nhost = \"{}\"\nport = {}\nkeep_alive_seconds = 10\n\
             reconnect_window_seconds = 2\n",
            self.id,
            self.host,
            self.broker.port()
        );
        std::fs::write(dir.join("gateway.toml"), text)?;
        Ok(dir)
    }

    /// `/etc/coracle/coracle.toml` of the image: what is packaged, the registry, and the files as a
    /// repository of artifacts.
    pub fn configuration(&self) -> Result<String> {
        let packaged = crate::tools::repository().join("systemd/coracle.toml");
        let packaged = std::fs::read_to_string(&packaged)
            .with_context(|| format!("cannot read {}", packaged.display()))?;
        Ok(format!(
            "{packaged}\n[[registries]]\nhost = \"{}\"\nplain_http = true\n\n\
             [[artifacts.repositories]]\nurl = \"http://{}:{}\"\nlayout = \"maven\"\n",
            self.registry_address(),
            self.host,
            self.files.port
        ))
    }

    // --- images and files -------------------------------------------------------------------------

    /// Pushes the web server for the gateway's architecture; its reference by digest.
    pub fn push_web(&self, image: &Image, version: &str) -> Result<String> {
        let platform = image.architecture.platform();
        let web = Builder::lighttpd_in(&image.workload(), platform, version)?.build()?;
        self.push(&web, "web")
    }

    /// Pushes a small image of the gateway's architecture that sleeps; its reference by digest.
    pub fn push_sleeper(&self, image: &Image, busybox: &Path) -> Result<String> {
        let layer = coracle_testbed::image::Layer::busybox_of(busybox)?;
        let builder = Builder::new().layer(layer, Compression::Gzip);
        let builder = builder.platform(image.architecture.platform());
        self.push(&builder.cmd(&["/bin/sleep", "86400"]).build()?, "sleeper")
    }

    fn push(&self, image: &Oci, name: &str) -> Result<String> {
        let digest = self.registry.push(image, name, "1")?;
        Ok(format!("{}/{name}@{digest}", self.registry_address()))
    }

    /// Offers bytes for download by the gateway; the URL.
    pub fn serve(&self, name: &str, bytes: Vec<u8>) -> String {
        self.files
            .content
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(format!("/{name}"), bytes.into());
        format!("http://{}:{}/{name}", self.host, self.files.port)
    }

    /// Offers what is in a directory as an artifact, `group:name:version`.
    pub fn serve_artifact(&self, artifact: &str, dir: &Path) -> Result<()> {
        let mut parts = artifact.split(':');
        let mut part = || parts.next().context("an artifact is group:name:version");
        let (group, name, version) = (part()?.replace('.', "/"), part()?, part()?);
        let zip = self.place.run().join(format!("{name}-{version}.zip"));
        let bytes = native::packed(dir, &zip)?;
        let path = format!("{group}/{name}/{version}/{name}-{version}.zip");
        let digest = coracle_testbed::image::digest(&bytes);
        let hex = digest.trim_start_matches("sha256:");
        self.serve(&format!("{path}.sha256"), format!("{hex}\n").into_bytes());
        self.serve(&path, bytes);
        Ok(())
    }

    // --- orders and reports -------------------------------------------------------------------------

    /// The web server as a workload, on all of the gateway's addresses.
    pub fn web(&self, name: &str, image: &str, port: u16) -> Workload {
        let mut workload = orders::web(name, image, port);
        workload.containers[0].env.insert("BIND".to_owned(), "0.0.0.0".to_owned());
        workload
    }

    /// Signs an order and publishes it over MQTT with TLS, by the shipped commands.
    pub fn order(&self, generation: u64, workloads: Vec<Workload>) -> Result<()> {
        self.publish(&self.sign(&orders::order(self.id, generation, workloads))?)
    }

    /// The same with an order as a person writes it for the gateway of `docs/examples`, in YAML:
    /// for this gateway, as that generation, and with words of it replaced.
    pub fn order_text(&self, generation: u64, text: &str, replaced: &[(&str, &str)]) -> Result<()> {
        let (id, numbered) = (self.id.to_string(), format!("generation: {generation}\n"));
        let usual = [(EXAMPLE_GATEWAY, id.as_str()), ("generation: 1\n", numbered.as_str())];
        let mut text = text.to_owned();
        for (old, new) in usual.iter().chain(replaced) {
            ensure!(text.contains(old), "there is no {old:?} in the order");
            text = text.replace(old, new);
        }
        self.publish(&self.sign_text(generation, &text)?)
    }

    fn publish(&self, signed: &Path) -> Result<()> {
        let fleet = self.pki.client(broker::FLEET)?;
        let mut command = Command::new(bin("coracle-fleet")?);
        command.args(["order", "publish"]).arg(signed);
        command.args(["--broker", &format!("localhost:{}", self.broker.port())]);
        command.arg("--ca").arg(self.pki.ca());
        command.arg("--cert").arg(fleet.cert).arg("--key").arg(fleet.key);
        run(&mut command, LIMIT).map(drop)
    }

    /// Signs an order by the shipped command; the file.
    pub fn sign(&self, order: &DesiredState) -> Result<PathBuf> {
        self.sign_text(order.generation, &serde_json::to_string_pretty(order)?)
    }

    fn sign_text(&self, generation: u64, order: &str) -> Result<PathBuf> {
        let file = self.place.run().join(format!("order-{generation}.yaml"));
        let signed = file.with_extension("signed.json");
        std::fs::write(&file, order)?;
        let mut command = Command::new(bin("coracle-fleet")?);
        command.args(["order", "sign"]).arg(&file).arg("--key").arg(&self.key);
        command.arg("--out").arg(&signed);
        let output = run_with_input(&mut command, &[], LIMIT)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "coracle-fleet order sign failed: {said}");
        Ok(signed)
    }

    /// How many reports came so far.
    pub fn reports(&self) -> usize {
        self.reports.messages().len()
    }

    /// Waits for a report that `wanted` accepts, among those after the first `skip`.
    pub fn wait_report(
        &self,
        what: &str,
        skip: usize,
        timeout: Duration,
        wanted: impl Fn(&ReportedState) -> bool,
    ) -> Result<ReportedState> {
        coracle_testbed::wait_for(what, timeout, || {
            self.reports.messages().into_iter().skip(skip).find_map(|message| {
                let report: ReportedState = serde_json::from_slice(&message.payload).ok()?;
                wanted(&report).then_some(report)
            })
        })
        .with_context(|| {
            let last = self.reports.messages().pop();
            let last = last.map(|message| String::from_utf8_lossy(&message.payload).into_owned());
            format!("the last report of {}: {}", self.reports(), last.unwrap_or_default())
        })
    }

    /// Waits for a report that everything is as the order of that generation says.
    pub fn wait_converged(&self, generation: u64, timeout: Duration) -> Result<ReportedState> {
        self.wait_report("a report of the order being in force", 0, timeout, |report| {
            report.generation_applied == generation
                && report.phase == coracle_protocol::reported::Phase::Converged
        })
    }
}

type Content = Arc<Mutex<BTreeMap<String, Arc<[u8]>>>>;

/// A web server for downloads by the gateway: GET of what it was given, one request a connection.
#[derive(Debug)]
struct Files {
    content: Content,
    port: u16,
}

impl Files {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, coracle_testbed::free_port()?))?;
        let port = listener.local_addr()?.port();
        let content = Content::default();
        let shared = content.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let content = shared.clone();
                // A client that goes away is its own affair.
                std::thread::spawn(move || answer(stream, &content).ok());
            }
        });
        Ok(Self { content, port })
    }
}

fn answer(mut stream: TcpStream, content: &Content) -> Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let path = first.split(' ').nth(1).unwrap_or_default();
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let found = content.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
    let (status, body) = found.map_or(("404 Not Found", Arc::from([])), |body| ("200 OK", body));
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    Ok(stream.write_all(&body)?)
}

/// How often a relay looks for a connection, and for its end.
const LOOK: Duration = Duration::from_millis(20);

/// Passes on what comes to an address of this machine to a port of its loopback. Listens until it
/// is dropped, so that the next site can have the address.
#[derive(Debug)]
struct Relay {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    fn start(from: SocketAddr, to: u16) -> Result<Self> {
        let listener = TcpListener::bind(from)
            .with_context(|| format!("cannot listen on {from}: is that address this machine's?"))?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    // A client that goes away is its own affair.
                    Ok((client, _)) => drop(pass_on(client, to)),
                    Err(_) => std::thread::sleep(LOOK),
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn pass_on(mut client: TcpStream, to: u16) -> Result<()> {
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, to))?;
    let (mut a, mut b) = (client.try_clone()?, server.try_clone()?);
    // Ends when either side does, which the other sees.
    std::thread::spawn(move || {
        std::io::copy(&mut a, &mut server).ok();
        server.shutdown(std::net::Shutdown::Write).ok();
    });
    std::thread::spawn(move || {
        std::io::copy(&mut b, &mut client).ok();
        client.shutdown(std::net::Shutdown::Write).ok();
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn files_are_served_through_a_relay() {
        let files = Files::start().unwrap();
        files.content.lock().unwrap().insert("/a".into(), vec![7; 100_000].into());
        let from = SocketAddr::from(([127, 0, 0, 2], coracle_testbed::free_port().unwrap()));
        let relay = Relay::start(from, files.port).unwrap();
        for (path, status, length) in [("/a", "200", 100_000), ("/b", "404", 0)] {
            let mut stream = TcpStream::connect(from).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            let text = String::from_utf8_lossy(&answer);
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(status), "{head}");
            assert_eq!(body.len(), length);
        }
        drop(relay);
        assert!(TcpStream::connect(from).is_err(), "it listens still");
        Relay::start(from, files.port).unwrap();
    }
}
