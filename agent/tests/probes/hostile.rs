//! Servers that do not behave, networks that are not there.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::bed::{
    NoCommands, Probing, answer, descriptors, http, inside, listen, read_request, readiness,
    run_alone, run_at, serve, target, tcp,
};

/// As in the probes of the tests, and a little.
const LIMIT: Duration = Duration::from_millis(1500);

/// What the second verdict on a server says, which must come in time.
async fn said_of(probing: &mut Probing) -> String {
    let begun = Instant::now();
    assert_eq!(probing.next().await, "started live");
    let verdict = probing.next().await;
    assert!(begun.elapsed() < LIMIT, "{verdict}: {:?}", begun.elapsed());
    let said = verdict.strip_prefix("started live (readiness probe: ");
    said.and_then(|said| said.strip_suffix(')')).unwrap_or(&verdict).to_owned()
}

async fn write_slowly(stream: &mut TcpStream, bytes: &[u8], pause: Duration) {
    for byte in bytes {
        if stream.write_all(&[*byte]).await.is_err() {
            return;
        }
        sleep(pause).await;
    }
}

async fn write_for_ever(stream: &mut TcpStream, bytes: &[u8]) {
    while stream.write_all(bytes).await.is_ok() {}
}

#[test]
fn answers_that_are_none() {
    run_at(|place| async move {
        for (name, bytes, expected) in [
            ("garbage", &b"\x16\x03\x01\0\xff garbage\r\n\r\n"[..], "the answer is not HTTP"),
            ("banner", b"220 mail.example ESMTP\r\n", "the answer is not HTTP"),
            ("nothing", b"", "the connection was closed before an answer came"),
            ("half", b"HTTP/1.1 20", "the connection was closed before an answer came"),
        ] {
            let web = place.network(name);
            let _server = answer(listen(&web, "127.0.0.1:80"), bytes);
            let targets = vec![target("web", 7, Some(&web), readiness(http(80, "/")))];
            let mut probing = Probing::start(NoCommands, targets);
            assert_eq!(said_of(&mut probing).await, expected, "{name}");
            probing.end().await;
        }
    });
}

#[test]
fn answers_without_an_end() {
    run_at(|place| async move {
        let web = place.network("web");
        let _line = serve(listen(&web, "127.0.0.1:81"), async |mut stream| {
            stream.write_all(b"HTTP/1.1 200 ").await.unwrap();
            write_for_ever(&mut stream, &[b'O'; 1000]).await;
        });
        let _headers = serve(listen(&web, "127.0.0.1:82"), async |mut stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\n").await.unwrap();
            write_for_ever(&mut stream, b"X-More: and more\r\n").await;
        });
        let _body = serve(listen(&web, "127.0.0.1:83"), async |mut stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            write_for_ever(&mut stream, &[b'x'; 1000]).await;
        });
        let too_long = "the answer's head is longer than 8192 bytes";
        for (port, expected) in [(81, too_long), (82, too_long), (83, "started live ready")] {
            let targets = vec![target("web", 7, Some(&web), readiness(http(port, "/")))];
            let mut probing = Probing::start(NoCommands, targets);
            assert_eq!(said_of(&mut probing).await, expected, "{port}");
            probing.end().await;
        }
    });
}

#[test]
fn answers_that_do_not_come() {
    run_at(|place| async move {
        let web = place.network("web");
        // Not even accepted, and accepted.
        let _silent = listen(&web, "127.0.0.1:81");
        let _mute = serve(listen(&web, "127.0.0.1:82"), async |mut stream| {
            read_request(&mut stream).await;
            std::future::pending::<()>().await;
        });
        let _slow = serve(listen(&web, "127.0.0.1:83"), async |mut stream| {
            read_request(&mut stream).await;
            let pause = Duration::from_millis(100);
            write_slowly(&mut stream, b"HTTP/1.1 200 OK\r\n\r\n", pause).await;
        });
        let _quick_enough = serve(listen(&web, "127.0.0.1:84"), async |mut stream| {
            read_request(&mut stream).await;
            let pause = Duration::from_millis(10);
            write_slowly(&mut stream, b"HTTP/1.1 200 OK\r\n\r\n", pause).await;
        });
        let late = "no answer within 1 s";
        for (port, expected) in [(81, late), (82, late), (83, late), (84, "started live ready")] {
            let targets = vec![target("web", 7, Some(&web), readiness(http(port, "/")))];
            let mut probing = Probing::start(NoCommands, targets);
            assert_eq!(said_of(&mut probing).await, expected, "{port}");
            probing.end().await;
        }
    });
}

#[test]
fn a_port_whose_queue_is_full_does_not_answer() {
    run_at(|place| async move {
        let web = place.network("web");
        let listener = listen(&web, "127.0.0.1:80");
        // Until no more are taken; the kernel rounds what was asked for.
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
        let waiting: Vec<_> = inside(&web, || {
            let connect = |_| {
                let limit = Duration::from_millis(200);
                std::net::TcpStream::connect_timeout(&([127, 0, 0, 1], 80).into(), limit)
            };
            (0..8).map(connect).collect()
        });
        assert!(waiting.iter().any(Result::is_err), "{waiting:?}");
        let targets = vec![target("web", 7, Some(&web), readiness(tcp(80)))];
        let mut probing = Probing::start(NoCommands, targets);
        assert_eq!(said_of(&mut probing).await, "no answer within 1 s");
        drop(waiting);
        while listener.accept().is_ok() {}
        probing.becomes("started live ready").await;
        probing.end().await;
    });
}

#[test]
fn networks_that_are_not_there() {
    run_alone(|place| async move {
        let nowhere = place.path("nowhere");
        let file = place.path("file");
        std::fs::write(&file, "").unwrap();
        let pipe = place.path("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let before = descriptors();
        for path in [&nowhere, &file, &pipe] {
            let targets = vec![target("web", 7, Some(path), readiness(tcp(80)))];
            let mut probing = Probing::start(NoCommands, targets);
            let said = said_of(&mut probing).await;
            let expected = format!("its network {} cannot be entered: ", path.display());
            assert!(said.starts_with(&expected), "{said}");
            probing.end().await;
        }
        assert_eq!(descriptors(), before);

        // A network without even a loopback interface.
        let bare = place.network("bare");
        inside(&bare, || {
            let ip = std::process::Command::new("ip").args(["link", "set", "lo", "down"]).status();
            assert!(ip.unwrap().success());
        });
        let targets = vec![target("web", 7, Some(&bare), readiness(tcp(80)))];
        let mut probing = Probing::start(NoCommands, targets);
        assert_eq!(said_of(&mut probing).await, "no answer within 1 s");
        probing.end().await;
    });
}

#[test]
fn hostile_servers_harm_nobody_beside_them() {
    run_alone(|place| async move {
        let good = place.network("good");
        let _good = answer(listen(&good, "127.0.0.1:80"), "HTTP/1.1 200 OK\r\n\r\n");
        let before = descriptors();
        let mut targets = vec![target("good", 7, Some(&good), readiness(http(80, "/")))];
        let mut servers = Vec::new();
        for n in 0..20 {
            let bad = place.network(&format!("bad-{n}"));
            servers.push(serve(listen(&bad, "127.0.0.1:80"), async |mut stream| {
                stream.write_all(b"HTTP/1.1 200 OK\r\n").await.ok();
                // Until the other end has had enough.
                read_request(&mut stream).await;
                read_request(&mut stream).await;
            }));
            targets.push(target(&format!("bad-{n}"), 7, Some(&bad), readiness(http(80, "/"))));
        }
        let mut probing = Probing::start(NoCommands, targets);
        let mut bad = 0;
        while bad < 20 {
            let (id, health) = probing.any().await;
            match id.as_str() {
                "good.0.main" => assert!(health.ready || health.message.is_none(), "{health:?}"),
                _ if health.message.is_some() => bad += 1,
                _ => {}
            }
        }
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            sleep(Duration::from_millis(100)).await;
            // Of each one connection at both ends, and what is kept for the next.
            let now = descriptors();
            assert!(now <= before + 20 + 21 * 4, "{now} descriptors, {before} before");
        }
        probing.end().await;
    });
}
