//! A container that writes as much as it can, its neighbours, and what a log costs a start.

use std::time::{Duration, Instant};

use coracle_testbed::Version;

use crate::bed::{Bed, run};

const MB: u64 = 1_000_000;

#[test]
fn a_loud_container_fills_no_disk_keeps_its_newest_lines_and_harms_no_neighbour() {
    run(Version::V1_7, |bed: &mut Bed| {
        bed.config.total_mib = 3;
        let quiet = ["quiet.0.main", "quiet.1.main", "quiet.2.main"];
        for id in quiet {
            bed.start(id, "i=0; while :; do echo line $i; i=$((i+1)); usleep 50000; done");
        }
        std::thread::sleep(Duration::from_secs(3));
        let alone = quiet.map(|id| bed.texts(id).len());
        let (bytes, line) = (300 * MB, "x".repeat(99));
        let begun = Instant::now();
        bed.start(
            "loud.0.main",
            &format!("yes {line} | head -c {bytes}; seq 1 20000; echo the end"),
        );
        let mut most = 0;
        let logger = bed.logger("loud.0.main").unwrap();
        while bed.texts("loud.0.main").last().is_none_or(|text| text != "the end") {
            most = most.max(bed.used());
            std::thread::sleep(Duration::from_millis(50));
            assert!(begun.elapsed() < Duration::from_secs(60));
        }
        let took = begun.elapsed().as_secs_f64();
        println!(
            "loud: {:.0} MB/s sustained, at most {} KiB used",
            bytes as f64 / 1e6 / took,
            most / 1024
        );
        let during = quiet.map(|id| bed.texts(id).len());
        // Each line is the one after the one before: none is missing, however loud it was.
        let kept = bed.texts("loud.0.main");
        let numbers = kept[kept.len() - 20_001..kept.len() - 1].iter();
        assert!(
            numbers.eq((1..=20_000).map(|number| number.to_string()).collect::<Vec<_>>().iter())
        );
        assert!(most <= 3 * 1024 * 1024, "{most}");
        for (id, (alone, during)) in quiet.iter().zip(alone.into_iter().zip(during)) {
            let texts = bed.texts(id);
            assert_eq!(texts, (0..texts.len()).map(|n| format!("line {n}")).collect::<Vec<_>>());
            let (before, meanwhile) = (alone as f64 / 3.0, (during - alone) as f64 / took);
            println!("{id}: {before:.1} lines/s alone, {meanwhile:.1} lines/s beside it");
            assert!(meanwhile > before / 3.0, "{before} {meanwhile}");
        }
        let smaps = std::fs::read_to_string(format!("/proc/{logger}/smaps_rollup")).unwrap();
        let private = smaps.lines().filter(|line| line.starts_with("Private_"));
        let private =
            private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        println!("its logger holds {} kB of its own", private.sum::<u64>());
    });
}
