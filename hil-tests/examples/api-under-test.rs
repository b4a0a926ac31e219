//! A gateway for `scripts/api-check`: a private containerd, the shipped agent, two workloads, and a
//! port on loopback that leads to the local API's socket, because the check knows no sockets in the
//! file system.
//!
//! Prints `http://127.0.0.1:PORT` once everything is as ordered, and ends with its standard input.
//! Exit code 0 if the agent still answers then, 1 if not. Needs root.

use std::io::{self, Read as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, ensure};
use coracle_hil::{Gateway, Options, orders};
use coracle_testbed::{Image, Result, place};

/// Says something for ever, and something else on standard error.
const TALK: &str = "while :; do echo hello; echo oops >&2; sleep 1; done";

fn main() -> Result<()> {
    let mut gateway = Gateway::prepare(Options { link: false, ..Options::default() })?;
    let name = gateway.place().name().to_owned();
    let checked = offer(&mut gateway);
    if let Err(error) = &checked {
        eprintln!("{error:#}\n{}", gateway.tail());
    }
    drop(gateway);
    let left = place::leftovers(&name);
    ensure!(left.is_empty(), "left behind: {}", left.join("\n"));
    checked
}

fn offer(gateway: &mut Gateway) -> Result<()> {
    gateway.start_agent()?;
    let digest = gateway.registry.push(&Image::busybox()?, "busybox", "1")?;
    let image = gateway.registry.pinned("busybox", &digest);
    let workloads =
        vec![orders::script("talker", &image, TALK), orders::workload("sleeper", &image)];
    let order = orders::order(gateway.id(), 1, workloads);
    let signed = gateway.sign(&order)?;
    gateway.apply(&std::fs::read(signed)?)?;
    gateway.wait_converged(1)?;
    let port = TcpListener::bind("127.0.0.1:0").context("cannot listen on loopback")?;
    println!("http://{}", port.local_addr()?);
    let socket = gateway.socket();
    thread::spawn(move || {
        for stream in port.incoming().flatten() {
            let socket = socket.clone();
            thread::spawn(move || lead(stream, &socket));
        }
    });
    io::stdin().read_to_end(&mut Vec::new())?;
    ensure!(gateway.agent_is_running(), "the agent ended");
    gateway.status().map(drop).context("the agent does not answer any more")
}

/// Copies in both directions until both ends are closed.
fn lead(from: TcpStream, socket: &Path) {
    let led = || -> io::Result<()> {
        let to = UnixStream::connect(PathBuf::from(socket))?;
        let (mut request, mut there) = (from.try_clone()?, to.try_clone()?);
        let asking = thread::spawn(move || {
            // The agent answers before it has all of a request that it refuses.
            drop(io::copy(&mut request, &mut there));
            drop(there.shutdown(Shutdown::Write));
        });
        let (mut answer, mut back) = (to, from.try_clone()?);
        drop(io::copy(&mut answer, &mut back));
        drop(from.shutdown(Shutdown::Both));
        drop(asking.join());
        Ok(())
    };
    if let Err(error) = led() {
        eprintln!("a connection was not led to the agent: {error}");
    }
}
