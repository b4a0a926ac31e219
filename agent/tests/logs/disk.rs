//! Disks that are full, read-only or not there. What is said then is counted, never waited for.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_log::line::{Line, Stream};
use coracle_testbed::{Place, Version, wait_for};
use nix::mount::{MsFlags, mount};

use crate::bed::{self, Bed, SOON, texts};
use crate::process::{Logger, kept};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

fn small_disk(at: &Path) {
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
}

/// A file system of 1 MiB of a place of its own.
fn disk() -> (Place, PathBuf) {
    let place = Place::new().unwrap();
    let dir = place.data().join("logs");
    fs::create_dir(&dir).unwrap();
    small_disk(&dir);
    (place, dir)
}

/// Fills a file system to its last byte.
fn fill(dir: &Path) -> PathBuf {
    let path = dir.join("filler");
    let mut file = File::create(&path).unwrap();
    for size in [64 * 1024, 4096] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    path
}

fn numbered(from: u64, to: u64) -> Vec<u8> {
    (from..to).flat_map(|n| format!("line {n} {}\n", "x".repeat(80)).into_bytes()).collect()
}

/// The number of a line of [`numbered`].
fn number(text: &str) -> u64 {
    text.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Lines that are said to be lost.
fn lost(kept: &[u8]) -> u64 {
    let lines = kept.split(|&byte| byte == b'\n').filter_map(Line::parse);
    let texts = lines.filter(|line| line.stream == Stream::Coracle);
    let texts = texts.map(|line| String::from_utf8_lossy(line.text).into_owned());
    let lost =
        texts.filter_map(|text| text.strip_prefix("lost ")?.split(' ').next()?.parse::<u64>().ok());
    lost.sum()
}

#[test]
fn on_a_disk_filled_by_others_older_lines_go_first_and_every_lost_one_is_counted() {
    let (place, dir) = disk();
    let mut logger = Logger::start(&dir, "web.0.main", 64 * KIB, 4, 64 * MIB);
    logger.say(&numbered(0, 2000));
    wait_for("the lines", SOON, || {
        texts(&kept(&dir, "web.0.main"))
            .last()
            .is_some_and(|text| number(text) == 1999)
            .then_some(())
    })
    .unwrap();
    let filler = fill(&dir);
    // The disk is full, and what is said is still kept, at the cost of what was said before.
    logger.say(&numbered(2000, 4000));
    wait_for("the newest lines", SOON, || {
        texts(&kept(&dir, "web.0.main"))
            .last()
            .is_some_and(|text| number(text) == 3999)
            .then_some(())
    })
    .unwrap();
    assert_eq!(lost(&kept(&dir, "web.0.main")), 0);
    logger.end();
    // Now there is nothing to give away.
    fs::remove_dir_all(dir.join("web.0.main")).unwrap();
    let mut more = File::options().append(true).open(&filler).unwrap();
    while more.write_all(&[0; 4096]).is_ok() {}
    drop(more);
    let mut logger = Logger::start(&dir, "web.0.main", 64 * KIB, 4, 64 * MIB);
    let begun = Instant::now();
    logger.say(&numbered(0, 50_000));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(texts(&kept(&dir, "web.0.main")).is_empty());
    fs::remove_file(filler).unwrap();
    // What is in the pipe, when it is read, finds room.
    logger.say(&numbered(50_000, 50_001));
    logger.end();
    let kept = kept(&dir, "web.0.main");
    let texts = texts(&kept);
    let (first, last) = (number(&texts[0]), number(texts.last().unwrap()));
    assert_eq!(last, 50_000);
    // The mark of its start is one of them.
    assert_eq!(lost(&kept), first + 1);
    assert!(first > 45_000, "{first}");
    drop(place);
}

#[test]
fn a_loud_container_on_a_small_disk_costs_a_quiet_one_nothing() {
    let (place, dir) = disk();
    // As many bytes as are allowed to each do not fit.
    let mut loud = Logger::start(&dir, "loud.0.main", MIB, 4, 64 * MIB);
    let mut quiet = Logger::start(&dir, "quiet.0.main", MIB, 4, 64 * MIB);
    for round in 0..100 {
        loud.say(&numbered(round * 1000, (round + 1) * 1000));
        quiet.say(format!("line {round}\n").as_bytes());
    }
    loud.end();
    quiet.end();
    let quiet = kept(&dir, "quiet.0.main");
    assert_eq!(lost(&quiet), 0);
    let expected = (0..100).map(|round| format!("line {round}"));
    assert_eq!(texts(&quiet), expected.collect::<Vec<_>>());
    let loud = kept(&dir, "loud.0.main");
    let numbers = texts(&loud).iter().map(|text| number(text)).collect::<Vec<_>>();
    assert_eq!(lost(&loud), 0);
    assert_eq!(numbers, (numbers[0]..100_000).collect::<Vec<_>>());
    assert!(numbers.len() > 2000, "{}", numbers.len());
    drop(place);
}

#[test]
fn a_disk_that_becomes_read_only_stops_nobody_and_the_loss_is_told() {
    let (place, dir) = disk();
    let remount =
        |flags| mount(None::<&str>, &dir, None::<&str>, MsFlags::MS_REMOUNT | flags, None::<&str>);
    let mut logger = Logger::start(&dir, "web.0.main", 64 * KIB, 4, 64 * MIB);
    logger.say(&numbered(0, 10));
    wait_for("the lines", SOON, || (texts(&kept(&dir, "web.0.main")).len() == 10).then_some(()))
        .unwrap();
    // A file that is open for writing keeps the disk from becoming read-only: a new logger has none.
    logger.end();
    remount(MsFlags::MS_RDONLY).unwrap();
    let mut logger = Logger::start(&dir, "web.0.main", 64 * KIB, 4, 64 * MIB);
    logger.ready();
    logger.say(&numbered(10, 5000));
    std::thread::sleep(Duration::from_millis(1200));
    remount(MsFlags::empty()).unwrap();
    logger.say(&numbered(5000, 5010));
    logger.end();
    let kept = kept(&dir, "web.0.main");
    let texts = texts(&kept);
    assert_eq!(texts.len(), 20);
    assert_eq!(number(&texts[10]), 5000);
    // The mark of its start is one of them.
    assert_eq!(lost(&kept), 4990 + 1);
    let told = String::from_utf8_lossy(&kept).into_owned();
    assert!(told.contains("bytes: Read-only file system (os error 30)\n"), "{told}");
    drop(place);
}

#[test]
fn containers_on_a_full_disk_run_and_end_as_elsewhere() {
    bed::run_with(Version::V1_7, small_disk, |bed: &mut Bed| {
        let filler = fill(&bed.state);
        bed.start("web.0.main", "seq 1 200000; exit 0");
        bed.ended("web.0.main", SOON);
        bed.start("web.1.main", "seq 1 200000; read x; echo after; sleep 600");
        fs::remove_file(filler).unwrap();
        bed.remove("web.0.main");
    });
}
