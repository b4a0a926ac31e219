//! What is needed to see what is wrong with a gateway, as one JSON document: what the agent knows, and
//! what the kernel says. No secrets: values of secrets and the content of key files never come here,
//! and passwords in URLs are taken out.

use std::fs;
use std::io::Read;

use serde_json::{Map, Value};

/// Most bytes that are read of one file.
const MAX_FILE_BYTES: u64 = 256 * 1024;

/// What the kernel says of itself.
const FILES: [(&str, &str); 9] = [
    ("memory", "/proc/meminfo"),
    ("load", "/proc/loadavg"),
    ("uptime", "/proc/uptime"),
    ("version", "/proc/version"),
    ("mounts", "/proc/self/mountinfo"),
    ("interfaces", "/proc/net/dev"),
    ("pressure_memory", "/proc/pressure/memory"),
    ("pressure_cpu", "/proc/pressure/cpu"),
    ("pressure_io", "/proc/pressure/io"),
];

/// What is known before the kernel is asked.
#[derive(Debug, Default)]
pub struct Diagnostics {
    /// What the agent knows, by name.
    pub known: Map<String, Value>,
}

impl Diagnostics {
    /// The whole document. Blocks while files are read.
    pub(super) fn document(&mut self) -> Vec<u8> {
        let mut document = std::mem::take(&mut self.known);
        let kernel = FILES.into_iter().map(|(name, path)| (name.to_owned(), read(path)));
        document.insert("kernel".into(), Value::Object(kernel.collect()));
        serde_json::to_vec(&document).expect("a document of values always serialises")
    }
}

/// A file's lines; one that is not there is null.
fn read(path: &str) -> Value {
    let mut text = String::new();
    let read = fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES).read_to_string(&mut text).map(drop));
    match read {
        Ok(()) => text.lines().map(Value::from).collect(),
        Err(_) => Value::Null,
    }
}

/// A text without what stands before the `@` in its URLs (RFC 3986 section 3.2.1).
pub fn without_passwords(text: &str) -> String {
    let mut parts = text.split("://");
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(['/', '"', ' ', '\n']).unwrap_or(part.len());
        clean.push_str("://");
        match part[..end].rfind('@') {
            Some(at) => {
                clean.push_str("...");
                clean.push_str(&part[at..]);
            }
            None => clean.push_str(part),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_urls_are_taken_out() {
        for (text, clean) in [
            (
                "proxy: \"http://me:p@ss@proxy:3128/x\", a@b",
                "proxy: \"http://...@proxy:3128/x\", a@b",
            ),
            ("https://a/b@c and http://u@h", "https://a/b@c and http://...@h"),
            ("nothing", "nothing"),
        ] {
            assert_eq!(without_passwords(text), clean);
        }
    }

    #[test]
    fn the_document_has_what_the_kernel_says() {
        let known = [("x".to_owned(), Value::from(1))].into_iter().collect();
        let document = Diagnostics { known }.document();
        let document: Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(document["x"], 1);
        assert!(document["kernel"]["memory"][0].as_str().unwrap().starts_with("MemTotal"));
        assert!(document["kernel"]["interfaces"].as_array().unwrap().len() > 2);
    }
}
