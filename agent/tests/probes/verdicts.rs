//! What becomes known of well-behaved servers, and when.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle::probes::request_in;
use coracle_core::desired::{Check, Probes};
use coracle_core::probe::Before;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::bed::{
    NoCommands, Probing, SOON, answer, descriptors, http, inside, listen, probe, read_request,
    readiness, run_alone, run_at, serve, target, threads,
};
use tokio::io::AsyncWriteExt as _;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes";
const REFUSED: &str = "started live (readiness probe: nothing listens on port 80)";

#[test]
fn a_listener_is_ready_from_when_it_listens_until_it_does_not() {
    run_at(|place| async move {
        let web = place.network("web");
        // Nobody else's listeners count.
        let _gateways = listen("/proc/thread-self/ns/net".as_ref(), "127.0.0.1:80");
        let other = place.network("other");
        let _others = listen(&other, "127.0.0.1:80");
        let targets = vec![target("web", 7, Some(&web), readiness(crate::bed::tcp(80)))];
        let mut probing = Probing::start(NoCommands, targets);
        assert_eq!(probing.next().await, "started live");
        assert_eq!(probing.next().await, REFUSED);
        let begun = Instant::now();
        let listener = listen(&web, "127.0.0.1:80");
        assert_eq!(probing.next().await, "started live ready");
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());

        // It is asked on and on, and its program is told nothing of that.
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert!(probing.is_quiet());
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        let sockets = inside(&web, || fs::read_to_string("/proc/thread-self/net/tcp").unwrap());
        assert_eq!(sockets.lines().count(), 2, "only the listener: {sockets}");

        drop(listener);
        assert_eq!(probing.next().await, REFUSED);
        let _again = listen(&web, "[::1]:80");
        assert_eq!(probing.next().await, "started live ready");
        probing.end().await;
    });
}

#[test]
fn the_gateways_own_network() {
    run_alone(|_place| async move {
        let targets = vec![target("web", 7, None, readiness(crate::bed::tcp(80)))];
        let mut probing = Probing::start(NoCommands, targets);
        probing.becomes(REFUSED).await;
        let own = "/proc/thread-self/ns/net".as_ref();
        let _listener = listen(own, "127.0.0.1:80");
        probing.becomes("started live ready").await;
        assert!(!threads().iter().any(|name| name.trim() == "probes"), "{:?}", threads());
        probing.end().await;
    });
}

#[test]
fn statuses_from_200_to_399_are_good() {
    run_at(|place| async move {
        for (status, expected) in [
            (200, "started live ready"),
            (204, "started live ready"),
            (302, "started live ready"),
            (399, "started live ready"),
            (400, "started live (readiness probe: GET / answered 400)"),
            (503, "started live (readiness probe: GET / answered 503)"),
            (101, "started live (readiness probe: GET / answered 101)"),
        ] {
            let web = place.network(&format!("web-{status}"));
            let said = format!("HTTP/1.1 {status} Whatever\r\n\r\n");
            let _server = answer(listen(&web, "127.0.0.1:80"), said);
            let targets = vec![target("web", 7, Some(&web), readiness(http(80, "/")))];
            let mut probing = Probing::start(NoCommands, targets);
            assert_eq!(probing.next().await, "started live");
            assert_eq!(probing.next().await, expected);
            probing.end().await;
        }
    });
}

#[test]
fn a_request_is_as_ordered_and_a_change_is_noticed() {
    run_at(|place| async move {
        let web = place.network("web");
        let (sender, mut requests) = mpsc::channel(1);
        let healthy = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let is_healthy = Arc::clone(&healthy);
        let _server = serve(listen(&web, "0.0.0.0:8080"), move |mut stream| {
            let (sender, is_healthy) = (sender.clone(), Arc::clone(&is_healthy));
            async move {
                let request = read_request(&mut stream).await;
                sender.try_send(request).ok();
                let good = is_healthy.load(std::sync::atomic::Ordering::Relaxed);
                let said = if good { OK } else { b"HTTP/1.0 500 Oh\r\n\r\n" };
                stream.write_all(said).await.unwrap();
            }
        });
        let headers: BTreeMap<_, _> = [("X-Probe".to_owned(), "a b".to_owned())].into();
        let check = Check::Http { port: 8080, path: "/live?x=1".into(), headers };
        let probes = Probes { liveness: probe(check), ..Probes::default() };
        let mut probing = Probing::start(NoCommands, vec![target("web", 7, Some(&web), probes)]);
        assert_eq!(probing.next().await, "started live ready");
        let request = requests.recv().await.unwrap();
        let expected = "GET /live?x=1 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: coracle\r\n\
                        Connection: close\r\nX-Probe: a b\r\n\r\n";
        assert_eq!(request, expected);
        healthy.store(false, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(
            probing.next().await,
            "started ready (liveness probe: GET /live?x=1 answered 500)"
        );
        healthy.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(probing.next().await, "started live ready");
        probing.end().await;
    });
}

#[test]
fn a_large_answer_is_read_so_that_its_server_does_not_stumble() {
    run_at(|place| async move {
        let web = place.network("web");
        let (sender, mut written) = mpsc::channel(16);
        let _server = serve(listen(&web, "127.0.0.1:80"), move |mut stream| {
            let sender = sender.clone();
            async move {
                read_request(&mut stream).await;
                stream.write_all(OK).await.unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
                let rest = stream.write_all(&[b'x'; 30_000]).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
                sender.send(rest.and(stream.write_all(b"end").await)).await.ok();
            }
        });
        let targets = vec![target("web", 7, Some(&web), readiness(http(80, "/")))];
        let mut probing = Probing::start(NoCommands, targets);
        probing.becomes("started live ready").await;
        for _ in 0..3 {
            timeout(SOON, written.recv()).await.unwrap().unwrap().unwrap();
        }
        probing.end().await;
    });
}

#[test]
fn the_startup_probe_comes_first() {
    run_at(|place| async move {
        let web = place.network("web");
        let [startup, liveness, readiness] = [81, 82, 83].map(|port| probe(crate::bed::tcp(port)));
        let probes = Probes { startup, liveness, readiness };
        let mut probing = Probing::start(NoCommands, vec![target("web", 7, Some(&web), probes)]);
        let startup = "(startup probe: nothing listens on port 81)";
        probing.becomes(&format!("live {startup}")).await;
        probing.becomes(&format!(" {startup}")).await;
        let _started = listen(&web, "127.0.0.1:81");
        probing.becomes("started live (readiness probe: nothing listens on port 83)").await;
        probing.becomes("started (liveness probe: nothing listens on port 82)").await;
        let _ready = listen(&web, "127.0.0.1:83");
        probing.becomes("started ready (liveness probe: nothing listens on port 82)").await;
        let _lives = listen(&web, "127.0.0.1:82");
        probing.becomes("started live ready").await;
        probing.end().await;
    });
}

#[test]
fn another_process_is_another_container_and_what_is_gone_is_forgotten() {
    run_alone(|place| async move {
        let descriptors_before = descriptors();
        let (web, db) = (place.network("web"), place.network("db"));
        let listener = listen(&web, "127.0.0.1:80");
        let _other = listen(&db, "127.0.0.1:80");
        let check = || readiness(crate::bed::tcp(80));
        let all = vec![target("web", 7, Some(&web), check()), target("db", 8, Some(&db), check())];
        let mut probing = Probing::start(NoCommands, all.clone());
        let mut ready = 0;
        while ready < 2 {
            ready += usize::from(probing.any().await.1.ready);
        }
        // The same list again is nothing new.
        probing.set(all.clone());
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(probing.is_quiet());

        probing.set(vec![target("web", 9, Some(&web), check()), all[1].clone()]);
        let (id, health) = probing.any().await;
        assert_eq!((id.as_str(), health.pid, health.ready), ("web.0.main", 9, false));
        let (id, health) = probing.any().await;
        assert_eq!((id.as_str(), health.pid, health.ready), ("web.0.main", 9, true));

        drop(listener);
        probing.becomes(REFUSED).await;
        // The agent that comes next takes it for ready until it is known not to be.
        let mut adopted = target("web", 9, Some(&web), check());
        adopted.before = Before { started: true, ready: true, proven: false };
        let mut next = Probing::start(NoCommands, vec![adopted]);
        assert_eq!(next.next().await, "started live ready");
        assert_eq!(next.next().await, REFUSED);
        next.end().await;

        // Other probes for the same process.
        probing.set(vec![target("web", 9, Some(&web), Probes::default())]);
        assert_eq!(probing.next().await, "started live ready");
        probing.set(Vec::new());
        probing.end().await;
        drop(_other);
        assert_eq!(descriptors(), descriptors_before);
    });
}

#[test]
fn a_namespace_goes_when_its_container_is_no_longer_asked() {
    run_at(|place| async move {
        let web = place.network("web");
        let count = || inside(&web, || fs::read_link("/proc/thread-self/ns/net").unwrap());
        count();
        let _listener = listen(&web, "127.0.0.1:80");
        let targets = vec![target("web", 7, Some(&web), readiness(crate::bed::tcp(80)))];
        let mut probing = Probing::start(NoCommands, targets);
        probing.becomes("started live ready").await;
        // It is taken away under the probes: what they have goes on.
        nix::mount::umount2(&web, nix::mount::MntFlags::MNT_DETACH).unwrap();
        let more = vec![
            target("web", 7, Some(&web), readiness(crate::bed::tcp(80))),
            target("new", 8, Some(&web), readiness(crate::bed::tcp(80))),
        ];
        probing.set(more);
        let entered = "network PATH cannot be entered: Invalid argument (os error 22)";
        let entered = entered.replace("PATH", &web.display().to_string());
        probing.becomes(&format!("started live (readiness probe: its {entered})")).await;
        fs::remove_file(&web).unwrap();
        let gone = "network PATH cannot be entered: No such file or directory (os error 2)";
        let gone = gone.replace("PATH", &web.display().to_string());
        probing.becomes(&format!("started live (readiness probe: its {gone})")).await;
        probing.end().await;
    });
}

#[test]
fn a_request_by_itself() {
    run_at(|place| async move {
        let web = place.network("web");
        let limit = Duration::from_millis(500);
        let headers = BTreeMap::new();
        let ask = async |port| request_in(Some(&web), port, "/stop", &headers, limit).await;
        let error = ask(80).await.unwrap_err();
        assert_eq!(error.to_string(), "nothing listens on port 80");
        let server = answer(listen(&web, "127.0.0.1:80"), OK);
        assert_eq!(ask(80).await.unwrap(), 200);
        drop(server);
        let _v6 = answer(listen(&web, "[::1]:81"), "HTTP/1.1 500 No\r\n\r\n");
        assert_eq!(ask(81).await.unwrap(), 500);
        let _silent = listen(&web, "127.0.0.1:82");
        assert_eq!(ask(82).await.unwrap_err().to_string(), "no answer within 0.5 s");
        let own = answer(listen("/proc/thread-self/ns/net".as_ref(), "127.0.0.1:80"), OK);
        assert_eq!(request_in(None, 80, "/", &headers, limit).await.unwrap(), 200);
        drop(own);
        let nowhere = place.path("nowhere");
        let error = request_in(Some(&nowhere), 80, "/", &headers, limit).await.unwrap_err();
        assert!(error.to_string().contains("nowhere cannot be entered"), "{error}");
    });
}
