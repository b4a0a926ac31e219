//! A container's log from its start to its end, and past the ends of everything around it.

use std::process::Command;
use std::time::{Duration, Instant};

use coracle_testbed::process::is_alive;
use coracle_testbed::wait_for;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bed::{Bed, SOON};

crate::logs_on_every_containerd!(
    what_a_container_says_is_kept_and_shown,
    nothing_around_it_ends_it_or_loses_a_line,
    a_log_that_cannot_be_written_keeps_no_container_from_starting,
);

fn what_a_container_says_is_kept_and_shown(bed: &mut Bed) {
    let id = "web.0.main";
    let script = "echo one; sleep 0.2; echo two >&2; printf 'no end'";
    bed.start(id, script);
    bed.ended(id, SOON);
    bed.remove(id);
    wait_for("the logger to end", SOON, || bed.logger(id).is_none().then_some(())).unwrap();
    assert_eq!(bed.texts(id), ["one", "two", "no end"]);
    bed.start(id, "echo three; sleep 600");
    wait_for("the second run", SOON, || bed.printed(&["web"]).contains("three").then_some(()))
        .unwrap();
    assert_eq!(bed.printed(&["web"]), "three\n");
    assert_eq!(bed.printed(&["web", "--previous"]), "one\ntwo\nno end");
    assert_eq!(bed.printed(&["web.0.main", "--all", "--tail", "2"]), "no end\nthree\n");
    assert_eq!(bed.printed(&["web.0", "-p", "--stream", "stderr"]), "two\n");
    assert!(bed.printed(&[]).contains("web.0.main"));
}

fn nothing_around_it_ends_it_or_loses_a_line(bed: &mut Bed) {
    let id = "web.0.main";
    bed.start(
        id,
        "i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); usleep 10000; done; sleep 600",
    );
    let logger = bed.logger(id).unwrap();
    let status = |file: &str| std::fs::read_to_string(format!("/proc/{logger}/{file}")).unwrap();
    assert_eq!(std::fs::read_link(format!("/proc/{logger}/cwd")).unwrap().to_str(), Some("/"));
    // Where it may (CAP_SYS_RESOURCE), it is the last to be killed for want of memory.
    let allowed = "echo -998 >/proc/self/oom_score_adj";
    if Command::new("sh").args(["-c", allowed]).output().unwrap().status.success() {
        assert_eq!(status("oom_score_adj").trim(), "-998");
    }
    bed.containerd.kill().unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGPIPE] {
        kill(Pid::from_raw(logger), signal).unwrap();
    }
    bed.containerd.start_again().unwrap();
    bed.containerd.restart().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    for shim in bed.containerd.shims() {
        bed.containerd.kill_shim(shim).unwrap();
    }
    // Killing the shim makes containerd kill the container: later than the last line, as a rule, but
    // that is not for us to say. What was said by then is kept, without a hole.
    wait_for("the logger to end", SOON, || (!is_alive(logger)).then_some(())).unwrap();
    let texts = bed.texts(id);
    assert!(texts.len() > 10, "{}", texts.len());
    let expected = (0..texts.len()).map(|number| format!("line {number}"));
    assert_eq!(texts, expected.collect::<Vec<_>>());
    bed.containerd.ctr(&["--namespace", "coracle-test", "containers", "rm", id]).ok();
    // Without its shim being killed, to the last line.
    let id = "web.1.main";
    bed.start(id, "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); usleep 10000; done");
    bed.containerd.kill().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    bed.containerd.start_again().unwrap();
    bed.ended(id, SOON);
    bed.remove(id);
    let expected = (0..200).map(|number| format!("line {number}"));
    assert_eq!(bed.texts(id), expected.collect::<Vec<_>>());
}

fn a_log_that_cannot_be_written_keeps_no_container_from_starting(bed: &mut Bed) {
    bed.config.dir = Some("/proc/no-such-directory".into());
    let id = "web.0.main";
    // More than the pipe holds.
    bed.start(id, "yes | head -c 1000000; exit 7");
    bed.ended(id, SOON);
    let begun = Instant::now();
    bed.remove(id);
    assert!(begun.elapsed() < Duration::from_secs(5), "removed in {:?}", begun.elapsed());
    assert_eq!(bed.logger(id), None);
}
