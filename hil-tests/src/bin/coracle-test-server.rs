//! The server that tests run in containers. In: requests on `PORT` (8080), of HTTP/1.1 and one for
//! each connection, and signals. Out: answers that tell which version of it, and which replica.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | `VERSION HOSTNAME BEGUN`: its version, its replica, and when this process began |
//! | `GET /echo` | a line like that at once and after each line that comes, until the client leaves; `bye` in place of it once the server was told to end |
//! | `GET /started`, `/live`, `/ready` | 200, or 503 after `GET /NAME/off` until `GET /NAME/on` |
//! | `GET /deaf` | nothing listens any more, though the process goes on |
//!
//! `SIGTERM` ends it when the last open connection is closed; it goes on answering until then.
//! `START_MILLIS` is how long it takes to start listening, `OFF` (such as `ready live`) what is off
//! from the beginning, `CRASH` an exit code that it ends with in place of starting to listen.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use signal_hook::consts::SIGTERM;

/// How often the end is looked for.
const LOOK: Duration = Duration::from_millis(10);

/// What can be switched off.
const SWITCHES: [&str; 3] = ["started", "live", "ready"];

#[derive(Debug)]
struct Server {
    /// `VERSION HOSTNAME BEGUN`.
    name: String,
    /// Connections that are open.
    open: AtomicUsize,
    /// It was told to end.
    ends: Arc<AtomicBool>,
    /// It is not to listen any more.
    deaf: AtomicBool,
    /// Which of [`SWITCHES`] are off.
    off: [AtomicBool; 3],
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    let variable = |name: &str| std::env::var(name).ok();
    let ends = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGTERM, Arc::clone(&ends)).context("no signals")?;
    let millis = variable("START_MILLIS").and_then(|text| text.parse().ok()).unwrap_or(0);
    std::thread::sleep(Duration::from_millis(millis));
    if let Some(code) = variable("CRASH") {
        return Ok(ExitCode::from(code.parse::<u8>().context("CRASH is no exit code")?));
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let version = variable("VERSION").unwrap_or_default();
    let off = variable("OFF").unwrap_or_default();
    let is_off = |name: &str| AtomicBool::new(off.split_whitespace().any(|word| word == name));
    let server = Arc::new(Server {
        name: format!("{version} {} {begun}", host.trim()),
        open: AtomicUsize::new(0),
        ends,
        deaf: AtomicBool::new(false),
        off: SWITCHES.map(is_off),
    });
    let port = variable("PORT").map_or(Ok(8080), |text| text.parse()).context("PORT")?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port));
    let listener = listener.with_context(|| format!("cannot listen on port {port}"))?;
    println!("{} listens on port {port}", server.name);
    let serving = Arc::clone(&server);
    std::thread::spawn(move || accept(&serving, listener));
    while !(server.ends.load(Ordering::SeqCst) && server.open.load(Ordering::SeqCst) == 0) {
        std::thread::sleep(LOOK);
    }
    println!("{} ends", server.name);
    Ok(ExitCode::SUCCESS)
}

fn accept(server: &Arc<Server>, listener: TcpListener) {
    for stream in listener.incoming().flatten() {
        if server.deaf.load(Ordering::SeqCst) {
            return;
        }
        server.open.fetch_add(1, Ordering::SeqCst);
        let server = Arc::clone(server);
        std::thread::spawn(move || {
            if let Err(error) = serve(&server, stream) {
                eprintln!("{}: {error:#}", server.name);
            }
            server.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

fn serve(server: &Server, mut stream: TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    // Whoever only looks whether somebody listens says nothing.
    let Some(request) = lines.next().transpose()? else { return Ok(()) };
    // All of it is read: what is unread when a connection is closed would reset it.
    for line in lines.by_ref() {
        if line?.is_empty() {
            break;
        }
    }
    let path = request.split(' ').nth(1).context("not a request")?;
    let words: Vec<&str> = path.split('/').skip(1).collect();
    let switch = |name: &str| {
        let at = SWITCHES.iter().position(|switch| *switch == name);
        at.map(|at| &server.off[at]).with_context(|| format!("no {name}"))
    };
    let (status, body) = match words.as_slice() {
        [""] => ("200 OK", server.name.clone()),
        ["deaf"] => {
            server.deaf.store(true, Ordering::SeqCst);
            // Whoever waits for connections learns of it by one.
            drop(TcpStream::connect(stream.local_addr()?)?);
            ("200 OK", "deaf from now on".to_owned())
        }
        ["echo"] => return echo(server, stream, lines),
        [name] => match switch(name)?.load(Ordering::SeqCst) {
            true => ("503 Service Unavailable", format!("{name} is off")),
            false => ("200 OK", format!("{name} is on")),
        },
        [name, state @ ("on" | "off")] => {
            switch(name)?.store(*state == "off", Ordering::SeqCst);
            ("200 OK", format!("{name} is {state} now"))
        }
        _ => bail!("no {path}"),
    };
    let length = body.len() + 1;
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n");
    Ok(stream.write_all(format!("{head}\r\n{body}\n").as_bytes())?)
}

fn echo(
    server: &Server,
    mut stream: TcpStream,
    lines: impl Iterator<Item = std::io::Result<String>>,
) -> anyhow::Result<()> {
    let says = || match server.ends.load(Ordering::SeqCst) {
        true => "bye".to_owned(),
        false => server.name.clone(),
    };
    stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
    stream.write_all(format!("{}\n", says()).as_bytes())?;
    for line in lines {
        stream.write_all(format!("{} {}\n", says(), line?).as_bytes())?;
    }
    Ok(())
}
