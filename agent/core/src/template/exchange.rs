//! What the agent and `coracle-config-check` say to each other, as JSON on the program's standard
//! input and output, and what the program may use.
//!
//! An upgrade may put a newer program beside an agent that still runs: fields are only ever added.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_protocol::Refusal;
use serde::de::Error as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ConfigCheck;

/// Processor time of the program. An ordinary order takes some milliseconds of it.
pub const CPU_SECONDS: u64 = 2;

/// Address space of the program, in MiB: itself and what it allocates. The largest ordinary orders
/// take 20.
pub const MEMORY_MIB: u64 = 64;

/// Most that it is given, in bytes. An order is a tenth of it.
pub const QUESTION_BYTES: u64 = 1 << 20;

/// Most that it may say, in bytes.
pub const ANSWER_BYTES: u64 = 256 * 1024;

#[derive(Debug, Deserialize, Serialize)]
struct Question<'a> {
    /// Schemas, by their places in the order.
    templates: BTreeMap<Cow<'a, str>, Cow<'a, Value>>,
    checks: Vec<Check<'a>>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Check<'a> {
    template: Cow<'a, str>,
    value: Cow<'a, Value>,
    path: Cow<'a, str>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Answer<'a> {
    refusals: Cow<'a, [Refusal]>,
}

/// What is to be judged. A template that several configurations have is said once.
pub fn write_question(checks: &[ConfigCheck]) -> Vec<u8> {
    let templates = checks
        .iter()
        .map(|check| (Cow::Borrowed(check.schema_path.as_str()), Cow::Borrowed(&*check.schema)));
    let checks = checks.iter().map(|check| Check {
        template: Cow::Borrowed(&check.schema_path),
        value: Cow::Borrowed(&check.value),
        path: Cow::Borrowed(&check.value_path),
    });
    let question = Question { templates: templates.collect(), checks: checks.collect() };
    serde_json::to_vec(&question).expect("values can be written as JSON")
}

/// What is to be judged.
///
/// # Errors
/// It is no question.
pub fn read_question(bytes: &[u8]) -> Result<Vec<ConfigCheck>, serde_json::Error> {
    let Question { templates, checks } = serde_json::from_slice(bytes)?;
    let templates: BTreeMap<_, _> =
        templates.into_iter().map(|(path, schema)| (path, Arc::new(schema.into_owned()))).collect();
    let checks = checks.into_iter().map(|check| {
        let schema = templates.get(&check.template).cloned();
        Ok(ConfigCheck {
            schema: schema.ok_or_else(|| serde_json::Error::custom("a template is missing"))?,
            schema_path: check.template.into_owned(),
            value: check.value.into_owned(),
            value_path: check.path.into_owned(),
        })
    });
    checks.collect()
}

/// The verdict: every reason against the configurations and their templates.
pub fn write_answer(refusals: &[Refusal]) -> Vec<u8> {
    let answer = Answer { refusals: refusals.into() };
    serde_json::to_vec(&answer).expect("refusals can be written as JSON")
}

/// The verdict.
///
/// # Errors
/// It is no answer.
pub fn read_answer(bytes: &[u8]) -> Result<Vec<Refusal>, serde_json::Error> {
    let Answer { refusals } = serde_json::from_slice(bytes)?;
    Ok(refusals.into_owned())
}

#[cfg(test)]
mod tests {
    use coracle_protocol::Code;

    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let schema = Arc::new(serde_json::json!({ "type": "object" }));
        let check = |at: usize| ConfigCheck {
            schema: schema.clone(),
            schema_path: "/types/x/config_template/schema".into(),
            value: at.into(),
            value_path: format!("/workloads/{at}/config"),
        };
        let checks = [check(0), check(1)];
        let question = write_question(&checks);
        assert_eq!(read_question(&question).unwrap(), checks);
        let refusals = [Refusal::new("/workloads/0/config", Code::CONFIG_INVALID, "is a number")];
        assert_eq!(read_answer(&write_answer(&refusals)).unwrap(), refusals);
        // With a field that is added later.
        let later = r#"{"templates":{"/t":true},"checks":[{"template":"/t","value":1,"path":"/c",
            "more":1}],"more":1}"#;
        assert_eq!(read_question(later.as_bytes()).unwrap().len(), 1);
    }

    #[test]
    fn what_is_no_question_is_no_question() {
        for text in [
            "",
            "{\"checks\":",
            "{}",
            r#"{"templates":{},"checks":[{"template":"/t","value":1,"path":"/c"}]}"#,
        ] {
            assert!(read_question(text.as_bytes()).is_err(), "{text}");
        }
    }
}
