//! A GET request and the head of its answer: HTTP/1.1 (RFC 9112) as far as a status needs it.
//!
//! Deliberately not here: the body, which is thrown away, redirects, and TLS.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::error::RequestError;

/// Longest head of an answer that is read, in bytes.
pub(super) const MAX_HEAD: usize = 8192;

/// Most of a body that is read, in bytes, and for how long. Whoever answers is not to find the
/// connection broken while it still writes.
const MAX_BODY: usize = 64 * 1024;
const BODY_LIMIT: Duration = Duration::from_secs(1);

/// A request as it is sent. Headers that are given replace those that are made.
pub(super) fn request(port: u16, path: &str, headers: &BTreeMap<String, String>) -> Vec<u8> {
    let host = format!("127.0.0.1:{port}");
    let made = [("Host", host.as_str()), ("User-Agent", "coracle"), ("Connection", "close")];
    let mut text = format!("GET {path} HTTP/1.1\r\n");
    let given = |name: &str| headers.keys().any(|key| key.eq_ignore_ascii_case(name));
    let made = made.into_iter().filter(|(name, _)| !given(name));
    let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in made.chain(headers) {
        text += &format!("{name}: {value}\r\n");
    }
    text += "\r\n";
    text.into_bytes()
}

/// Sends what is left of a request and reads until the end of the answer's head; gives the status.
pub(super) async fn exchange(stream: &TcpStream, mut unsent: &[u8]) -> Result<u16, RequestError> {
    let mut head = Head::default();
    loop {
        // An answer may come before all is sent, and then counts.
        let interest = if unsent.is_empty() { Interest::READABLE } else { BOTH };
        let ready = stream.ready(interest).await.map_err(broken)?;
        if ready.is_readable() || ready.is_read_closed() {
            if let Some(status) = read(stream, &mut head)? {
                return Ok(status);
            }
        }
        if ready.is_writable() && !unsent.is_empty() {
            match stream.try_write(unsent) {
                Ok(sent) => unsent = &unsent[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(broken(error)),
            }
        }
    }
}

const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// Reads what is there; the status if it is known by now.
fn read(stream: &TcpStream, head: &mut Head) -> Result<Option<u16>, RequestError> {
    let mut chunk = [0; 1024];
    loop {
        match stream.try_read(&mut chunk) {
            Ok(0) => return head.end().map(Some),
            Ok(length) => {
                if let Some(status) = head.take(&chunk[..length])? {
                    return Ok(Some(status));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(broken(error)),
        }
    }
}

/// Reads what is left of an answer, within bounds.
pub(super) async fn drain(stream: &TcpStream) {
    let drained = async {
        let mut chunk = [0; 4096];
        let mut left = MAX_BODY;
        while left > 0 && stream.readable().await.is_ok() {
            match stream.try_read(&mut chunk) {
                Ok(0) => return,
                Ok(length) => left = left.saturating_sub(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    // Whatever comes of it: the status is known.
    timeout(BODY_LIMIT, drained).await.unwrap_or(());
}

fn broken(error: io::Error) -> RequestError {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => RequestError::Closed,
        _ => RequestError::Broken(error),
    }
}

/// The head of an answer as it comes in.
#[derive(Debug, Default)]
struct Head {
    bytes: Vec<u8>,
    /// How far its end has been looked for.
    looked: usize,
}

impl Head {
    /// Takes what has come; the status if the head is complete.
    fn take(&mut self, chunk: &[u8]) -> Result<Option<u16>, RequestError> {
        let room = MAX_HEAD - self.bytes.len();
        self.bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
        const BEGIN: &[u8] = b"HTTP/1.";
        let begun = self.bytes.len().min(BEGIN.len());
        if self.bytes[..begun] != BEGIN[..begun] {
            return Err(RequestError::Garbage);
        }
        while let Some(end) = self.blank_line() {
            let status = status(&self.bytes)?;
            // Not an answer yet (RFC 9110, 15.2).
            if !(100..200).contains(&status) || status == 101 {
                return Ok(Some(status));
            }
            self.bytes.drain(..end);
            self.looked = 0;
        }
        if chunk.len() > room || self.bytes.len() == MAX_HEAD {
            return Err(RequestError::Endless);
        }
        Ok(None)
    }

    /// Nothing more comes: some servers leave the blank line out.
    fn end(&self) -> Result<u16, RequestError> {
        match self.bytes.contains(&b'\n') {
            true => status(&self.bytes),
            false => Err(RequestError::Closed),
        }
    }

    /// Where the first blank line ends.
    fn blank_line(&mut self) -> Option<usize> {
        let from = self.looked.saturating_sub(3);
        self.looked = self.bytes.len();
        let ends = |at: usize| {
            let rest = &self.bytes[at..];
            [&b"\n\n"[..], b"\n\r\n"].iter().find(|end| rest.starts_with(end)).map(|e| at + e.len())
        };
        (from..self.bytes.len()).find_map(ends)
    }
}

/// The status in a status line: `HTTP/1.1 200 OK`.
fn status(head: &[u8]) -> Result<u16, RequestError> {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut words = line.split(|byte| *byte == b' ');
    let (version, code) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    if version.len() != 8 || !is_digit(&version[7]) || code.len() != 3 || !code.iter().all(is_digit)
    {
        return Err(RequestError::Garbage);
    }
    Ok(code.iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_what_is_needed_and_what_was_given() {
        let none = BTreeMap::new();
        let plain = "GET /healthz?deep=1 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: coracle\r\n\
                     Connection: close\r\n\r\n";
        assert_eq!(request(8080, "/healthz?deep=1", &none), plain.as_bytes());
        let given = [("host", "example.org"), ("X-Probe", "1")];
        let given = given.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let own = "GET / HTTP/1.1\r\nUser-Agent: coracle\r\nConnection: close\r\n\
                   X-Probe: 1\r\nhost: example.org\r\n\r\n";
        assert_eq!(request(80, "/", &given), own.as_bytes());
    }

    /// What is known after all of this has come, in one piece and byte by byte, and its end.
    fn check(answer: &[u8], expected: &str) {
        let whole = |chunks: &mut dyn Iterator<Item = &[u8]>| {
            let mut head = Head::default();
            for chunk in chunks {
                match head.take(chunk) {
                    Ok(None) => {}
                    Ok(Some(status)) => return status.to_string(),
                    Err(error) => return error.to_string(),
                }
            }
            match head.end() {
                Ok(status) => format!("{status} at the end"),
                Err(error) => format!("{error} at the end"),
            }
        };
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(60)]).into_owned();
        assert_eq!(whole(&mut std::iter::once(answer)), expected, "{shown:?}");
        assert_eq!(whole(&mut answer.chunks(1)), expected, "byte by byte: {shown:?}");
        assert_eq!(whole(&mut answer.chunks(7)), expected, "in pieces: {shown:?}");
    }

    #[test]
    fn heads() {
        check(b"HTTP/1.1 200 OK\r\n\r\n", "200");
        check(b"HTTP/1.0 404 Not Found\r\nServer: x\r\n\r\nbody", "404");
        check(b"HTTP/1.1 204\r\n\r\n", "204");
        check(b"HTTP/1.1 301 Moved\nLocation: /\n\n", "301");
        check(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 503 No\r\n\r\n", "503");
        check(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "101");
        check(b"HTTP/1.1 200 OK\r\nServer: x\r\n", "200 at the end");
        check(b"HTTP/1.1 200 OK", "the connection was closed before an answer came at the end");
        check(b"", "the connection was closed before an answer came at the end");
    }

    #[test]
    fn what_is_no_head() {
        let garbage = "the answer is not HTTP";
        for answer in [
            &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
            b"\r\n",
            b"\0\0\x12\x04\0\0\0\0\0",
            b"HTTP/2 200\r\n\r\n",
            b"HTTP/1.1  200 OK\r\n\r\n",
            b"HTTP/1.x 200 OK\r\n\r\n",
            b"HTTP/1.1 2000 OK\r\n\r\n",
            b"HTTP/1.1 20x OK\r\n\r\n",
            b"HTTP/1.1 \r\n\r\n",
            b"HTTP/1.11 200 OK\r\n\r\n",
        ] {
            check(answer, garbage);
        }
        let endless = [&b"HTTP/1.1 200 OK\r\n"[..], &b"X-More: and more\r\n".repeat(1000)].concat();
        check(&endless, "the answer's head is longer than 8192 bytes");
        let line = [&b"HTTP/1.1 200 "[..], &vec![b'O'; 10_000]].concat();
        check(&line, "the answer's head is longer than 8192 bytes");
    }
}
