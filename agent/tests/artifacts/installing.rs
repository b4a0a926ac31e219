//! What is installed, what is refused, and what is left of it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use coracle::artifacts::{ArtifactError, Artifacts, InstalledBy, Phase, Progress};
use coracle::config::{ArtifactsConfig, Layout, RepositoryConfig};
use coracle_core::artifact::ArtifactRef;
use coracle_core::backoff::Retry;
use coracle_testbed::Pki;
use coracle_testbed::faulty::Fault;
use tokio::sync::watch;

use crate::bed::{
    Bed, ID, ZIP, artifacts, chain, files, id, install, pinned, repository, run, tree, wanted,
};
use crate::tls_front::tls_front;
use crate::zips::{Entry, good, noise, zip};

#[test]
fn what_is_installed_is_read_only_and_says_what_it_is() {
    let bed = Bed::new();
    let zip = good();
    let digest = bed.serve(&zip);
    let before = coracle::clock::wall_now().as_secs();
    let installed = bed.install(ID).unwrap();
    assert_eq!(installed.digest.as_str(), digest);
    assert_eq!(installed.zip_bytes, zip.len() as u64);
    assert_eq!((installed.unpacked_bytes, installed.entries), (12 + 9 + 9, 5));
    assert!(installed.installed_at.unix() >= before);
    assert_eq!(installed.by, InstalledBy::Order);

    let artifacts = bed.artifacts();
    let dir = artifacts.directory(&id(ID));
    assert_eq!(dir, bed.prefix.path().join("software/org.example/gauge/1.4.2"));
    let mut found = tree(&dir);
    let record = found.remove(".coracle-artifact.json").unwrap();
    assert!(record.starts_with("444 0:0 "), "{record}");
    let expected = [
        ("bin/", "555 0:0"),
        ("bin/gauge", "555 0:0 #!/bin/true\n"),
        ("etc/", "555 0:0"),
        ("etc/gauge.conf", "444 0:0 rate = 5\n"),
        ("gauge", "-> bin/gauge 0"),
    ];
    let expected = expected.map(|(path, what)| (path.to_owned(), what.to_owned()));
    assert_eq!(found.into_iter().collect::<Vec<_>>(), expected);
    let above = bed.tree();
    for (path, rights) in [
        ("software/", "755 0:0"),
        ("software/org.example/gauge/", "755 0:0"),
        ("software/org.example/gauge/1.4.2/", "555 0:0"),
        ("downloads/", "700 0:0"),
    ] {
        assert_eq!(above[path], rights, "{path}");
    }
    assert_eq!(fs::read_dir(bed.prefix.path().join("downloads")).unwrap().count(), 0);
    assert_eq!(artifacts.list().unwrap(), [(id(ID), installed)].into());

    run(artifacts.remove(&id(ID))).unwrap();
    assert_eq!(bed.tree().into_keys().collect::<Vec<_>>(), ["downloads/", "software/"]);
    assert!(artifacts.list().unwrap().is_empty());
    let error = run(artifacts.remove(&id(ID))).unwrap_err();
    assert_eq!(error.to_string(), format!("{ID} is not installed"));
}

#[test]
fn the_same_again_needs_no_network_and_another_content_is_refused() {
    let bed = Bed::new();
    let digest = bed.serve(&good());
    let first = bed.install(ID).unwrap();
    let before = bed.tree();
    let asked = bed.server.count("");
    assert_eq!(bed.install(ID).unwrap(), first);
    assert_eq!(bed.install_ref(&pinned(ID, &digest)).unwrap(), first);
    bed.serve(&zip(&[Entry::file("other", b"x")]));
    assert_eq!(bed.install(ID).unwrap(), first);
    let other = format!("sha256:{}", "0".repeat(64));
    let error = bed.install_ref(&pinned(ID, &other)).unwrap_err();
    assert!(matches!(error, ArtifactError::OtherDigest { .. }), "{error}");
    assert!(error.to_string().contains("a version is never written over"), "{error}");
    assert_eq!(error.retry(), Retry::Rarely);
    assert_eq!((bed.server.count(""), bed.tree()), (asked, before));
}

#[test]
fn what_somebody_wants_by_hand_is_noted_and_stays_so() {
    let bed = Bed::new();
    bed.serve(&good());
    bed.install(ID).unwrap();
    let artifacts = bed.artifacts();
    let by = |artifacts: &Artifacts| artifacts.list().unwrap()[&id(ID)].by;
    assert_eq!(by(&artifacts), InstalledBy::Order);
    assert_eq!(run(artifacts.keep(&id(ID))).unwrap().by, InstalledBy::Hand);
    assert_eq!(bed.install(ID).unwrap().by, InstalledBy::Hand);
    assert_eq!(by(&artifacts), InstalledBy::Hand);
    let error = run(artifacts.keep(&id("a:b:1"))).unwrap_err();
    assert!(matches!(error, ArtifactError::NotInstalled { .. }), "{error}");

    let progress = watch::Sender::new(Progress::default());
    bed.serve_at("/org/example/gauge/2/gauge-2.zip", &good());
    let two = wanted("org.example:gauge:2");
    let installed = run(artifacts.install(&two, InstalledBy::Hand, &progress)).unwrap();
    assert_eq!(installed.by, InstalledBy::Hand);
}

#[test]
fn versions_are_side_by_side_and_removed_one_by_one() {
    let bed = Bed::new();
    for version in ["1", "2", "2+b.1"] {
        let path = format!("/org/example/gauge/{version}/gauge-{version}.zip");
        bed.serve_at(&path, &zip(&[Entry::file("version", version.as_bytes())]));
        bed.install(&format!("org.example:gauge:{version}")).unwrap();
    }
    let artifacts = bed.artifacts();
    assert_eq!(artifacts.list().unwrap().len(), 3);
    run(artifacts.remove(&id("org.example:gauge:2"))).unwrap();
    let dir = artifacts.directory(&id("org.example:gauge:2+b.1"));
    assert_eq!(fs::read_to_string(dir.join("version")).unwrap(), "2+b.1");
    assert_eq!(artifacts.list().unwrap().len(), 2);
}

#[test]
fn repositories_are_asked_in_turn_and_each_as_it_is_laid_out() {
    let mut bed = Bed::new();
    let base = format!("http://{}", bed.server.address());
    bed.config.repositories = vec![
        repository(&format!("{base}/first/")),
        RepositoryConfig { layout: Layout::Flat, ..repository(&format!("{base}/flat")) },
    ];
    let error = bed.install(ID).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "artifact {ID} is not there: asked for {base}/first{ZIP}, \
             {base}/flat/org.example-gauge-1.4.2.zip"
        )
    );
    assert_eq!(error.retry(), Retry::Rarely);
    assert!(bed.tree().is_empty());
    bed.serve_at("/flat/org.example-gauge-1.4.2.zip", &good());
    bed.install(ID).unwrap();

    // A server that is ill is not one that has nothing.
    bed.server.fail("/first/", 1, Fault::Status(503));
    let error = bed.install("org.example:gauge:9").unwrap_err();
    assert!(matches!(error, ArtifactError::Answered { status: 503, .. }), "{error}");
    assert_eq!(error.retry(), Retry::Backoff);
    bed.server.fail("/first/", 1, Fault::TooManyRequests(Some(7)));
    let error = bed.install("org.example:gauge:9").unwrap_err();
    assert_eq!(error.retry(), Retry::After(Duration::from_secs(7)));
    bed.server.fail("/first/", 1, Fault::Unauthorized);
    let error = bed.install("org.example:gauge:9").unwrap_err();
    assert!(error.to_string().contains("credentials are not configured"), "{error}");
}

#[test]
fn a_digest_comes_from_the_order_or_from_beside_the_zip_or_it_is_refused() {
    let bed = Bed::new();
    let digest = bed.server.put_file(ZIP, &good());
    let error = bed.install(ID).unwrap_err();
    assert!(matches!(error, ArtifactError::NoDigest { .. }), "{error}");
    assert!(error.to_string().contains(&format!("{ZIP}.sha256 is not there")), "{error}");
    assert_eq!(error.retry(), Retry::Rarely);
    bed.server.put_file(&format!("{ZIP}.sha256"), b"<html>not found</html>");
    let error = bed.install(ID).unwrap_err();
    assert!(matches!(error, ArtifactError::DigestFile { .. }), "{error}");
    let wrong = format!("{}  gauge-1.4.2.zip\n", "0".repeat(64));
    bed.server.put_file(&format!("{ZIP}.sha256"), wrong.as_bytes());
    let asked = bed.server.count(ZIP);
    let error = bed.install(ID).unwrap_err();
    assert!(matches!(error, ArtifactError::Digest { .. }), "{error}");
    assert!(error.to_string().contains(&digest), "{error}");
    assert_eq!(error.retry(), Retry::Rarely);
    assert_eq!(bed.server.count(ZIP) - asked, 2, "it came in one piece, and is not fetched again");
    assert!(files(bed.tree()).is_empty(), "{:?}", bed.tree());
    // What the order says counts.
    bed.install_ref(&pinned(ID, &digest)).unwrap();
}

#[test]
fn an_order_may_name_a_repository_that_is_safe_to_ask() {
    let mut bed = Bed::new();
    let base = format!("http://{}", bed.server.address());
    let digest = bed.serve(&good());
    let from = |url: &str| ArtifactRef { repository: Some(url.into()), ..pinned(ID, &digest) };
    bed.config.repositories.clear();
    for (url, expected) in [
        (base.as_str(), "plain HTTP"),
        ("ftp://x", "not an https URL"),
        ("https://x/?a=b", "not an https URL"),
    ] {
        let error = bed.install_ref(&from(url)).unwrap_err();
        assert!(error.to_string().contains(expected), "{url}: {error}");
        assert_eq!(error.retry(), Retry::Rarely);
    }
    let error = bed.install(ID).unwrap_err();
    assert!(error.to_string().contains("has no repository"), "{error}");
    assert_eq!(bed.server.count(""), 0);
    bed.config.repositories = vec![repository(&format!("{base}/other"))];
    bed.install_ref(&from(&base)).unwrap();
}

#[test]
fn over_tls_only_who_is_vouched_for_is_asked_and_nobody_leads_to_plain_http() {
    let mut bed = Bed::new();
    let pki = Pki::new(&bed.prefix.path().join("pki")).unwrap();
    bed.serve(&good());
    run(async {
        let port = tls_front(&pki, bed.server.address()).await;
        let url = format!("https://localhost:{port}");
        let plain = bed.config.repositories.remove(0);
        bed.config.repositories = vec![repository(&url)];
        let error = install(&bed.artifacts(), &wanted(ID)).await.unwrap_err();
        assert!(chain(&error).contains("certificate"), "{}", chain(&error));
        assert_eq!(error.retry(), Retry::Backoff);

        let trusted = RepositoryConfig { ca: Some(pki.ca()), ..repository(&url) };
        bed.config.repositories = vec![trusted, plain.clone()];
        bed.server.fail(".zip", 1, Fault::Redirect(format!("{}{ZIP}", plain.url)));
        let error = install(&bed.artifacts(), &wanted(ID)).await.unwrap_err();
        assert!(chain(&error).contains("from HTTPS to plain HTTP"), "{}", chain(&error));
        bed.server.fail(".sha256", 1, Fault::Redirect(format!("{url}{ZIP}")));
        let error = install(&bed.artifacts(), &wanted(ID)).await.unwrap_err();
        assert!(matches!(error, ArtifactError::DigestFile { .. }), "{error}");
        let digest = bed.server.put_file("/elsewhere.zip", &good());
        bed.server.take_file(ZIP);
        bed.server.fail(ZIP, 1, Fault::Redirect(format!("{url}/elsewhere.zip")));
        install(&bed.artifacts(), &pinned(ID, &digest)).await.unwrap();
    });
}

#[test]
fn certificates_that_cannot_be_read_are_told_and_left_out() {
    let ca = Some("/nonexistent/ca.pem".into());
    let repositories = vec![RepositoryConfig { ca, ..repository("https://repo.example") }];
    let config = ArtifactsConfig { repositories, ..ArtifactsConfig::default() };
    let (_, troubles) = Artifacts::new("/nonexistent".into(), &config).unwrap();
    let text = troubles[0].to_string();
    assert!(text.contains("https://repo.example") && text.contains("ca.pem"), "{text}");
}

#[test]
fn at_the_same_time_the_same_is_fetched_once_and_others_do_not_wait() {
    let bed = Bed::new();
    let large = zip(&[Entry::stored("noise", &noise(300_000))]);
    bed.serve(&large);
    bed.serve_at("/org/example/meter/1/meter-1.zip", &good());
    bed.server.fail("gauge-1.4.2.zip", 2, Fault::Slow(600_000));
    let artifacts = bed.artifacts();
    run(async {
        let (first, second, other) = (wanted(ID), wanted(ID), wanted("org.example:meter:1"));
        let begun = Instant::now();
        let other = async {
            let done = install(&artifacts, &other).await;
            (done, begun.elapsed())
        };
        let (first, second, (other, after)) =
            tokio::join!(install(&artifacts, &first), install(&artifacts, &second), other);
        assert_eq!(first.unwrap(), second.unwrap());
        other.unwrap();
        assert!(after < begun.elapsed());
    });
    assert_eq!(bed.server.count(ZIP), 2);
}

#[test]
fn progress_is_told_and_what_is_dropped_leaves_no_half_tree() {
    let bed = Bed::new();
    let content: Vec<_> = (0..40).map(|n| format!("files/{n}")).collect();
    let entries: Vec<_> = content.iter().map(|name| Entry::stored(name, &noise(200_000))).collect();
    bed.serve(&zip(&entries));
    let artifacts = bed.artifacts();
    let (gauge, mut seen) = (wanted(ID), Vec::new());
    // Dropped in each phase, later and later.
    for phase in [Phase::Downloading, Phase::Verifying, Phase::Unpacking] {
        let (progress, mut told) = watch::channel(Progress::default());
        run(async {
            let reached = async {
                loop {
                    told.changed().await.unwrap();
                    let now = *told.borrow_and_update();
                    let far = now.bytes_done > 0 || phase == Phase::Verifying;
                    if now.phase == phase && far {
                        return now;
                    }
                }
            };
            tokio::select! {
                done = artifacts.install(&gauge, InstalledBy::Order, &progress) => {
                    done.unwrap();
                }
                now = reached => seen.push(now),
            }
        });
        assert!(artifacts.list().unwrap().is_empty(), "{phase:?}");
        assert!(!artifacts.directory(&id(ID)).exists(), "{phase:?}");
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
    let (asked, total) = (bed.server.count(ZIP), entries.len() as u64 * 200_000);
    assert_eq!(seen[2].bytes_total, Some(total));
    let installed = run(install(&artifacts, &wanted(ID))).unwrap();
    assert_eq!(installed.unpacked_bytes, total);
    assert_eq!(bed.server.count(ZIP), asked + 1, "only the digest was asked for again");
    assert_eq!(names_below(&bed.prefix.path().join("software")), ["org.example"]);
    assert!(names_below(&bed.prefix.path().join("downloads")).is_empty());
}

fn names_below(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).collect()
}

#[test]
fn an_installed_one_that_says_nothing_of_itself_is_left_alone_until_it_is_removed() {
    let bed = Bed::new();
    bed.serve(&good());
    bed.install(ID).unwrap();
    let artifacts = bed.artifacts();
    let record = artifacts.directory(&id(ID)).join(".coracle-artifact.json");
    fs::write(&record, "{").unwrap();
    let before = bed.tree();
    let error = bed.install(ID).unwrap_err();
    assert!(matches!(error, ArtifactError::Record { .. }), "{error}");
    assert_eq!(bed.tree(), before);
    assert!(artifacts.list().unwrap().is_empty());
    fs::remove_file(&record).unwrap();
    assert!(matches!(bed.install(ID), Err(ArtifactError::Record { .. })));
    run(artifacts.remove(&id(ID))).unwrap();
    bed.install(ID).unwrap();
}

#[test]
fn what_a_crash_left_is_swept_and_what_is_going_on_is_not() {
    let bed = Bed::new();
    bed.serve(&good());
    bed.install(ID).unwrap();
    let settled = bed.tree();
    for dir in ["software/.new-x/a", "software/.gone-3/a", "software/lost/name", "runtime/.new-y"] {
        fs::create_dir_all(bed.prefix.path().join(dir)).unwrap();
    }
    for name in ["lone.zip", "other.json", "x.json.new-"] {
        fs::write(bed.prefix.path().join("downloads").join(name), "x").unwrap();
    }
    run(bed.artifacts().sweep()).unwrap();
    let mut left = bed.tree();
    left.remove("runtime/");
    assert_eq!(left, settled);
    let none = tempfile::tempdir().unwrap();
    run(artifacts(none.path(), &ArtifactsConfig::default()).sweep()).unwrap();
    assert!(tree(none.path()).is_empty());
}

/// Installing and filling are tasks beside others.
#[test]
fn work_may_be_done_on_any_thread() {
    fn is_send<T: Send>(_: &T) {}
    let bed = Bed::new();
    let (artifacts, gauge) = (bed.artifacts(), wanted(ID));
    let progress = watch::Sender::new(Progress::default());
    is_send(&artifacts.install(&gauge, InstalledBy::Order, &progress));
    let (dirs, at) = (artifacts.runtime_dirs(), crate::runtime::at("a.b.c.d"));
    is_send(&dirs.ensure(&at, (0, 0), &[]));
}
