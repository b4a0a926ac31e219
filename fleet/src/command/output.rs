//! What a command gives: pieces of one gzip member (RFC 1952), put together and written out as they
//! come.

use std::io::Write;

use anyhow::{Context as _, bail};
use coracle_protocol::command::OutputSummary;
use coracle_protocol::limits::MAX_OUTPUT_BYTES;
use flate2::write::GzDecoder;
use ring::digest::{Context, SHA256};

/// Puts pieces together. One that comes again is passed over.
pub(super) struct Output {
    decoder: Option<GzDecoder<Limited>>,
    digest: Context,
    received: u64,
}

/// The standard output, and nothing beyond what a command may give.
struct Limited {
    shown: bool,
    left: usize,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.left = self.left.checked_sub(bytes.len()).ok_or_else(|| {
            std::io::Error::other("the gateway gives more than a command may give")
        })?;
        if self.shown {
            std::io::stdout().write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stdout().flush()
    }
}

impl Output {
    /// `shown`: whether what comes is printed.
    pub(super) fn new(shown: bool) -> Self {
        // What is said of left out lines comes on top.
        let limited = Limited { shown, left: MAX_OUTPUT_BYTES + MAX_OUTPUT_BYTES / 16 };
        let decoder = Some(GzDecoder::new(limited));
        Self { decoder, digest: Context::new(&SHA256), received: 0 }
    }

    /// Takes a piece in.
    ///
    /// # Errors
    /// One before it is missing, it is no gzip, or it cannot be written.
    pub(super) fn take(&mut self, offset: u64, bytes: &[u8]) -> anyhow::Result<()> {
        if offset > self.received {
            bail!("a piece of what the command gave is missing: {} to {offset}", self.received);
        }
        let known = usize::try_from(self.received - offset).unwrap_or(usize::MAX);
        let Some(new) = bytes.get(known..).filter(|new| !new.is_empty()) else { return Ok(()) };
        let Some(decoder) = &mut self.decoder else { return Ok(()) };
        decoder.write_all(new).context("what the command gave cannot be read or written")?;
        decoder.flush().context("what the command gave cannot be written")?;
        self.digest.update(new);
        self.received += new.len() as u64;
        Ok(())
    }

    /// All has come.
    ///
    /// # Errors
    /// It is not whole, or not what the gateway sent.
    pub(super) fn finish(&mut self, summary: &OutputSummary) -> anyhow::Result<()> {
        let digest: String = self
            .digest
            .clone()
            .finish()
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        if self.received != summary.bytes || digest != summary.digest {
            let (received, bytes) = (self.received, summary.bytes);
            bail!("what the command gave is not whole: {received} of {bytes} bytes came");
        }
        if let Some(decoder) = self.decoder.take() {
            decoder.finish().context("what the command gave ends too early")?;
        }
        if summary.truncated {
            eprintln!("the gateway left the rest out: a command may not give more");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    #[test]
    fn pieces_may_come_twice_but_none_may_be_missing() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(b"one\n").unwrap();
        encoder.flush().unwrap();
        encoder.write_all(b"two\n").unwrap();
        let all = encoder.finish().unwrap();
        let mut output = Output::new(false);
        output.take(0, &all[..10]).unwrap();
        output.take(0, &all[..10]).unwrap();
        assert!(output.take(11, &all[11..]).is_err());
        output.take(5, &all[5..]).unwrap();
        let digest = coracle_core::digest::sha256_hex(&all);
        let whole = OutputSummary { bytes: all.len() as u64, digest, truncated: false };
        let other = OutputSummary { digest: "00".into(), ..whole.clone() };
        assert!(output.finish(&other).is_err());
        output.finish(&whole).unwrap();
        assert!(Output::new(false).take(0, b"no gzip at all, whatever it is").is_err());
    }
}
