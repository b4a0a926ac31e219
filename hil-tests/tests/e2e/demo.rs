//! The demo: it ends well, and leaves nothing behind however it is ended.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use coracle_testbed::process::{Process, run};
use coracle_testbed::{Place, bin, place, wait_for};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(60);

fn demo(place: &Place, args: &[&str]) -> Process {
    let mut command = Command::new(bin("coracle-demo").unwrap());
    command.args(args);
    place.spawn("demo", &command).unwrap()
}

/// The name of the place that the demo made for itself.
fn its_place(demo: &mut Process) -> String {
    let log: PathBuf = demo.log_path().to_owned();
    demo.wait_until("it names its place", LIMIT, || {
        let text = std::fs::read_to_string(&log).ok()?;
        let line = text
            .lines()
            .find(|line| line.trim().starts_with('/') && line.contains("/coracle-bed."))?;
        Some(Path::new(line.trim()).file_name()?.to_str()?.to_owned())
    })
    .unwrap()
}

#[test]
fn the_demo_tells_its_story_and_leaves_nothing() {
    let place = Place::new().unwrap();
    let mut demo = demo(&place, &["--once"]);
    let name = its_place(&mut demo);
    let ended = demo.wait(LIMIT).unwrap();
    let log = demo.log();
    assert!(ended.success(), "{log}");
    assert!(log.contains("Hello from Coracle") && log.contains("Cleaned up"), "{log}");
    assert_eq!(place::leftovers(&name), Vec::<String>::new());
}

#[test]
fn interrupted_at_any_moment_and_twice_the_demo_leaves_nothing() {
    let place = Place::new().unwrap();
    for (millis, signal) in [
        (0, Signal::SIGINT),
        (150, Signal::SIGTERM),
        (400, Signal::SIGHUP),
        (900, Signal::SIGINT),
        (1500, Signal::SIGINT),
        (2200, Signal::SIGTERM),
        (3000, Signal::SIGINT),
    ] {
        let mut demo = demo(&place, &[]);
        let name = its_place(&mut demo);
        let moment = Duration::from_millis(millis);
        // Ends at the moment: nothing is waited for but time, which is what varies here.
        assert!(wait_for("", moment, || None::<()>).is_err());
        demo.signal(signal).unwrap();
        demo.signal(signal).unwrap();
        let ended = demo.wait(LIMIT).unwrap();
        assert!(matches!(ended.code(), Some(0 | 130)), "after {millis} ms: {ended}");
        assert_eq!(place::leftovers(&name), Vec::<String>::new(), "after {millis} ms");
    }
}

#[test]
fn an_image_that_cannot_be_had_is_told_with_its_reason() {
    let place = Place::new().unwrap();
    let mut demo = demo(&place, &["--image", "127.0.0.1:1/nothing:1", "--patience", "30"]);
    let name = its_place(&mut demo);
    let ended = demo.wait(LIMIT).unwrap();
    let log = demo.log();
    assert_eq!(ended.code(), Some(1), "{log}");
    assert!(log.contains("FAILED") && log.contains("127.0.0.1:1"), "{log}");
    assert_eq!(place::leftovers(&name), Vec::<String>::new());
}

#[test]
fn wrong_options_are_usage_errors_and_help_shows_examples() {
    let program = bin("coracle-demo").unwrap();
    let help = run(Command::new(&program).arg("--help"), LIMIT).unwrap();
    assert!(String::from_utf8(help).unwrap().contains("scripts/demo --once"));
    let wrong = Command::new(&program).arg("--nonsense").output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
}
