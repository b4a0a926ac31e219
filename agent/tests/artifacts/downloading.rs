//! Downloads that break, stall, lie and go on.

use std::fs;

use coracle::artifacts::{ArtifactError, HttpError};
use coracle::config::ArtifactLimits;
use coracle_core::backoff::Retry;
use coracle_testbed::faulty::Fault;

use crate::bed::{Bed, ID, ZIP, chain, files, id, pinned, wanted};
use crate::zips::{Entry, noise, zip};

const LENGTH: usize = 600_000;

fn content(head: &[u8]) -> Vec<u8> {
    zip(&[Entry::stored("head", head), Entry::stored("noise", &noise(LENGTH))])
}

/// The ranges that were asked for, of the ZIP itself.
fn ranges(bed: &Bed) -> Vec<Option<String>> {
    let zips = bed.server.requests().into_iter().filter(|seen| seen.path == ZIP);
    zips.map(|seen| seen.range).collect()
}

fn part(bed: &Bed) -> Vec<u64> {
    let dir = fs::read_dir(bed.prefix.path().join("downloads")).unwrap();
    let paths = dir.map(|entry| entry.unwrap().path());
    let zips = paths.filter(|path| path.extension().is_some_and(|end| end == "zip"));
    zips.map(|path| fs::metadata(path).unwrap().len()).collect()
}

#[test]
fn a_broken_download_goes_on_at_once_and_after_a_restart() {
    let bed = Bed::new();
    let digest = bed.serve(&content(b"1"));
    bed.server.fail(ZIP, 2, Fault::CutAfter(150_000));
    bed.install_ref(&pinned(ID, &digest)).unwrap();
    let expected = [None, Some("bytes=150000-".to_owned()), Some("bytes=300000-".to_owned())];
    assert_eq!(ranges(&bed), expected);
    let seen = bed.server.requests();
    let tag = seen.iter().filter_map(|seen| seen.if_range.clone()).collect::<Vec<_>>();
    assert_eq!(tag, vec![format!("\"{digest}\""); 2]);

    // As often as it comes further, up to a bound; the next agent goes on.
    let bed = Bed::new();
    bed.serve(&content(b"1"));
    bed.server.fail(ZIP, 7, Fault::CutAfter(70_000));
    let error = bed.install_ref(&pinned(ID, &digest)).unwrap_err();
    assert!(chain(&error).contains("broke"), "{}", chain(&error));
    assert_eq!(error.retry(), Retry::Backoff);
    assert_eq!(part(&bed), [6 * 70_000]);
    bed.install_ref(&pinned(ID, &digest)).unwrap();
    assert_eq!(ranges(&bed).len(), 8);
    assert_eq!(ranges(&bed)[6], Some("bytes=420000-".to_owned()));
    assert!(part(&bed).is_empty());
}

#[test]
fn silence_is_an_interruption_and_no_progress_ends_the_tries() {
    let bed = Bed::new();
    let digest = bed.serve(&content(b"1"));
    bed.server.fail(ZIP, 1, Fault::StallAfter(100_000));
    bed.server.fail(ZIP, 1, Fault::CutAfter(0));
    let error = bed.install_ref(&pinned(ID, &digest)).unwrap_err();
    assert!(matches!(&error, ArtifactError::Http { .. }), "{error}");
    assert_eq!(ranges(&bed).len(), 2);
    assert_eq!(part(&bed), [100_000]);
    bed.server.fail(ZIP, 1, Fault::Hang);
    let error = bed.install_ref(&pinned(ID, &digest)).unwrap_err();
    let silent = matches!(error, ArtifactError::Http { source: HttpError::Silent { .. }, .. });
    assert!(silent);
    assert_eq!(part(&bed), [100_000], "what has come stays");
    bed.install_ref(&pinned(ID, &digest)).unwrap();
}

#[test]
fn a_first_try_without_a_byte_leaves_nothing() {
    let bed = Bed::new();
    let digest = bed.serve(&content(b"1"));
    bed.server.fail(ZIP, 1, Fault::CutAfter(0));
    bed.install_ref(&pinned(ID, &digest)).unwrap_err();
    assert!(files(bed.tree()).is_empty());
    drop(bed.server);
    let gone = Bed::new();
    let error = Bed { server: gone.server, ..bed }.install(ID).unwrap_err();
    assert!(matches!(error, ArtifactError::Http { .. }), "{error}");
    assert!(chain(&error).contains("cannot connect to"), "{}", chain(&error));
}

#[test]
fn a_server_that_cannot_go_on_is_asked_for_all_of_it() {
    for fault in [Fault::NoRanges, Fault::RangeRefused] {
        let bed = Bed::new();
        let digest = bed.serve(&content(b"1"));
        bed.server.fail(ZIP, 1, Fault::CutAfter(150_000));
        bed.server.fail_always(ZIP, fault.clone());
        bed.install_ref(&pinned(ID, &digest)).unwrap();
        let asked = ranges(&bed);
        let expected = if fault == Fault::NoRanges { 2 } else { 3 };
        assert_eq!(asked.len(), expected, "{fault:?}: {asked:?}");
    }
}

#[test]
fn what_changed_meanwhile_is_not_put_together() {
    // With another tag the server gives all of it.
    let bed = Bed::new();
    bed.serve(&content(b"1"));
    bed.server.fail(ZIP, 7, Fault::CutAfter(60_000));
    bed.install(ID).unwrap_err();
    bed.server.heal();
    let digest = bed.serve(&content(b"2"));
    let installed = bed.install(ID).unwrap();
    assert_eq!(installed.digest.as_str(), digest);

    // One that pays no heed is found out by the tag of its answer, or by the digest at the end.
    for (tag, answers) in [(true, "the rest of another, all of it"), (false, "the same")] {
        let bed = Bed::new();
        let digest = bed.serve(&content(b"2"));
        bed.server.put_file(ZIP, &content(b"1"));
        bed.server.fail(ZIP, 1, Fault::CutAfter(60_000));
        bed.server.fail(ZIP, 1, Fault::Status(500));
        bed.install_ref(&pinned(ID, &digest)).unwrap_err();
        assert_eq!(part(&bed), [60_000]);
        let asked = ranges(&bed).len();
        bed.serve(&content(b"2"));
        bed.server.fail(ZIP, 1, Fault::AnyRange { tag });
        bed.install_ref(&pinned(ID, &digest)).unwrap();
        assert_eq!(&ranges(&bed)[asked..], [Some("bytes=60000-".to_owned()), None], "{answers}");
    }
}

#[test]
fn what_was_put_together_wrong_is_fetched_anew_at_once_and_only_once() {
    let bed = Bed::new();
    let good = content(b"1");
    let digest = bed.serve(&good);
    bed.server.fail(ZIP, 7, Fault::CutAfter(60_000));
    bed.install_ref(&pinned(ID, &digest)).unwrap_err();
    bed.server.heal();
    // As after a power cut: the end of it never reached the disk.
    let dir = bed.prefix.path().join("downloads");
    let path = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let path = path.into_iter().find(|path| path.extension().unwrap() == "zip").unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[350_000..].fill(0);
    fs::write(&path, &bytes).unwrap();
    let asked = ranges(&bed).len();
    bed.install_ref(&pinned(ID, &digest)).unwrap();
    let now = ranges(&bed);
    assert_eq!(&now[asked..], [Some("bytes=360000-".to_owned()), None]);

    let bed = Bed::new();
    let digest = bed.serve(&good);
    bed.server.fail(ZIP, 1, Fault::CutAfter(60_000));
    bed.server.fail_always(ZIP, Fault::WrongBytes);
    let error = bed.install_ref(&pinned(ID, &digest)).unwrap_err();
    assert!(matches!(error, ArtifactError::Digest { .. }), "{error}");
    assert_eq!(ranges(&bed).len(), 3);
    assert!(files(bed.tree()).is_empty());
}

#[test]
fn lengths_that_lie_and_contents_without_an_end_are_bounded() {
    let limits = ArtifactLimits { zip_mib: 1, ..ArtifactLimits::default() };
    let small = content(b"1");
    let large = zip(&[Entry::stored("noise", &noise(2 << 20))]);
    for (zip, fault, expected) in [
        (&large, None, "artifacts.limits.zip_mib allows 1048576"),
        (&large, Some(Fault::Chunked), "artifacts.limits.zip_mib allows 1048576"),
        (&small, Some(Fault::Endless), "artifacts.limits.zip_mib allows 1048576"),
    ] {
        let bed = Bed::new().with_limits(limits);
        let digest = bed.serve(zip);
        if let Some(fault) = &fault {
            bed.server.fail_always(ZIP, fault.clone());
        }
        let error = bed.install_ref(&pinned(ID, &digest)).unwrap_err();
        assert!(error.to_string().contains(expected), "{fault:?}: {error}");
        assert_eq!(error.retry(), Retry::Rarely);
        assert!(files(bed.tree()).is_empty(), "{fault:?}");
    }
    // A whole one without a length is as good as another.
    let bed = Bed::new();
    let digest = bed.serve(&small);
    bed.server.fail_always(ZIP, Fault::Chunked);
    bed.install_ref(&pinned(ID, &digest)).unwrap();
    // One that never has as much as it says never ends, and is not asked without end.
    let bed = Bed::new();
    let digest = bed.serve(&small);
    bed.server.fail_always(ZIP, Fault::LongerThanSent(10));
    let error = bed.install_ref(&pinned(ID, &digest)).unwrap_err();
    assert_eq!(error.retry(), Retry::Backoff, "{error}");
    assert!(ranges(&bed).len() < 5, "{:?}", ranges(&bed));
}

#[test]
fn downloads_that_nobody_goes_on_with_do_not_pile_up() {
    let bed = Bed::new();
    let digest = bed.serve(&content(b"1"));
    for version in 0..12 {
        let path = format!("/org/example/gauge/{version}/gauge-{version}.zip");
        bed.serve_at(&path, &content(b"1"));
        bed.server.fail(&path, 1, Fault::Status(404));
        bed.server.fail(&path, 6, Fault::CutAfter(10_000));
        bed.install_ref(&pinned(&format!("org.example:gauge:{version}"), &digest)).unwrap_err();
        bed.install_ref(&pinned(&format!("org.example:gauge:{version}"), &digest)).unwrap_err();
    }
    assert_eq!(part(&bed).len(), 8);
    assert!(bed.install_ref(&wanted("org.example:gauge:11")).is_ok());
    assert!(bed.artifacts().directory(&id("org.example:gauge:11")).exists());
}
