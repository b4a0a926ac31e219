//! References in variables: a closed set, everything else is literal.
//!
//! `${gateway.name}`, `${gateway.id}`, `${project}`, `${workload}`, `${replica}`,
//! `${endpoint.NAME}` and `${secret.NAME}`. Within the three families (`gateway.`, `endpoint.`,
//! `secret.`) a name that does not exist is a mistake and refused; `${HOME}` and a lone `$` stay as
//! they are.

use coracle_protocol::Code;

use super::shared::Shared;
use super::{Found, shortened};
use crate::desired::{Piece, Template};
use crate::name::ResourceName;

/// A variable's value with everything replaced that is known from the order alone.
pub(super) fn check(
    text: &str,
    workload: Option<&str>,
    place: impl Fn() -> String,
    shared: &Shared<'_>,
    found: &mut Found<'_>,
) -> Template {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        literal.push_str(&rest[..at]);
        let inner = &rest[at + 2..];
        let Some((reference, after)) = inner.split_once('}') else {
            literal.push_str("${");
            rest = inner;
            continue;
        };
        match resolve(reference, workload, shared) {
            Ok(Some(Piece::Text(text))) => literal.push_str(&text),
            Ok(Some(piece)) => {
                if !literal.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut literal)));
                }
                pieces.push(piece);
            }
            Ok(None) => {
                literal.push_str("${");
                rest = inner;
                continue;
            }
            Err((code, message)) => {
                found.refuse(place(), code, message);
                // For orders that were accepted by an earlier version.
                literal.push_str("${");
                rest = inner;
                continue;
            }
        }
        rest = after;
    }
    literal.push_str(rest);
    if !literal.is_empty() || pieces.is_empty() {
        pieces.push(Piece::Text(literal));
    }
    Template(pieces)
}

/// What a reference stands for; `None` if it is none of ours.
fn resolve(
    reference: &str,
    workload: Option<&str>,
    shared: &Shared<'_>,
) -> Result<Option<Piece>, (Code, String)> {
    let text = |text: &str| Ok(Some(Piece::Text(text.to_owned())));
    let shown = shortened(reference);
    let unknown = |what: String| Err((Code::UNKNOWN_REFERENCE, format!("${{{shown}}}: {what}")));
    match reference {
        // Of a type that is judged without a workload.
        "workload" => text(workload.unwrap_or_default()),
        "replica" => Ok(Some(Piece::Replica)),
        "gateway.id" => text(&shared.gateway.map(|id| id.to_string()).unwrap_or_default()),
        "gateway.name" => match &shared.gateway_name {
            Some(name) => text(name),
            None => unknown("the order has no gateway_name".into()),
        },
        "project" => match &shared.project {
            Some(project) => text(project),
            None => unknown("the order has no project".into()),
        },
        _ => match reference.split_once('.') {
            Some(("gateway", _)) => unknown("a gateway has name and id".into()),
            Some(("endpoint", name)) => match shared.endpoints.get(name) {
                Some(address) => text(address),
                None => unknown("the order has no such endpoint".into()),
            },
            Some(("secret", name)) => match shared.secrets.contains_key(name) {
                true => Ok(ResourceName::parse(name).ok().map(Piece::Secret)),
                false => Err((
                    Code::UNKNOWN_SECRET,
                    format!("${{{shown}}}: the order has no such secret"),
                )),
            },
            _ => Ok(None),
        },
    }
}
