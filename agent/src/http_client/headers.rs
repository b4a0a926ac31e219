//! Reading the response headers that matter here. Pure.

use std::time::Duration;

use http::HeaderMap;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, DATE, RETRY_AFTER, WWW_AUTHENTICATE};

use super::url::Url;

/// Longest time that a server is obeyed when it asks to come back later.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// How to get a token (<https://distribution.github.io/distribution/spec/auth/token/>).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub(crate) realm: Url,
    pub(crate) service: Option<String>,
    pub(crate) scope: Option<String>,
}

/// The bearer challenge of a 401, if there is one.
pub(crate) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    headers.get_all(WWW_AUTHENTICATE).iter().find_map(|value| bearer(value.to_str().ok()?))
}

fn bearer(value: &str) -> Option<Challenge> {
    let (scheme, mut rest) = value.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut scope) = (None, None, None);
    while let Some((name, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_at(after.find(',').unwrap_or(after.len())),
        };
        let value = Some(value.trim().to_owned());
        match name.trim_matches([' ', ',']).to_ascii_lowercase().as_str() {
            "realm" => realm = value,
            "service" => service = value,
            "scope" => scope = value,
            _ => {}
        }
        rest = after;
    }
    Some(Challenge { realm: Url::parse(&realm?)?, service, scope })
}

/// How long the server asks to wait. A date is taken relative to the server's own clock, because
/// ours may be wrong.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let until = httpdate::parse_http_date(value).ok()?;
            let now = httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()?;
            until.duration_since(now).unwrap_or_default()
        }
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// Where the body of a 206 starts, and how long the whole is if that is known.
pub(crate) fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()))
}

/// Length of the body, if it is known beforehand.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect()
    }

    #[test]
    fn bearer_challenges_are_read() {
        let read = challenge(&map(&[
            ("www-authenticate", "Basic realm=\"x\""),
            (
                "www-authenticate",
                "Bearer realm=\"https://auth.x/token\", service=r.x,scope=\"repository:a:pull,push\"",
            ),
        ]));
        let read = read.unwrap();
        assert_eq!(read.realm, Url::parse("https://auth.x/token").unwrap());
        assert_eq!(read.service.as_deref(), Some("r.x"));
        assert_eq!(read.scope.as_deref(), Some("repository:a:pull,push"));
        for none in ["Basic realm=\"x\"", "Bearer", "Bearer x", "Bearer realm=\"", "Bearer realm=x"]
        {
            assert_eq!(challenge(&map(&[("www-authenticate", none)])), None, "{none}");
        }
    }

    #[test]
    fn waiting_times_are_read_and_capped() {
        let date = "Fri, 20 Nov 2026 10:00:00 GMT";
        let later = "Fri, 20 Nov 2026 10:00:30 GMT";
        let seconds = |pairs: &[_]| retry_after(&map(pairs)).map(|wait| wait.as_secs());
        assert_eq!(seconds(&[("retry-after", "7")]), Some(7));
        assert_eq!(seconds(&[("retry-after", "999999999")]), Some(3600));
        assert_eq!(seconds(&[("retry-after", later), ("date", date)]), Some(30));
        assert_eq!(seconds(&[("retry-after", date), ("date", later)]), Some(0));
        assert_eq!(seconds(&[("retry-after", later)]), None);
        assert_eq!(seconds(&[("retry-after", "soon")]), None);
        assert_eq!(seconds(&[]), None);
    }

    #[test]
    fn ranges_are_read() {
        let range = |value| content_range(&map(&[("content-range", value)]));
        assert_eq!(range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(range("items 5-9/10"), None);
        assert_eq!(content_length(&map(&[("content-length", "12")])), Some(12));
    }
}
