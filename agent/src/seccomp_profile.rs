//! Seccomp profiles that are installed on the gateway, beside the one that is built in.
//!
//! Format: the `linux.seccomp` object of the OCI runtime specification, in a file of its own
//! (<https://github.com/opencontainers/runtime-spec/blob/v1.0.2/config-linux.md#seccomp>). It is
//! checked before it is used, because the OCI runtime ignores what it does not know, and a filter
//! must not be weaker than its author thought. Docker's format, which is richer, is refused.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

/// Longest profile, in bytes. Docker's own has 13 KiB.
const SIZE_LIMIT: u64 = 256 * 1024;

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileProblem {
    /// It cannot be read.
    #[error("seccomp profile {path} cannot be read")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what is expected.
    #[error(
        "seccomp profile {path} is not the linux.seccomp object of an OCI specification: {message}"
    )]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// What is wrong and where.
        message: String,
    },
    /// The container names a profile, and nobody said where it is.
    #[error("seccomp profile {name} is not installed on this gateway")]
    NotInstalled {
        /// Its name.
        name: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(dead_code, reason = "read to be checked")]
struct Profile {
    default_action: Action,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    flags: Vec<String>,
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(dead_code, reason = "read to be checked")]
struct Rule {
    names: Vec<String>,
    action: Action,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Vec<Condition>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(dead_code, reason = "read to be checked")]
struct Condition {
    index: u32,
    value: u64,
    value_two: Option<u64>,
    op: Operator,
}

/// Without `SCMP_ACT_NOTIFY`: nobody would listen.
#[derive(Deserialize)]
enum Action {
    #[serde(rename = "SCMP_ACT_KILL")]
    Kill,
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    #[serde(rename = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
}

#[derive(Deserialize)]
enum Operator {
    #[serde(rename = "SCMP_CMP_NE")]
    Ne,
    #[serde(rename = "SCMP_CMP_LT")]
    Lt,
    #[serde(rename = "SCMP_CMP_LE")]
    Le,
    #[serde(rename = "SCMP_CMP_EQ")]
    Eq,
    #[serde(rename = "SCMP_CMP_GE")]
    Ge,
    #[serde(rename = "SCMP_CMP_GT")]
    Gt,
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEq,
}

/// Reads and checks a profile.
///
/// # Errors
/// The file cannot be read or is not a profile.
pub fn read(path: &Path) -> Result<Value, ProfileProblem> {
    let failed = |source| ProfileProblem::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(SIZE_LIMIT + 1).read_to_string(&mut text).map_err(failed)?;
    parse(&text).map_err(|message| ProfileProblem::Invalid { path: path.to_owned(), message })
}

fn parse(text: &str) -> Result<Value, String> {
    if text.len() as u64 > SIZE_LIMIT {
        return Err(format!("it has more than {SIZE_LIMIT} bytes"));
    }
    let profile: Profile = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let odd = profile.architectures.iter().find(|name| !name.starts_with("SCMP_ARCH_"));
    if let Some(odd) = odd {
        return Err(format!("architecture {odd:?} is not one of SCMP_ARCH_…"));
    }
    if profile.syscalls.iter().any(|rule| rule.names.is_empty()) {
        return Err("a rule names no system call".into());
    }
    if profile.syscalls.iter().flat_map(|rule| &rule.args).any(|condition| condition.index > 5) {
        return Err("a condition's index is not one of 0 to 5".into());
    }
    serde_json::from_str(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_AARCH64"],
        "syscalls": [
            {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["socket"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]}
        ]}"#;

    #[test]
    fn a_profile_is_taken_as_it_is() {
        let value: Value = serde_json::from_str(GOOD).unwrap();
        assert_eq!(parse(GOOD).unwrap(), value);
    }

    #[test]
    fn what_the_runtime_would_ignore_is_refused() {
        let change = |from: &str, to: &str| {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD);
            parse(&text).unwrap_err()
        };
        for (from, to, wanted) in [
            ("\"defaultAction\"", "\"default\"", "unknown field `default`"),
            ("\"names\": [\"read\", \"write\"]", "\"name\": \"read\"", "unknown field `name`"),
            ("SCMP_ACT_ALLOW", "ALLOW", "unknown variant `ALLOW`"),
            ("SCMP_ACT_ALLOW", "SCMP_ACT_NOTIFY", "unknown variant `SCMP_ACT_NOTIFY`"),
            ("SCMP_CMP_NE", "!=", "unknown variant `!=`"),
            ("SCMP_ARCH_AARCH64", "arm64", "\"arm64\" is not one of SCMP_ARCH_"),
            ("[\"read\", \"write\"]", "[]", "names no system call"),
            ("\"index\": 0", "\"index\": 6", "not one of 0 to 5"),
            ("\"syscalls\"", "\"archMap\": [], \"syscalls\"", "unknown field `archMap`"),
        ] {
            let said = change(from, to);
            assert!(said.contains(wanted), "{from} {to}: {said}");
        }
        assert!(parse(&" ".repeat(300_000)).unwrap_err().contains("bytes"));
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = read(Path::new("/no/such.json")).unwrap_err();
        assert_eq!(error.to_string(), "seccomp profile /no/such.json cannot be read");
    }
}
