//! What is asked of containers, and done in them: probes, and the hook before a stop.

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_protocol::Code;
use coracle_protocol::desired as wire;
use coracle_protocol::limits::MAX_TEXT_BYTES;

use super::{Found, check_text, escaped};
use crate::desired::{Check, Probe, Probes};

/// Most headers of one request.
const MAX_HEADERS: usize = 16;

/// Judges a container's probes.
pub(super) fn check(probes: &wire::Probes, place: &str, found: &mut Found<'_>) -> Probes {
    let mut judge = |probe: &Option<wire::Probe>, name: &str| {
        let place = format!("{place}/probes/{name}");
        probe.as_ref().and_then(|probe| check_probe(probe, &place, found))
    };
    Probes {
        startup: judge(&probes.startup, "startup"),
        liveness: judge(&probes.liveness, "liveness"),
        readiness: judge(&probes.readiness, "readiness"),
    }
}

fn check_probe(probe: &wire::Probe, place: &str, found: &mut Found<'_>) -> Option<Probe> {
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    if probe.success_threshold > 1 && !place.ends_with("/readiness") {
        let message = "must be 1: only readiness comes back by good answers";
        found.refuse(format!("{place}/success_threshold"), Code::INVALID_VALUE, message);
    }
    let asked = Asked { exec: &probe.exec, http: &probe.http, tcp: &probe.tcp };
    let check = asked.check(place, "exec, http and tcp", found)?;
    Some(Probe {
        check,
        initial_delay: seconds(probe.initial_delay_seconds),
        period: seconds(probe.period_seconds),
        timeout: seconds(probe.timeout_seconds),
        failure_threshold: probe.failure_threshold,
        success_threshold: probe.success_threshold,
    })
}

/// Exactly one of these.
pub(super) struct Asked<'a> {
    pub(super) exec: &'a Option<wire::ExecAction>,
    pub(super) http: &'a Option<wire::HttpAction>,
    pub(super) tcp: &'a Option<wire::TcpAction>,
}

impl Asked<'_> {
    pub(super) fn check(&self, place: &str, choice: &str, found: &mut Found<'_>) -> Option<Check> {
        match (self.exec, self.http, self.tcp) {
            (Some(exec), None, None) => {
                check_command(&exec.command, place, found);
                Some(Check::Exec(exec.command.clone()))
            }
            (None, Some(http), None) => {
                check_request(http, place, found);
                let wire::HttpAction { port, path, headers } = http.clone();
                Some(Check::Http { port, path, headers })
            }
            (None, None, Some(tcp)) => Some(Check::Tcp { port: tcp.port }),
            _ => {
                let message = format!("must have exactly one of {choice}");
                found.refuse(place, Code::INVALID_VALUE, message);
                None
            }
        }
    }
}

fn check_command(command: &[String], place: &str, found: &mut Found<'_>) {
    for (i, text) in command.iter().enumerate() {
        check_text(text, || format!("{place}/exec/command/{i}"), found);
    }
    if command.first().is_some_and(String::is_empty) {
        let place = format!("{place}/exec/command/0");
        found.refuse(place, Code::INVALID_VALUE, "must name a program");
    }
}

/// What a request line and header fields can hold (RFC 9110, RFC 9112).
fn check_request(http: &wire::HttpAction, place: &str, found: &mut Found<'_>) {
    let graphic = http.path.bytes().all(|byte| byte.is_ascii_graphic());
    if !http.path.starts_with('/') || !graphic || http.path.len() > MAX_TEXT_BYTES {
        let message = "must begin with / and hold printable ASCII characters other than blanks";
        found.refuse(format!("{place}/http/path"), Code::INVALID_VALUE, message);
    }
    if http.headers.len() > MAX_HEADERS {
        let message = format!("more than {MAX_HEADERS} headers");
        found.refuse(format!("{place}/http/headers"), Code::TOO_MANY, message);
    }
    check_headers(&http.headers, place, found);
}

fn check_headers(headers: &BTreeMap<String, String>, place: &str, found: &mut Found<'_>) {
    let is_token = |name: &str| {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        !name.is_empty() && name.len() <= 256 && name.bytes().all(token)
    };
    for (name, value) in headers {
        let place = format!("{place}/http/headers/{}", escaped(name));
        let good = value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
        if !is_token(name) || !good || value.len() > 1024 {
            let message = "is no header of HTTP, or longer than 1024 bytes";
            found.refuse(place, Code::INVALID_VALUE, message);
        }
    }
}
