//! Which server to connect to: the configured one, or another that it sent us to and that the
//! configuration allows. Pure.
//!
//! A server that sends us on is believed once; the next one that does so as well is one more failure,
//! so that two cannot play ball with a gateway. When a connection to another server is lost or not
//! made, the configured one is asked again. Deliberately not here: connecting, and delays.

use crate::config::Endpoint;

/// What became of a reference to another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Redirect {
    /// It is next.
    To(Endpoint),
    /// It is next, but not soon: the last connection had been sent on as well.
    Again(Endpoint),
    /// The configuration does not know it.
    NotAllowed,
}

/// Where to connect.
#[derive(Debug)]
pub(super) struct Route {
    configured: Endpoint,
    alternatives: Vec<Endpoint>,
    /// The alternative that is used.
    other: Option<usize>,
    redirected: bool,
}

impl Route {
    pub(super) fn new(configured: Endpoint, alternatives: Vec<Endpoint>) -> Self {
        Self { configured, alternatives, other: None, redirected: false }
    }

    /// The server to connect to.
    pub(super) fn target(&self) -> &Endpoint {
        self.other.and_then(|at| self.alternatives.get(at)).unwrap_or(&self.configured)
    }

    /// A connection was lost, or not made, without a reference to another server.
    pub(super) fn ended(&mut self) {
        self.other = None;
        self.redirected = false;
    }

    /// The server names others (MQTT 5.0 section 4.11): the first that is allowed is next.
    pub(super) fn redirect(&mut self, reference: &str) -> Redirect {
        let port = self.configured.port;
        let known = reference.split_ascii_whitespace().find_map(|text| {
            let endpoint = Endpoint::parse_with(text, port)?;
            if endpoint == self.configured {
                return Some(None);
            }
            self.alternatives.iter().position(|other| *other == endpoint).map(Some)
        });
        let Some(other) = known else {
            self.redirected = false;
            return Redirect::NotAllowed;
        };
        self.other = other;
        let again = std::mem::replace(&mut self.redirected, true);
        let target = self.target().clone();
        if again { Redirect::Again(target) } else { Redirect::To(target) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        Endpoint::parse_with(text, 8883).unwrap()
    }

    fn route() -> Route {
        Route::new(endpoint("main.example"), vec![endpoint("a.example"), endpoint("[::1]:1")])
    }

    #[test]
    fn only_allowed_servers_are_gone_to() {
        for (reference, target) in [
            ("a.example", "a.example:8883"),
            ("a.example:8883", "a.example:8883"),
            ("evil.example:8883  a.example", "a.example:8883"),
            ("[::1]:1", "[::1]:1"),
            ("main.example:8883", "main.example:8883"),
        ] {
            let mut route = route();
            assert_eq!(route.redirect(reference), Redirect::To(endpoint(target)), "{reference}");
            assert_eq!(route.target().to_string(), target);
        }
        for reference in ["", "evil.example", "a.example:1", "a.example:x", "\0", "a.example."] {
            let mut route = route();
            assert_eq!(route.redirect(reference), Redirect::NotAllowed, "{reference}");
            assert_eq!(route.target(), &endpoint("main.example"));
        }
    }

    #[test]
    fn servers_do_not_play_ball_with_a_gateway() {
        let mut route = route();
        assert!(matches!(route.redirect("a.example"), Redirect::To(_)));
        assert!(matches!(route.redirect("main.example"), Redirect::Again(_)));
        assert!(matches!(route.redirect("a.example"), Redirect::Again(_)));
        route.ended();
        assert_eq!(route.target(), &endpoint("main.example"));
        assert!(matches!(route.redirect("a.example"), Redirect::To(_)));
        route.ended();
        assert_eq!(route.target(), &endpoint("main.example"));
    }
}
