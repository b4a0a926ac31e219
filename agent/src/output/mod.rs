//! What commands give beyond a few words: compressed as one gzip member (RFC 1952), made batch by batch
//! as it is sent, so that nothing of it lies on a disk and no more of it in memory than is on its way.
//!
//! In: what is wanted ([`Source`]). Out: [`Batch`]es, each asked for when the one before it has
//! gone. Deliberately not here: sending, and whether somebody may have it.
//!
//! | file | what it does |
//! |---|---|
//! | `log_lines` | what containers said, and what they say until a lease ends |
//! | `diagnostics` | what is needed to see what is wrong with a gateway |

use std::io::{self, Write};

use coracle_protocol::limits::{MAX_OUTPUT_BYTES, MAX_PIECE_BYTES};
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::task::spawn_blocking;

use crate::error_chain::chain;

mod diagnostics;
mod log_lines;

pub use diagnostics::{Diagnostics, without_passwords};
pub use log_lines::{Lease, LogLines};

/// What is given.
#[derive(Debug)]
pub enum Source {
    /// This text.
    Text(Vec<u8>),
    /// Lines of logs, as JSON.
    Logs(LogLines),
    /// A JSON document about the gateway.
    Diagnostics(Box<Diagnostics>),
}

/// The next bytes of an output.
#[derive(Debug)]
pub struct Batch {
    /// Compressed; can be read up to their end.
    pub bytes: Vec<u8>,
    /// Nothing comes after them; whether there was more than may be given.
    pub end: Option<bool>,
}

/// An output that is being made.
#[derive(Debug)]
pub struct Output {
    compressed: GzEncoder<Vec<u8>>,
    source: Source,
    /// Bytes that may still be given, before compression.
    room: usize,
}

impl Output {
    /// Gives nothing yet.
    pub fn new(source: Source) -> Self {
        let compressed = GzEncoder::new(Vec::new(), Compression::default());
        Self { compressed, source, room: MAX_OUTPUT_BYTES }
    }

    /// The next bytes. Waits for some, where a lease goes on.
    ///
    /// # Errors
    /// Why there is no more, for people.
    pub async fn next(mut self) -> Result<(Self, Batch), String> {
        loop {
            let taken;
            (self, taken) = self.take().await?;
            let end = match taken {
                Taken::Some => None,
                Taken::Pause => {
                    self.compressed.flush().map_err(|error| error.to_string())?;
                    let bytes = std::mem::take(self.compressed.get_mut());
                    return Ok((self, Batch { bytes, end: None }));
                }
                Taken::Last => Some(false),
                Taken::TooMuch => Some(true),
            };
            if end.is_some() {
                self.compressed.try_finish().map_err(|error| error.to_string())?;
            }
            if end.is_some() || self.compressed.get_ref().len() >= MAX_PIECE_BYTES {
                let bytes = std::mem::take(self.compressed.get_mut());
                return Ok((self, Batch { bytes, end }));
            }
        }
    }

    async fn take(mut self) -> Result<(Self, Taken), String> {
        match &mut self.source {
            Source::Logs(lines) => lines.wait().await,
            Source::Text(_) | Source::Diagnostics(_) => {}
        }
        let taken = spawn_blocking(move || {
            let taken = self.take_now()?;
            Ok((self, taken))
        });
        taken.await.map_err(|error| chain(&error))?.map_err(|error: io::Error| chain(&error))
    }

    fn take_now(&mut self) -> io::Result<Taken> {
        let (text, taken) = match &mut self.source {
            Source::Text(text) => (std::mem::take(text), Taken::Last),
            Source::Diagnostics(diagnostics) => (diagnostics.document(), Taken::Last),
            Source::Logs(lines) => lines.next()?,
        };
        if text.len() > self.room {
            self.room = 0;
            return Ok(Taken::TooMuch);
        }
        self.room -= text.len();
        self.compressed.write_all(&text)?;
        Ok(taken)
    }
}

/// What was taken from a source.
#[derive(Debug, PartialEq, Eq)]
enum Taken {
    /// Something; more comes at once.
    Some,
    /// Nothing more for the moment: what was taken so far is to be given.
    Pause,
    /// The last.
    Last,
    /// There was more than may be given.
    TooMuch,
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    async fn all(source: Source) -> (Vec<u8>, bool, usize) {
        let (mut output, mut bytes, mut batches) = (Output::new(source), Vec::new(), 0);
        loop {
            let batch;
            (output, batch) = output.next().await.unwrap();
            bytes.extend(batch.bytes);
            batches += 1;
            if let Some(truncated) = batch.end {
                let mut text = Vec::new();
                flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut text).unwrap();
                return (text, truncated, batches);
            }
        }
    }

    #[tokio::test]
    async fn a_text_is_given_whole_or_not_at_all() {
        let text = b"some text".to_vec();
        assert_eq!(all(Source::Text(text.clone())).await, (text, false, 1));
        let large = vec![b'x'; MAX_OUTPUT_BYTES + 1];
        assert_eq!(all(Source::Text(large)).await, (Vec::new(), true, 1));
    }
}
