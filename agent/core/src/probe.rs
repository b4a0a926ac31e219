//! What the answers to a container's probes come to, and when each probe is asked.
//!
//! In: the container's probes, the answers, the time. Out: which questions are due, and [`Health`].
//! A new container counts as not started and not ready until a good answer; one that was both
//! already when its agent came stays so until its probes have failed, and is not hurried.
//!
//! Due times lie on grids that all containers share, so that many questions are asked in one
//! wake-up. Deliberately not here: asking.

use std::sync::Arc;
use std::time::Duration;

use crate::desired::{Check, Container, Probe, Probes};
use crate::observed::Health;

/// Questions of containers that are on their way to be ready lie on multiples of this.
const FINE: Duration = Duration::from_millis(25);

/// One of a container's probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Question {
    /// Whether it has started.
    Startup,
    /// Whether it still lives.
    Liveness,
    /// Whether it can take work.
    Readiness,
}

impl Question {
    /// All that can be asked.
    pub const ALL: [Self; 3] = [Self::Startup, Self::Liveness, Self::Readiness];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Startup => "startup probe",
            Self::Liveness => "liveness probe",
            Self::Readiness => "readiness probe",
        }
    }

    /// The probe that asks it, if there is one.
    pub fn probe(self, probes: &Probes) -> Option<&Probe> {
        match self {
            Self::Startup => probes.startup.as_ref(),
            Self::Liveness => probes.liveness.as_ref(),
            Self::Readiness => probes.readiness.as_ref(),
        }
    }
}

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// As it should be.
    Good,
    /// Not as it should be: why, for people, in words that do not change from one time to the next.
    Bad(String),
    /// It could not be asked, which is not the container's fault and says nothing of it.
    Unknown,
}

/// What a process of a container counts as before the first answer. A new one is not started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// It has started.
    pub started: bool,
    /// It can take work.
    pub ready: bool,
    /// That was answered once, to an agent before.
    pub proven: bool,
}

/// The probing of one process of a container. All times are on one monotonic clock.
#[derive(Clone, Debug)]
pub struct Probing {
    pid: u32,
    container: Arc<Container>,
    /// When the process was first seen.
    since: Duration,
    startup: Series,
    liveness: Series,
    readiness: Series,
}

/// The answers to one question.
#[derive(Clone, Debug, Default)]
struct Series {
    /// What it counts as.
    holds: bool,
    /// There were as many good answers in a row as are wanted, at least once.
    proven: bool,
    /// The first good answer is waited for and looked for often.
    hurries: bool,
    /// Good answers in a row.
    good: u32,
    /// Bad answers in a row, of which one in each period counts.
    bad: u32,
    /// When the last one was asked for that counts.
    counted: Option<Duration>,
    /// When it was first asked.
    first: Option<Duration>,
    /// When the question is asked next.
    due: Duration,
    /// When the question was due that is being asked.
    asked: Option<Duration>,
    /// Of the last bad answer, while it matters.
    message: Option<String>,
}

impl Series {
    fn new(holds: bool, due: Duration) -> Self {
        Self { holds, hurries: !holds, due, ..Self::default() }
    }

    fn good(&mut self, probe: &Probe) {
        (self.bad, self.counted, self.hurries) = (0, None, false);
        self.good = self.good.saturating_add(1);
        if self.good >= probe.success_threshold {
            (self.holds, self.proven, self.message) = (true, true, None);
        }
    }

    fn bad(&mut self, probe: &Probe, asked: Duration, message: String) {
        self.good = 0;
        let counts = self.counted.is_none_or(|counted| asked >= counted + probe.period);
        if counts {
            self.bad = self.bad.saturating_add(1);
            self.counted = Some(asked);
        }
        if self.bad >= probe.failure_threshold {
            self.holds = false;
        }
        // Quick questions do not make it flicker.
        if !self.holds && (counts || self.message.is_none()) {
            self.message = Some(message);
        }
    }

    /// When it is asked next.
    fn next(&self, probe: &Probe, now: Duration) -> Duration {
        let period = probe.period.max(FINE);
        if let (true, Some(first)) = (self.hurries, self.first) {
            let passed = now.saturating_sub(first);
            // A command costs a hundred times as much as a connection.
            let delay = match probe.check {
                Check::Exec(_) => (passed / 2).max(FINE * 10),
                Check::Http { .. } | Check::Tcp { .. } => (passed / 10).max(FINE),
            };
            if delay < period {
                let quickly = after(now + delay.saturating_sub(FINE), FINE);
                // One of them counts.
                let counts = self.counted.map_or(quickly, |counted| counted + period);
                return quickly.min(counts.max(now));
            }
        }
        after(now, period)
    }
}

/// The next multiple of `step` after a moment.
fn after(moment: Duration, step: Duration) -> Duration {
    let step = step.as_nanos().max(1);
    let next = (moment.as_nanos() / step + 1) * step;
    Duration::from_nanos(u64::try_from(next).unwrap_or(u64::MAX))
}

impl Probing {
    /// Begins with a process that is first seen now.
    pub fn new(pid: u32, container: Arc<Container>, before: Before, now: Duration) -> Self {
        let series = |question: Question, holds: bool| match question.probe(&container.probes) {
            Some(probe) => {
                let proven = before.proven && question != Question::Liveness;
                Series { proven, ..Series::new(holds, now + probe.initial_delay) }
            }
            None => Series::new(true, now),
        };
        Self {
            pid,
            since: now,
            startup: series(Question::Startup, before.started),
            liveness: series(Question::Liveness, true),
            readiness: series(Question::Readiness, before.ready),
            container,
        }
    }

    /// The process whose probing this is.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The container as it was given last.
    pub fn container(&self) -> &Arc<Container> {
        &self.container
    }

    /// The probe of a question.
    pub fn probe(&self, question: Question) -> Option<&Probe> {
        question.probe(&self.container.probes)
    }

    /// Goes on with the same process under another definition. What its probes say counts on where
    /// they are the same; a new probe is taken for good where nothing was asked before. Answers to
    /// questions of before must not be told any more.
    pub fn change(&mut self, container: Arc<Container>, now: Duration) {
        let before = std::mem::replace(&mut self.container, container);
        for question in Question::ALL {
            let (old, new) = (question.probe(&before.probes), self.probe(question).cloned());
            let same = old == new.as_ref();
            let (since, asked_before) = (self.since, old.is_some());
            let series = self.series_mut(question);
            if let Some(due) = series.asked.take() {
                series.due = due;
            }
            if same {
                continue;
            }
            *series = match new {
                None => Series::new(true, now),
                Some(probe) => {
                    // What has started once is not asked for that again.
                    let started = series.proven || !asked_before;
                    let holds = series.holds || question == Question::Liveness;
                    let due = now.max(since + probe.initial_delay);
                    let proven = started && question == Question::Startup;
                    Series { proven, ..Series::new(holds, due) }
                }
            };
        }
    }

    /// The questions that are due and not being asked.
    pub fn due(&self, now: Duration) -> impl Iterator<Item = Question> + '_ {
        let due = move |&question: &Question| self.due_at(question).is_some_and(|due| due <= now);
        Question::ALL.into_iter().filter(due)
    }

    /// When a question is due next; `None` if none is to be asked before an answer has come.
    pub fn next_due(&self) -> Option<Duration> {
        Question::ALL.into_iter().filter_map(|question| self.due_at(question)).min()
    }

    /// The question is being asked from now on, until it is answered.
    pub fn asked(&mut self, question: Question, now: Duration) {
        let period = self.probe(question).map_or(Duration::ZERO, |probe| probe.period);
        let series = self.series_mut(question);
        series.first.get_or_insert(now);
        // One that could not be asked for long (until the container had started, or while the
        // machine slept) was not due all the time.
        series.asked = Some(if series.due + period < now { now } else { series.due });
    }

    /// The answer to a question that was being asked; one that was not is of no meaning.
    pub fn answered(&mut self, question: Question, answer: Answer, now: Duration) {
        let container = Arc::clone(&self.container);
        let Some(probe) = question.probe(&container.probes) else { return };
        let series = self.series_mut(question);
        let Some(asked) = series.asked.take() else { return };
        match answer {
            Answer::Good => series.good(probe),
            Answer::Bad(message) => series.bad(probe, asked, message),
            Answer::Unknown => {}
        }
        series.due = series.next(probe, now);
    }

    /// What the answers so far come to.
    pub fn health(&self) -> Health {
        let started = self.startup.holds;
        let startup_failed =
            self.probe(Question::Startup).is_some_and(|p| self.startup.bad >= p.failure_threshold);
        let wrong = Question::ALL.into_iter().find_map(|question| {
            let series = self.series(question);
            let message = series.message.as_ref().filter(|_| !series.holds)?;
            Some(format!("{}: {message}", question.name()))
        });
        Health {
            pid: self.pid,
            started,
            live: self.liveness.holds && !startup_failed,
            ready: started && self.readiness.holds,
            proven: [Question::Startup, Question::Readiness]
                .into_iter()
                .all(|question| self.probe(question).is_none() || self.series(question).proven),
            message: wrong,
        }
    }

    /// `None` if it is not to be asked now, whatever the time.
    fn due_at(&self, question: Question) -> Option<Duration> {
        self.probe(question)?;
        let unproven = self.probe(Question::Startup).is_some() && !self.startup.proven;
        let open = match question {
            Question::Startup => unproven,
            Question::Liveness => !unproven,
            Question::Readiness => self.startup.holds,
        };
        let series = self.series(question);
        (open && series.asked.is_none()).then_some(series.due)
    }

    fn series(&self, question: Question) -> &Series {
        match question {
            Question::Startup => &self.startup,
            Question::Liveness => &self.liveness,
            Question::Readiness => &self.readiness,
        }
    }

    fn series_mut(&mut self, question: Question) -> &mut Series {
        match question {
            Question::Startup => &mut self.startup,
            Question::Liveness => &mut self.liveness,
            Question::Readiness => &mut self.readiness,
        }
    }
}

#[cfg(test)]
mod tests;
