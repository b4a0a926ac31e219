//! Has configurations judged by their templates in a child process, because a template can take for
//! ever, or more memory than there is, or end the process that judges by it.
//!
//! In: [`ConfigCheck`]s of one order. Out: refusals. The child is a program of its own,
//! `coracle-config-check`: it has little processor time, little memory and no files, and is killed if
//! it takes too long all the same. All templates of an order are judged by one child; only if it
//! dies, by one for each template, to tell which it was. An order has [`ORDER_LIMIT`] for all of that,
//! because its judgement holds up everything else that the agent does. What is said to it and what it may use is
//! in `coracle_core::template::exchange`. Deliberately not here: the judgement itself, which would
//! make the agent half as large again.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use coracle_core::template::ConfigCheck;
use coracle_core::template::exchange::{
    ANSWER_BYTES, CPU_SECONDS, MEMORY_MIB, QUESTION_BYTES, read_answer, write_question,
};
use coracle_protocol::limits::MAX_REFUSALS;
use coracle_protocol::{Code, Refusal};
use nix::sys::signal::Signal;
use nix::unistd::{AccessFlags, access};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout_at};

use crate::clock::runtime_now;
use crate::config::TemplatesConfig;

/// The program's name.
const PROGRAM: &str = "coracle-config-check";

/// Where it is installed.
const INSTALLED: &str = "/usr/libexec/coracle/coracle-config-check";

/// From the start of a child to SIGKILL. Who needs longer, without having used up its processor
/// time, waits for a busy machine, and is asked once more.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// From the start of the first child of an order to SIGKILL of its last one. What is not judged by
/// then is refused.
const ORDER_LIMIT: Duration = Duration::from_secs(15);

/// Most templates that are found to be too costly before the rest goes unjudged: the order is
/// refused anyway.
const CULPRITS: usize = 3;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Death {
    #[error("judging by it takes more than {CPU_SECONDS} s of processor time")]
    Processor,
    #[error(
        "it cannot be judged now: {} did not answer within {} s, in which it did not have the \
         {CPU_SECONDS} s of processor time that it may take; send the order again when the gateway \
         is less busy",
        program.display(), ORDER_LIMIT.as_secs()
    )]
    Time { program: PathBuf },
    #[error("judging by it takes more memory than the {MEMORY_MIB} MiB that it may have")]
    Memory,
    #[error("the configurations are too long to be judged by it")]
    TooLong,
    #[error("it cannot be judged: {} cannot be started: {source}", program.display())]
    NotStarted { program: PathBuf, source: io::Error },
    #[error("it cannot be judged: {} ended with {status}", program.display())]
    NoAnswer { program: PathBuf, status: ExitStatus },
}

impl Death {
    fn refusal(&self, place: &str) -> Refusal {
        let code = match self {
            Self::Time { .. } | Self::NotStarted { .. } | Self::NoAnswer { .. } => Code::NOT_JUDGED,
            _ => Code::TEMPLATE_TOO_COSTLY,
        };
        Refusal::new(place, code, self.to_string())
    }
}

/// The program that judges: the configured one, else the one beside this program, else where it is
/// installed.
pub fn program(config: &TemplatesConfig) -> PathBuf {
    let beside = || {
        let beside = std::env::current_exe().ok()?.with_file_name(PROGRAM);
        beside.is_file().then_some(beside)
    };
    config.program.clone().or_else(beside).unwrap_or_else(|| INSTALLED.into())
}

/// Why no configuration can be judged, in a sentence; `None` if the program is there.
pub fn problem(config: &TemplatesConfig) -> Option<String> {
    let program = program(config);
    let error = access(&program, AccessFlags::X_OK).err()?;
    Some(format!("{} cannot be started: {}", program.display(), error.desc()))
}

/// Like [`check_configs`], for callers that do nothing else meanwhile.
pub fn check_configs_and_wait(program: &Path, checks: &[ConfigCheck]) -> Vec<Refusal> {
    if checks.is_empty() {
        return Vec::new();
    }
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(check_configs(program, checks)),
        Err(source) => {
            let death = Death::NotStarted { program: program.to_owned(), source };
            by_template(checks).keys().map(|place| death.refusal(place)).collect()
        }
    }
}

/// Has `program` judge the configurations of one order, for at most [`ORDER_LIMIT`]; nothing to judge
/// starts no process.
///
/// What cannot be judged for a passing reason (no process can be started now, the machine is too
/// busy) is refused with [`Code::NOT_JUDGED`], and has to be sent again: an order is not kept here for
/// a later try.
pub async fn check_configs(program: &Path, checks: &[ConfigCheck]) -> Vec<Refusal> {
    if checks.is_empty() {
        return Vec::new();
    }
    let deadline = runtime_now() + ORDER_LIMIT;
    let death = match ask(program, checks, deadline).await {
        Ok(refusals) => return refusals,
        Err(death) => death,
    };
    let by_template = by_template(checks);
    let of_the_machine = matches!(death, Death::NotStarted { .. } | Death::Time { .. });
    if by_template.len() == 1 || of_the_machine {
        return by_template.keys().take(MAX_REFUSALS).map(|place| death.refusal(place)).collect();
    }
    // One by one, to find out which it was.
    let mut refusals = Vec::new();
    let mut culprits = 0;
    let templates = by_template.len();
    for (i, (place, checks)) in by_template.into_iter().enumerate() {
        match ask(program, &checks, deadline).await {
            Ok(found) => refusals.extend(found),
            // The order's time is over.
            Err(Death::Time { .. }) => {
                let message = format!(
                    "judging by the order's {templates} templates together takes more than {} s; {} \
                     of them were not judged",
                    ORDER_LIMIT.as_secs(),
                    templates - i
                );
                refusals.truncate(MAX_REFUSALS - 1);
                refusals.push(Refusal::whole(Code::TEMPLATE_TOO_COSTLY, message));
                break;
            }
            Err(death) => {
                culprits += 1;
                refusals.push(death.refusal(place));
            }
        }
        if culprits == CULPRITS || refusals.len() >= MAX_REFUSALS {
            break;
        }
    }
    refusals.truncate(MAX_REFUSALS);
    if refusals.is_empty() {
        // Each is good for itself, and all together are too much.
        let message = "judging all configurations of the order takes more time or memory than the \
                       gateway gives it";
        refusals.push(Refusal::whole(Code::TEMPLATE_TOO_COSTLY, message));
    }
    refusals
}

/// The configurations of each template, by its place.
fn by_template(checks: &[ConfigCheck]) -> BTreeMap<&str, Vec<ConfigCheck>> {
    let mut by_template: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for check in checks {
        by_template.entry(check.schema_path.as_str()).or_default().push(check.clone());
    }
    by_template
}

/// Has a child judge, and another one, with the time that is left, if the first had not enough of
/// the machine. [`Death::Time`]: the deadline has come.
async fn ask(
    program: &Path,
    checks: &[ConfigCheck],
    deadline: Instant,
) -> Result<Vec<Refusal>, Death> {
    let question = write_question(checks);
    if question.len() as u64 > QUESTION_BYTES {
        return Err(Death::TooLong);
    }
    let first = deadline.min(runtime_now() + TIME_LIMIT);
    match ask_once(program, &question, first).await {
        Err(Death::Time { .. }) if runtime_now() < deadline => {
            tracing::warn!("judging configurations takes long; it is tried once more");
            ask_once(program, &question, deadline).await
        }
        answer => answer,
    }
}

/// [`Death::Time`] is not for want of processor time that the child may have: for that it is ended
/// by the kernel.
async fn ask_once(
    program: &Path,
    question: &[u8],
    deadline: Instant,
) -> Result<Vec<Refusal>, Death> {
    let not_started = |source| Death::NotStarted { program: program.to_owned(), source };
    let mut child = Command::new(program)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(not_started)?;
    let talked = timeout_at(deadline, async {
        let said = talk(&mut child, question).await;
        (said, child.wait().await)
    });
    let Ok((said, status)) = talked.await else {
        // It may have ended meanwhile: then there is nothing to kill.
        if let Err(error) = child.kill().await {
            tracing::debug!(%error, "the process that judges templates ended by itself");
        }
        return Err(Death::Time { program: program.to_owned() });
    };
    let status = status.map_err(not_started)?;
    let no_answer = || Death::NoAnswer { program: program.to_owned(), status };
    match status.signal().map(Signal::try_from) {
        None if status.success() => read_answer(&said).map_err(|_| no_answer()),
        Some(Ok(Signal::SIGXCPU | Signal::SIGKILL)) => Err(Death::Processor),
        // No memory, and no more stack.
        Some(Ok(Signal::SIGABRT | Signal::SIGSEGV | Signal::SIGBUS)) => Err(Death::Memory),
        _ => Err(no_answer()),
    }
}

/// Says what is to be judged; hears the answer, or what there is of it when the child dies.
async fn talk(child: &mut Child, question: &[u8]) -> Vec<u8> {
    if let Some(mut stdin) = child.stdin.take() {
        // A child that has died does not listen. How it ended says more.
        if let Err(error) = stdin.write_all(question).await {
            tracing::debug!(%error, "the process that judges templates does not listen");
        }
    }
    let mut said = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        if let Err(error) = stdout.take(ANSWER_BYTES).read_to_end(&mut said).await {
            tracing::debug!(%error, "the process that judges templates cannot be heard");
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn check(name: &str) -> ConfigCheck {
        ConfigCheck {
            schema: Arc::new(true.into()),
            schema_path: format!("/types/{name}/config_template/schema"),
            value: 1.into(),
            value_path: "/workloads/0/config".into(),
        }
    }

    #[test]
    fn nothing_to_judge_starts_nothing() {
        assert_eq!(check_configs_and_wait(Path::new("/no/such/program"), &[]), []);
    }

    #[test]
    fn what_cannot_be_judged_is_refused_with_the_program_that_is_missing() {
        let program = Path::new("/no/such/program");
        let refusals = check_configs_and_wait(program, &["x", "y", "x"].map(check));
        let places: Vec<_> = refusals.iter().map(|refusal| refusal.path.as_str()).collect();
        assert_eq!(places, ["x", "y"].map(|name| check(name).schema_path));
        for refusal in refusals {
            assert_eq!(refusal.code, Code::NOT_JUDGED);
            assert!(refusal.message.contains("/no/such/program cannot be started"), "{refusal}");
        }
        // One that is something else.
        for program in ["/bin/true", "/bin/false"] {
            let refusals = check_configs_and_wait(Path::new(program), &[check("x")]);
            assert_eq!(refusals[0].code, Code::NOT_JUDGED, "{refusals:?}");
        }
    }

    #[test]
    fn what_is_configured_counts_more_than_what_is_found() {
        let config = |program: &str| TemplatesConfig { program: Some(program.into()) };
        assert_eq!(program(&config("/bin/true")), Path::new("/bin/true"));
        assert_eq!(problem(&config("/bin/true")), None);
        let said = problem(&config("/no/such/program")).unwrap();
        assert_eq!(said, "/no/such/program cannot be started: No such file or directory");
        // Nothing is beside this test.
        assert_eq!(program(&TemplatesConfig::default()), Path::new(INSTALLED));
    }
}
