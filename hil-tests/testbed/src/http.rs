//! A small HTTP/1.1 client for plain HTTP on loopback. In: a URL of the form
//! `http://HOST:PORT/PATH`. Out: one response, read whole, within 30 seconds and 256 MiB. One
//! connection for each request; no redirects, no TLS.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use crate::Result;

const LIMIT: u64 = 256 * 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(30);

/// What a server answered.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Header names, in lower case, and their values, as they came.
    pub headers: Vec<(String, String)>,
    /// The body, decoded if it was chunked.
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of that name (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as text; what is not UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// GET.
pub fn get(url: &str) -> Result<Response> {
    request("GET", url, &[], &[])
}

/// Any request, with headers beside Host, Content-Length and Connection.
pub fn request(method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Response> {
    exchange(method, url, headers, body).with_context(|| format!("{method} {url}"))
}

fn exchange(method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Response> {
    let rest = url.strip_prefix("http://").context("not an http:// URL")?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut head = format!("{method} /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    read_response(BufReader::new(stream.take(LIMIT)), method == "HEAD")
}

fn read_response(mut from: impl BufRead, head_only: bool) -> Result<Response> {
    let status_line = line(&mut from)?;
    let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("no HTTP status in {status_line:?}"))?;
    let headers = read_headers(&mut from)?;
    let mut response = Response { status, headers, body: Vec::new() };
    if head_only || status == 204 || status == 304 {
        return Ok(response);
    }
    if response.header("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
        response.body = read_chunks(&mut from)?;
    } else if let Some(length) = response.header("content-length") {
        let length: u64 = length.parse().context("bad content-length")?;
        from.take(length).read_to_end(&mut response.body)?;
        let got = response.body.len() as u64;
        ensure!(got == length, "connection closed after {got} of {length} bytes");
    } else {
        from.read_to_end(&mut response.body)?;
    }
    Ok(response)
}

fn line(from: &mut impl BufRead) -> Result<String> {
    let mut bytes = Vec::new();
    from.take(16 * 1024).read_until(b'\n', &mut bytes)?;
    ensure!(bytes.ends_with(b"\n"), "connection closed, or a line over 16 KiB");
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

/// Reads header lines up to the empty one; at most 100.
pub(crate) fn read_headers(from: &mut impl BufRead) -> Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    loop {
        let line = line(from)?;
        if line.is_empty() {
            return Ok(headers);
        }
        let (name, value) = line.split_once(':').context("header without a colon")?;
        headers.push((name.trim().to_lowercase(), value.trim().to_owned()));
        ensure!(headers.len() <= 100, "more than 100 headers");
    }
}

/// Reads the request line: method and path.
pub(crate) fn read_request_line(from: &mut impl BufRead) -> Result<(String, String)> {
    let line = line(from)?;
    let mut words = line.split(' ');
    match (words.next(), words.next()) {
        (Some(method), Some(path)) => Ok((method.to_owned(), path.to_owned())),
        _ => bail!("not a request line: {line:?}"),
    }
}

fn read_chunks(from: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let size = line(from)?;
        let size = size.split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(size.trim(), 16).context("bad chunk size")?;
        if size == 0 {
            read_headers(from)?;
            return Ok(body);
        }
        let before = body.len() as u64;
        from.take(size).read_to_end(&mut body)?;
        ensure!(body.len() as u64 == before + size, "connection closed inside a chunk");
        line(from)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_chunks_and_notices_cuts() {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let read = |text: String| read_response(text.as_bytes(), false);
        let whole = read(format!("{head}3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n")).unwrap();
        assert_eq!((whole.status, whole.text().as_str()), (200, "abcde"));
        assert!(read(format!("{head}5\r\nab")).is_err());
        assert!(read("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab".to_owned()).is_err());
    }
}
