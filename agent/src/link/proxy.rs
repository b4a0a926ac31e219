//! A tunnel through an HTTP proxy (RFC 9110 section 9.3.6). In: a connection to the proxy, where to
//! lead it, and the file with the user and password, if there is one. Out: the connection, which then
//! leads there. Deliberately not here: which proxy.

use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use zeroize::Zeroizing;

use crate::pem_file::{PemFileError, read_limited, stamp};

/// Longest answer of a proxy, in bytes.
const MAX_ANSWER: usize = 8 * 1024;

/// Most header fields of an answer.
const MAX_FIELDS: usize = 64;

/// Why a proxy is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    #[error("the proxy's credentials cannot be used")]
    Credentials(#[from] PemFileError),
    #[error("the proxy's credentials in {0} are not of the form USER:PASSWORD")]
    NoPassword(std::path::PathBuf),
    #[error("the proxy wants to know who asks: link.proxy_credentials is missing or wrong")]
    NotAuthenticated,
    #[error("the proxy does not let anybody through to the broker: it answered {0}")]
    Refused(u16),
    #[error("the proxy does not answer in HTTP")]
    NoHttp,
    #[error("the connection to the proxy broke")]
    Broke(#[from] io::Error),
}

/// Asks for a tunnel to `host` and `port`.
pub(super) async fn tunnel<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    host: &str,
    port: u16,
    credentials: Option<&Path>,
) -> Result<(), ProxyError> {
    let request = request(host, port, credentials)?;
    stream.write_all(&request).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    loop {
        // What follows the answer is not the proxy's; it is not to be read here.
        let byte = stream.read_u8().await?;
        answer.push(byte);
        if answer.ends_with(b"\r\n\r\n") {
            break;
        }
        if answer.len() == MAX_ANSWER {
            return Err(ProxyError::NoHttp);
        }
    }
    match status(&answer).ok_or(ProxyError::NoHttp)? {
        200..300 => Ok(()),
        407 => Err(ProxyError::NotAuthenticated),
        other => Err(ProxyError::Refused(other)),
    }
}

fn request(
    host: &str,
    port: u16,
    credentials: Option<&Path>,
) -> Result<Zeroizing<Vec<u8>>, ProxyError> {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let mut request = Zeroizing::new(Vec::with_capacity(1024));
    request.extend_from_slice(
        format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n").as_bytes(),
    );
    if let Some(path) = credentials {
        let what = "proxy's credentials";
        stamp(what, path)?;
        let content = Zeroizing::new(read_limited(what, path)?);
        let line = content.trim_ascii();
        let good = line.contains(&b':') && !line.iter().any(u8::is_ascii_control);
        if !good {
            return Err(ProxyError::NoPassword(path.into()));
        }
        let encoded = Zeroizing::new(STANDARD.encode(line));
        request.extend_from_slice(b"Proxy-Authorization: Basic ");
        request.extend_from_slice(encoded.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    Ok(request)
}

/// The status code of an answer.
fn status(answer: &[u8]) -> Option<u16> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    match response.parse(answer) {
        Ok(httparse::Status::Complete(_)) => response.code,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(host: &str, credentials: Option<&Path>) -> String {
        String::from_utf8(request(host, 8883, credentials).unwrap().to_vec()).unwrap()
    }

    #[test]
    fn asks_in_http() {
        assert_eq!(
            text("broker.example", None),
            "CONNECT broker.example:8883 HTTP/1.1\r\nHost: broker.example:8883\r\n\r\n"
        );
        assert!(text("2001:db8::1", None).starts_with("CONNECT [2001:db8::1]:8883 "));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("credentials");
        std::fs::write(&file, "user:pass word\n").unwrap();
        let asked = text("broker.example", Some(&file));
        assert!(
            asked.contains("\r\nProxy-Authorization: Basic dXNlcjpwYXNzIHdvcmQ=\r\n"),
            "{asked}"
        );
        for bad in ["", "user", "user:a\nX-Other: b"] {
            std::fs::write(&file, bad).unwrap();
            let error = request("broker.example", 1, Some(&file)).unwrap_err();
            assert!(matches!(error, ProxyError::NoPassword(_)), "{bad:?}: {error}");
        }
    }

    #[test]
    fn reads_the_status() {
        assert_eq!(status(b"HTTP/1.1 200 Connection established\r\n\r\n"), Some(200));
        assert_eq!(status(b"HTTP/1.0 407 No\r\nA: b\r\n\r\n"), Some(407));
        assert_eq!(status(b"\x15\x03\x01\r\n\r\n"), None);
        assert_eq!(status(b"SSH-2.0-OpenSSH\r\n\r\n"), None);
    }
}
