//! The few URLs that fetching needs: scheme, host, port, path with query.
//!
//! In: text from references, configuration, redirects and challenges. Out: where to connect and
//! what to ask for. Pure; no user info, no fragments, nothing but HTTP and HTTPS.

use std::fmt;

/// An absolute `http` or `https` URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) origin: Origin,
    /// Path and query, starting with `/`.
    pub(crate) path: String,
}

/// Where to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) tls: bool,
    /// A name or an address; an IPv6 address without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// Longest URL that is followed.
const MAX_LEN: usize = 16 << 10;

impl Origin {
    /// From `HOST` or `HOST:PORT`.
    pub(crate) fn parse(authority: &str, tls: bool) -> Option<Self> {
        let default = if tls { 443 } else { 80 };
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']')?;
                host.parse::<std::net::Ipv6Addr>().ok()?;
                (host, rest.strip_prefix(':'))
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let port = port.map_or(Some(default), |port| port.parse().ok().filter(|port| *port > 0))?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b".-_:".contains(&b);
        if host.is_empty() || host.len() > 253 || !host.bytes().all(plain) {
            return None;
        }
        Some(Self { tls, host: host.to_ascii_lowercase(), port })
    }

    /// `HOST`, or `HOST:PORT` unless it is the scheme's own port.
    pub(crate) fn authority(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

impl Url {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let origin = Origin::parse(&rest[..end], tls)?;
        Some(Self { origin, path: clean_path(&rest[end..])? })
    }

    /// What a `Location` means, seen from this URL.
    pub(crate) fn join(&self, location: &str) -> Option<Self> {
        let location = location.trim();
        let origin = self.origin.clone();
        if let Some(rest) = location.strip_prefix("//") {
            let scheme = if origin.tls { "https" } else { "http" };
            Self::parse(&format!("{scheme}://{rest}"))
        } else if location.starts_with('/') {
            Some(Self { origin, path: clean_path(location)? })
        } else if location.split_once("://").is_some_and(|(scheme, _)| !scheme.contains(['/', '?']))
        {
            Self::parse(location)
        } else {
            let path = self.path.split('?').next().unwrap_or_default();
            let folder = &path[..=path.rfind('/')?];
            Some(Self { origin, path: clean_path(&format!("{folder}{location}"))? })
        }
    }

    /// This URL with further query parameters, percent-encoded.
    pub(crate) fn with_query(&self, parameters: &[(&str, &str)]) -> Self {
        let mut path = self.path.clone();
        for (name, value) in parameters {
            path.push(if path.contains('?') { '&' } else { '?' });
            path.push_str(name);
            path.push('=');
            for byte in value.bytes() {
                match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                        path.push(byte.into());
                    }
                    _ => path.push_str(&format!("%{byte:02X}")),
                }
            }
        }
        Self { origin: self.origin.clone(), path }
    }
}

/// A path that can be sent: no fragment, no spaces or control characters, not too long.
fn clean_path(text: &str) -> Option<String> {
    let text = text.split('#').next().unwrap_or_default();
    let ok = text.len() <= MAX_LEN && text.bytes().all(|b| (0x21..0x7f).contains(&b));
    let slash = if text.starts_with('/') { "" } else { "/" };
    ok.then(|| format!("{slash}{text}"))
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.authority())
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.origin.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.origin, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(url: Option<Url>) -> String {
        url.map_or("none".into(), |u| {
            format!("{} {} {}", if u.origin.tls { "https" } else { "http" }, u.origin, u.path)
        })
    }

    #[test]
    fn urls_are_read() {
        for (text, expect) in [
            ("https://Auth.docker.io/token?a=b#x", "https auth.docker.io /token?a=b"),
            ("http://127.0.0.1:5000", "http 127.0.0.1:5000 /"),
            ("http://[::1]:80?x", "http [::1] /?x"),
            ("https://a:443/x", "https a /x"),
            ("https://user@host/", "none"),
            ("https://a:0/", "none"),
            ("https://a:x/", "none"),
            ("https:///x", "none"),
            ("ftp://a/", "none"),
            ("https://a/b c", "none"),
            ("https://a/\r\nX: y", "none"),
            ("a/b", "none"),
        ] {
            assert_eq!(show(Url::parse(text)), expect, "{text}");
        }
    }

    #[test]
    fn locations_are_joined() {
        let base = Url::parse("https://a/v2/x/blobs/1?q=/").unwrap();
        for (location, expect) in [
            ("https://cdn/x?sig=http://y", "https cdn /x?sig=http://y"),
            ("/y", "https a /y"),
            ("//b/y", "https b /y"),
            ("2?u=http://z", "https a /v2/x/blobs/2?u=http://z"),
            ("file:///etc/passwd", "none"),
        ] {
            assert_eq!(show(base.join(location)), expect, "{location}");
        }
        let scope = base.with_query(&[("scope", "repository:a/b:pull")]);
        assert_eq!(scope.path, "/v2/x/blobs/1?q=/&scope=repository%3Aa%2Fb%3Apull");
    }
}
