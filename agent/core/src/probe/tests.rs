//! Situations, told as what becomes known of a container and when.

use expect_test::{Expect, expect};

use super::*;
use crate::artifact::Software;
use crate::desired::Limits;
use crate::image::ImageRef;
use crate::name::ContainerName;

const TCP: Check = Check::Tcp { port: 80 };

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// Asked every 5 s, failed after three bad answers, good again after one.
fn probe() -> Probe {
    Probe {
        check: TCP,
        initial_delay: Duration::ZERO,
        period: seconds(5.0),
        timeout: seconds(1.0),
        failure_threshold: 3,
        success_threshold: 1,
    }
}

fn container(probes: Probes) -> Arc<Container> {
    Arc::new(Container {
        name: ContainerName::parse("main").unwrap(),
        software: Software::Image(ImageRef::parse("registry.example/web:1").unwrap()),
        command: None,
        args: None,
        env: Default::default(),
        working_dir: None,
        user: None,
        readonly_root: false,
        mounts: Vec::new(),
        limits: Limits::default(),
        devices: Vec::new(),
        capabilities: Default::default(),
        seccomp: Default::default(),
        probes,
    })
}

fn all(probe: &Probe) -> Probes {
    let probe = Some(probe.clone());
    Probes { startup: probe.clone(), liveness: probe.clone(), readiness: probe }
}

fn readiness(probe: Probe) -> Probes {
    Probes { readiness: Some(probe), ..Probes::default() }
}

/// One container, its answers, and the clock.
struct World<F> {
    probing: Probing,
    now: Duration,
    answers: F,
    told: Option<Health>,
    lines: String,
    asked: Vec<(Question, Duration)>,
}

impl<F: Fn(Question, f64) -> Answer> World<F> {
    fn new(probes: Probes, adopted: bool, now: f64, answers: F) -> Self {
        let now = seconds(now);
        let before = Before { started: adopted, ready: adopted, proven: false };
        let probing = Probing::new(7, container(probes), before, now);
        let (lines, asked) = Default::default();
        let mut world = Self { probing, now, answers, told: None, lines, asked };
        world.tell();
        world
    }

    /// Goes on until `end`; each question is answered at once.
    fn until(&mut self, end: f64) -> &mut Self {
        for _step in 0..10_000 {
            let next = self.probing.next_due().filter(|next| *next < seconds(end));
            let Some(next) = next else { break };
            self.now = self.now.max(next);
            let due: Vec<_> = self.probing.due(self.now).collect();
            for question in due {
                self.probing.asked(question, self.now);
                self.asked.push((question, self.now));
                let answer = (self.answers)(question, self.now.as_secs_f64());
                self.probing.answered(question, answer, self.now);
                self.tell();
            }
        }
        self.now = seconds(end);
        self
    }

    fn change(&mut self, probes: Probes) -> &mut Self {
        self.probing.change(container(probes), self.now);
        self.tell();
        self
    }

    fn tell(&mut self) {
        let health = self.probing.health();
        if self.told.as_ref() == Some(&health) {
            return;
        }
        let taken = health.ready && !health.proven;
        let words = [
            (health.started, "started"),
            (health.live, "live"),
            (health.ready && !taken, "ready"),
            (taken, "taken for ready"),
        ];
        let words: Vec<_> = words.iter().filter(|(is, _)| *is).map(|(_, word)| *word).collect();
        let message = health.message.as_ref().map(|m| format!(" ({m})")).unwrap_or_default();
        let at = self.now.as_secs_f64();
        self.lines += &format!("{at:.3} {}{message}\n", words.join(" "));
        self.told = Some(health);
    }

    fn times(&self, question: Question) -> Vec<f64> {
        let of = self.asked.iter().filter(|(asked, _)| *asked == question);
        of.map(|(_, at)| at.as_secs_f64()).collect()
    }
}

fn check(
    probes: Probes,
    adopted: bool,
    answers: impl Fn(Question, f64) -> Answer,
    end: f64,
    expected: Expect,
) {
    let mut world = World::new(probes, adopted, 100.0, answers);
    expected.assert_eq(&world.until(end).lines);
}

fn if_good(good: bool) -> Answer {
    if good { Answer::Good } else { Answer::Bad("GET / answered 503".into()) }
}

#[test]
fn who_has_no_probes_is_as_good_as_can_be() {
    check(
        Probes::default(),
        false,
        |_, _| if_good(false),
        200.0,
        expect![[r#"
        100.000 started live ready
    "#]],
    );
}

#[test]
fn a_new_container_is_not_ready_until_it_says_so_and_that_is_noticed_soon() {
    check(
        readiness(probe()),
        false,
        |_, at| if_good(at > 100.1),
        200.0,
        expect![[r#"
        100.000 started live
        100.000 started live (readiness probe: GET / answered 503)
        100.125 started live ready
    "#]],
    );
    check(
        readiness(probe()),
        false,
        |_, at| if_good(at > 102.0),
        200.0,
        expect![[r#"
        100.000 started live
        100.000 started live (readiness probe: GET / answered 503)
        102.150 started live ready
    "#]],
    );
}

#[test]
fn readiness_is_lost_by_bad_answers_in_a_row_and_comes_back_by_good_ones() {
    let lost = |_: Question, at: f64| if_good(!(120.0..145.0).contains(&at));
    check(
        readiness(probe()),
        false,
        lost,
        200.0,
        expect![[r#"
        100.000 started live
        100.000 started live ready
        130.000 started live (readiness probe: GET / answered 503)
        145.000 started live ready
    "#]],
    );
    let slow = Probe { success_threshold: 3, ..probe() };
    check(
        readiness(slow),
        false,
        lost,
        200.0,
        expect![[r#"
        100.000 started live
        110.000 started live ready
        130.000 started live (readiness probe: GET / answered 503)
        155.000 started live ready
    "#]],
    );
    let every_third = |_: Question, at: f64| if_good(!(at as u64 / 5).is_multiple_of(3));
    check(
        readiness(probe()),
        true,
        every_third,
        300.0,
        expect![[r#"
            100.000 started live taken for ready
            100.000 started live ready
        "#]],
    );
}

#[test]
fn the_other_two_wait_for_the_startup() {
    let slow_start = |question, at: f64| match question {
        Question::Startup => if_good(at > 112.0),
        _ => if_good(at > 113.0),
    };
    check(
        all(&probe()),
        false,
        slow_start,
        200.0,
        expect![[r#"
        100.000 live
        100.000 live (startup probe: GET / answered 503)
        110.000  (startup probe: GET / answered 503)
        112.100 started live
        112.100 started live (readiness probe: GET / answered 503)
        113.075 started live ready
    "#]],
    );
}

#[test]
fn a_startup_that_fails_is_no_life() {
    check(
        all(&probe()),
        false,
        |_, _| if_good(false),
        200.0,
        expect![[r#"
        100.000 live
        100.000 live (startup probe: GET / answered 503)
        110.000  (startup probe: GET / answered 503)
    "#]],
    );
    let delayed = Probe { initial_delay: seconds(7.0), failure_threshold: 1, ..probe() };
    check(
        all(&delayed),
        false,
        |_, _| if_good(false),
        200.0,
        expect![[r#"
        100.000 live
        107.000  (startup probe: GET / answered 503)
    "#]],
    );
}

#[test]
fn liveness_is_lost_by_as_many_bad_answers_as_said() {
    let probes = Probes { liveness: Some(probe()), ..Probes::default() };
    check(
        probes,
        false,
        |_, at| if_good(at < 121.0),
        200.0,
        expect![[r#"
        100.000 started live ready
        135.000 started ready (liveness probe: GET / answered 503)
    "#]],
    );
}

#[test]
fn an_adopted_container_counts_as_ready_until_its_probes_have_failed() {
    check(
        all(&probe()),
        true,
        |_, _| if_good(true),
        200.0,
        expect![[r#"
            100.000 started live taken for ready
            100.000 started live ready
        "#]],
    );
    check(
        readiness(probe()),
        true,
        |_, _| if_good(false),
        200.0,
        expect![[r#"
            100.000 started live taken for ready
            110.000 started live (readiness probe: GET / answered 503)
        "#]],
    );
    // It was still starting when the agent was restarted.
    let starting = |question, at: f64| match question {
        Question::Startup => if_good(at > 108.0),
        _ => if_good(at > 130.0),
    };
    check(
        all(&probe()),
        true,
        starting,
        200.0,
        expect![[r#"
            100.000 started live taken for ready
            110.000 started live (readiness probe: GET / answered 503)
            120.000 started (liveness probe: GET / answered 503)
            135.000 started live (readiness probe: GET / answered 503)
            135.000 started live ready
        "#]],
    );
}

#[test]
fn a_question_that_cannot_be_asked_says_nothing() {
    let probes = Probes { liveness: Some(probe()), readiness: Some(probe()), startup: None };
    let away = |_, at: f64| if at < 150.0 { Answer::Unknown } else { if_good(false) };
    check(
        probes,
        true,
        away,
        200.0,
        expect![[r#"
            100.000 started live taken for ready
            160.000 started taken for ready (liveness probe: GET / answered 503)
            160.000 started (liveness probe: GET / answered 503)
        "#]],
    );
}

#[test]
fn what_is_wrong_may_change_once_a_period() {
    let words = |_, at: f64| Answer::Bad(format!("{} ms", (at * 1000.0) as u64));
    check(
        readiness(probe()),
        false,
        words,
        116.0,
        expect![[r#"
        100.000 started live
        100.000 started live (readiness probe: 100000 ms)
        105.000 started live (readiness probe: 105000 ms)
        110.000 started live (readiness probe: 110000 ms)
        115.000 started live (readiness probe: 115000 ms)
    "#]],
    );
}

#[test]
fn questions_of_all_containers_fall_together() {
    let times = |start: f64, period: f64| {
        let probe = Probe { period: seconds(period), ..probe() };
        let mut world = World::new(readiness(probe), false, start, |_, _| Answer::Good);
        world.until(start + 32.0).times(Question::Readiness)
    };
    assert_eq!(times(100.0, 10.0), [100.0, 110.0, 120.0, 130.0]);
    assert_eq!(times(103.3, 10.0), [103.3, 110.0, 120.0, 130.0]);
    assert_eq!(times(109.99, 10.0), [109.99, 110.0, 120.0, 130.0, 140.0]);
}

#[test]
fn a_connection_is_tried_often_at_first_and_a_command_less_often() {
    let asked = |check: Check| {
        let probe = Probe { check, period: seconds(10.0), ..probe() };
        let mut world = World::new(readiness(probe), false, 100.0, |_, _| if_good(false));
        world.until(160.0);
        let asked = world.times(Question::Readiness);
        let before = |end: f64| asked.iter().filter(|at| **at < end).count();
        assert!(asked.windows(2).all(|pair| pair[1] - pair[0] <= 10.0), "{asked:?}");
        [before(100.25), before(101.0), before(110.0), before(160.0)]
    };
    assert_eq!(asked(TCP), [10, 29, 54, 76]);
    assert_eq!(asked(Check::Exec(vec!["true".into()])), [1, 4, 10, 16]);
}

#[test]
fn the_first_question_waits_for_its_delay() {
    let probe = Probe { initial_delay: seconds(30.0), ..probe() };
    for adopted in [false, true] {
        let answers = |_, _: f64| if_good(true);
        let mut world = World::new(all(&probe), adopted, 100.0, answers);
        world.until(140.0);
        let first = world.asked.iter().map(|(_, at)| at.as_secs_f64()).reduce(f64::min);
        assert_eq!(first, Some(130.0), "adopted: {adopted}");
    }
}

#[test]
fn one_bad_answer_in_a_period_counts_however_they_fall() {
    // Found wrong just before the grid's next point.
    let answers = |_, at: f64| if_good(at < 104.0);
    let probe = Probe { failure_threshold: 2, ..probe() };
    let mut world = World::new(readiness(probe), true, 104.9, answers);
    world.until(200.0);
    let asked = world.times(Question::Readiness);
    assert_eq!(asked[..3], [104.9, 105.0, 110.0]);
    expect![[r#"
        104.900 started live taken for ready
        110.000 started live (readiness probe: GET / answered 503)
    "#]]
    .assert_eq(&world.lines);
}

#[test]
fn no_question_is_asked_twice_at_once_and_late_answers_count() {
    let probes = Probes { liveness: Some(probe()), ..Probes::default() };
    let mut probing = Probing::new(7, container(probes), Before::default(), seconds(100.0));
    let mut now = seconds(100.0);
    for bad in 1..=3 {
        assert_eq!(probing.due(now).collect::<Vec<_>>(), [Question::Liveness]);
        probing.asked(Question::Liveness, now);
        assert_eq!(probing.next_due(), None);
        now += seconds(13.0);
        assert_eq!(probing.due(now).count(), 0);
        let late = Answer::Bad("no answer within 13 s".into());
        probing.answered(Question::Liveness, late.clone(), now);
        // What is not being asked is not answered.
        probing.answered(Question::Liveness, late, now);
        assert_eq!(probing.health().live, bad < 3, "{bad}");
        now = probing.next_due().unwrap();
    }
}

#[test]
fn a_machine_that_slept_has_no_questions_to_catch_up_on() {
    let answers = |_, at: f64| if_good(at < 110.0);
    let mut world = World::new(readiness(probe()), true, 100.0, answers);
    world.until(108.0);
    world.now = seconds(5000.0);
    world.until(5001.0);
    assert_eq!(world.times(Question::Readiness), [100.0, 105.0, 5000.0]);
    world.until(5020.0);
    expect![[r#"
        100.000 started live taken for ready
        100.000 started live ready
        5010.000 started live (readiness probe: GET / answered 503)
    "#]]
    .assert_eq(&world.lines);
}

#[test]
fn other_probes_for_the_same_process() {
    let only_ready = readiness(probe());
    let answers = |_, at: f64| if_good(at < 120.0);
    let mut world = World::new(only_ready.clone(), false, 100.0, answers);
    // The startup was never asked for: it has started.
    world.until(110.0).change(all(&probe())).until(116.0);
    assert_eq!(world.times(Question::Startup), [0.0; 0]);
    assert_eq!(world.times(Question::Liveness).len(), 2);
    // What counts goes on where the probe is the same, and begins anew where it is not.
    let strict = Probe { failure_threshold: 1, ..probe() };
    let mixed = Probes { liveness: Some(strict), readiness: Some(probe()), startup: None };
    world.until(127.0).change(mixed).until(131.0);
    world.change(Probes::default()).until(200.0);
    expect![[r#"
        100.000 started live
        100.000 started live ready
        127.000 started ready (liveness probe: GET / answered 503)
        130.000 started (liveness probe: GET / answered 503)
        131.000 started live ready
    "#]]
    .assert_eq(&world.lines);
}

#[test]
fn a_changed_probe_gives_a_container_that_is_not_ready_another_chance_soon() {
    let mut world = World::new(readiness(probe()), false, 100.0, |_, at| if_good(at > 150.0));
    world.until(151.0);
    let other = Probe { timeout: seconds(2.0), ..probe() };
    world.change(readiness(other)).until(160.0);
    expect![[r#"
        100.000 started live
        100.000 started live (readiness probe: GET / answered 503)
        151.000 started live
        151.000 started live ready
    "#]]
    .assert_eq(&world.lines);
}
