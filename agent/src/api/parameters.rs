//! Parameters of requests, checked by what the table of routes says of them.

use coracle_core::artifact::{ArtifactId, Coordinate};
use coracle_core::name::{ContainerName, WorkloadName};
use http::request::Parts;

use super::reply::{Kind as Problem, Obstacle};
use crate::logs::parse_since;

/// The greatest whole number that every reader of JSON keeps exactly.
pub(super) const MOST: u64 = (1 << 53) - 1;
/// Longest idempotency key.
const LONGEST_KEY: usize = 64;

/// Where a parameter stands in the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Path,
    Query,
    Header,
}

/// What a parameter may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A whole number from 0 to that.
    Number(u64),
    /// `true` or `false`.
    Flag,
    /// A name as orders give it to workloads, volumes and more.
    Name,
    /// A name as orders give it to containers.
    Container,
    /// `group:name:version`.
    Artifact,
    /// `instance.service.user.cell`.
    Coordinate,
    /// The id of an operation.
    Operation,
    /// One of these.
    OneOf(&'static [&'static str]),
    /// A moment, or how long ago it was.
    Since,
    /// An idempotency key.
    Key,
}

/// One parameter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parameter {
    pub(super) name: &'static str,
    pub(super) place: Place,
    pub(super) kind: Kind,
    #[cfg(feature = "schema")]
    pub(super) about: &'static str,
}

/// What makes a changing request safe to repeat; every one takes it.
pub(super) static IDEMPOTENCY_KEY: Parameter = Parameter::header(
    "Idempotency-Key",
    Kind::Key,
    "Makes it safe to send the request again: of one key and one request the answer is given again, \
     without doing it again, for an hour and 256 keys",
);

impl Parameter {
    pub(super) const fn path(name: &'static str, kind: Kind, about: &'static str) -> Self {
        Self::new(name, Place::Path, kind, about)
    }

    pub(super) const fn query(name: &'static str, kind: Kind, about: &'static str) -> Self {
        Self::new(name, Place::Query, kind, about)
    }

    pub(super) const fn header(name: &'static str, kind: Kind, about: &'static str) -> Self {
        Self::new(name, Place::Header, kind, about)
    }

    #[cfg_attr(not(feature = "schema"), expect(unused_variables))]
    const fn new(name: &'static str, place: Place, kind: Kind, about: &'static str) -> Self {
        Self {
            name,
            place,
            kind,
            #[cfg(feature = "schema")]
            about,
        }
    }

    fn check(&self, value: &str) -> Result<(), String> {
        let name = self.name;
        match self.kind {
            // A sign is not taken, so that there is one way to write a number.
            Kind::Number(most) => value
                .parse::<u64>()
                .ok()
                .filter(|number| *number <= most && !value.starts_with('+'))
                .map(drop)
                .ok_or_else(|| format!("{name} must be a whole number, at most {most}")),
            Kind::Flag if matches!(value, "true" | "false") => Ok(()),
            Kind::Flag => Err(format!("{name} must be true or false")),
            Kind::Name => WorkloadName::parse(value).map(drop).map_err(|e| format!("{name}: {e}")),
            Kind::Container => {
                ContainerName::parse(value).map(drop).map_err(|e| format!("{name}: {e}"))
            }
            Kind::Artifact => {
                ArtifactId::parse(value).map(drop).map_err(|e| format!("{name}: {e}"))
            }
            Kind::Coordinate => {
                Coordinate::parse(value).map(drop).map_err(|e| format!("{name}: {e}"))
            }
            Kind::Operation => {
                let number = value.strip_prefix("operation-");
                let good = number.is_some_and(|number| number.parse::<u32>().is_ok());
                good.then_some(()).ok_or_else(|| format!("{name} must be like operation-1"))
            }
            Kind::OneOf(known) if known.contains(&value) => Ok(()),
            Kind::OneOf(known) => Err(format!("{name} must be one of {}", known.join(", "))),
            Kind::Since => parse_since(value).map(drop).map_err(|e| format!("{name}: {e}")),
            Kind::Key => {
                let visible = value.bytes().all(|byte| byte.is_ascii_graphic());
                let good = visible && (1..=LONGEST_KEY).contains(&value.len());
                good.then_some(()).ok_or_else(|| {
                    format!("{name} must be 1 to {LONGEST_KEY} visible ASCII characters")
                })
            }
        }
    }
}

/// Checked parameters by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Values(Vec<(&'static str, String)>);

impl Values {
    /// The value of a parameter that was given.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// The value of a [`Kind::Number`].
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    /// Whether a [`Kind::Flag`] is set.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.text(name) == Some("true")
    }
}

/// Takes the parameters out of a request; `named` are those in its path.
pub(super) fn read(
    parameters: &'static [Parameter],
    named: Vec<(&'static str, &str)>,
    head: &Parts,
) -> Result<Values, Obstacle> {
    let mut values = Values::default();
    let bad = |detail: String| Obstacle::new(Problem::BadRequest, detail);
    for (name, value) in named {
        let known = parameters.iter().find(|p| p.place == Place::Path && p.name == name);
        let value = percent_decode(value).filter(|v| known.is_some_and(|p| p.check(v).is_ok()));
        // What is no name is the name of nothing.
        let value =
            value.ok_or_else(|| Obstacle::new(Problem::NotFound, "there is no such resource"))?;
        values.0.push((name, value));
    }
    let queried = || parameters.iter().filter(|parameter| parameter.place == Place::Query);
    for part in head.uri.query().unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let Some(parameter) = queried().find(|parameter| parameter.name == name) else {
            return Err(bad(unknown(queried())));
        };
        if values.text(name).is_some() {
            return Err(bad(format!("{name} is given twice")));
        }
        let value = percent_decode(value)
            .ok_or_else(|| bad(format!("{name} is not percent-encoded UTF-8")))?;
        parameter.check(&value).map_err(bad)?;
        values.0.push((parameter.name, value));
    }
    for parameter in parameters.iter().filter(|parameter| parameter.place == Place::Header) {
        if let Some(value) = header(parameter, head)? {
            values.0.push((parameter.name, value));
        }
    }
    Ok(values)
}

/// A parameter's value from the request's head.
pub(super) fn header(parameter: &Parameter, head: &Parts) -> Result<Option<String>, Obstacle> {
    let bad = |detail: String| Obstacle::new(Problem::BadRequest, detail);
    let mut given = head.headers.get_all(parameter.name).iter();
    let Some(value) = given.next() else { return Ok(None) };
    if given.next().is_some() {
        return Err(bad(format!("{} is given twice", parameter.name)));
    }
    let value = value.to_str().unwrap_or_default();
    parameter.check(value).map_err(bad)?;
    Ok(Some(value.to_owned()))
}

fn unknown<'a>(known: impl Iterator<Item = &'a Parameter>) -> String {
    let known: Vec<_> = known.map(|parameter| parameter.name).collect();
    match known.as_slice() {
        [] => "unknown parameter; this resource takes none".to_owned(),
        [only] => format!("unknown parameter; known is {only}"),
        [others @ .., last] => {
            format!("unknown parameter; known are {} and {last}", others.join(", "))
        }
    }
}

/// A plus is a plus: times have them.
fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                u8::try_from(digit(rest.next())? * 16 + digit(rest.next())?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    static SOME: &[Parameter] = &[
        Parameter::path("name", Kind::Name, ""),
        Parameter::query("after", Kind::Number(MOST), ""),
        Parameter::query("follow", Kind::Flag, ""),
        Parameter::query("since", Kind::Since, ""),
        Parameter::query("run", Kind::OneOf(&["newest", "all"]), ""),
        Parameter::header("Idempotency-Key", Kind::Key, ""),
    ];

    fn parsed(name: &str, query: &str, key: Option<&str>) -> Result<Values, Obstacle> {
        let mut request = http::Request::builder().uri(format!("/?{query}"));
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        read(SOME, vec![("name", name)], &head)
    }

    #[test]
    fn what_is_declared_is_taken() {
        let query = "after=7&follow=true&since=2026-03-01T12:00:00%2B01:00&run=all";
        let values = parsed("w%65b", query, Some("a\"b")).unwrap();
        assert_eq!((values.text("name"), values.number("after")), (Some("web"), Some(7)));
        assert!(values.flag("follow"));
        assert_eq!(values.text("since"), Some("2026-03-01T12:00:00+01:00"));
        assert_eq!(values.text("Idempotency-Key"), Some("a\"b"));
        let none = parsed("web", "&&", None).unwrap();
        assert!(none.number("after").is_none() && !none.flag("follow"));
    }

    #[test]
    fn all_else_is_refused_with_its_reason() {
        for (query, reason) in [
            ("after=-1", "after must be a whole number, at most 9007199254740991"),
            ("after=%2B1", "after must be a whole number, at most 9007199254740991"),
            ("after=9007199254740992", "after must be a whole number, at most 9007199254740991"),
            ("after", "after must be a whole number, at most 9007199254740991"),
            ("after=1&after=1", "after is given twice"),
            ("after=%zz", "after is not percent-encoded UTF-8"),
            ("follow=yes", "follow must be true or false"),
            ("run=first", "run must be one of newest, all"),
            ("name=web", "unknown parameter; known are after, follow, since and run"),
        ] {
            let refused = parsed("web", query, None).unwrap_err();
            assert_eq!(refused, Obstacle::new(Problem::BadRequest, reason), "{query}");
        }
        assert!(parsed("web", "since=yesterday", None).is_err());
        for key in ["", "a b", &"x".repeat(65)] {
            assert!(parsed("web", "", Some(key)).is_err(), "{key}");
        }
        for name in ["", "Web", "we%2fb", "%ff", "..", &"x".repeat(41)] {
            let refused = parsed(name, "", None).unwrap_err();
            assert_eq!(refused, Obstacle::new(Problem::NotFound, "there is no such resource"));
        }
    }
}
