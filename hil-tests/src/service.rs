//! A service that tests order: the image of `coracle-test-server`, which answers with its version
//! and the name of its replica, and workloads of it.

use coracle_protocol::desired::{
    HostPort, HttpAction, Network, PortRequirement, Probe, Protocol, Stop, Update, Workload,
};
use coracle_testbed::image::{Builder, Compression, Layer};
use coracle_testbed::{Image, Result, bin};

use crate::gateway::Gateway;
use crate::orders;

/// Where it listens, and the port of the gateway that leads there.
pub const PORT: u16 = 8080;

const PROGRAM: &str = "/usr/bin/server";
const PATH: &str = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";

/// What an image of the service is built from: busybox, and the server with these variables.
pub fn builder(version: &str, env: &[&str]) -> Result<Builder> {
    let layer = Layer::new().program(PROGRAM, &bin("coracle-test-server")?)?;
    let version = format!("VERSION={version}");
    let env: Vec<&str> = [PATH, &version].into_iter().chain(env.iter().copied()).collect();
    let builder = Builder::busybox(Compression::Plain)?.layer(layer, Compression::Plain);
    Ok(builder.env(&env).entrypoint(&[PROGRAM]).cmd(&[]))
}

/// An image of the service.
pub fn image(version: &str, env: &[&str]) -> Result<Image> {
    builder(version, env)?.build()
}

/// Pushes images of the service, `server:VERSION`, each with further variables.
pub fn push(gateway: &Gateway, versions: &[(&str, &[&str])]) -> Result<()> {
    for (version, env) in versions {
        gateway.registry.push(&image(version, env)?, "server", version)?;
    }
    Ok(())
}

/// A workload of one replica that is ready when it says so, reached at [`PORT`] of the gateway.
pub fn workload(gateway: &Gateway, name: &str, version: &str) -> Workload {
    let mut workload = orders::workload(name, &gateway.registry.reference("server", version));
    workload.network = Some(Network::Pod);
    workload.ports.insert("http".into(), HostPort { host: PORT, address: None });
    workload.stop = Some(Stop { grace_seconds: 20, drain_seconds: Some(1), ..Stop::default() });
    workload.update =
        Some(Update { healthy_within_seconds: 60, min_ready_seconds: 0, ..Update::default() });
    let container = &mut workload.containers[0];
    container.ports.push(PortRequirement {
        name: "http".into(),
        port: PORT,
        protocol: Protocol::Tcp,
        optional: false,
    });
    container.probes.readiness = Some(http_probe("/ready"));
    workload
}

/// The same in several replicas.
pub fn replicated(gateway: &Gateway, name: &str, version: &str, replicas: u32) -> Workload {
    Workload { replicas, ..workload(gateway, name, version) }
}

/// A probe that asks every second and gives up after two bad answers.
pub fn http_probe(path: &str) -> Probe {
    let http = HttpAction { port: PORT, path: path.to_owned(), headers: Default::default() };
    Probe {
        http: Some(http),
        period_seconds: 1,
        timeout_seconds: 5,
        failure_threshold: 2,
        ..Probe::default()
    }
}
