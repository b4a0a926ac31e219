//! Bytes of the two pipes to lines.
//!
//! Waits for bytes and for nothing else; only while the beginning of a line is held back there is a
//! time limit, after which it is written as a part. One read, one time, at most two writes.

use std::fs::File;
use std::io::{self, BufRead as _, Read as _};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::clock;
use crate::line::{self, LONGEST_HEADER, START, Stream, Time};
use crate::writer::Writer;

/// Bytes that are read at once from a pipe; also the longest part of a line.
pub const BUFFER: usize = 32 * 1024;
/// Bytes that are written at once.
const BATCH: usize = 64 * 1024;
/// How long the beginning of a line is held back.
const PATIENCE: Duration = Duration::from_secs(1);

/// One of the two pipes.
#[derive(Debug)]
struct Pipe<'a> {
    /// `None` at its end.
    file: Option<File>,
    stream: Stream,
    buffer: &'a mut [u8],
    /// Bytes at the beginning of the buffer that are the beginning of a line, and since when.
    held: usize,
    since: Instant,
}

/// Writes what comes from the pipes until both end.
pub fn run(stdout: Option<File>, stderr: Option<File>, writer: &mut Writer) {
    // In one piece: that large, it is memory of its own, whose pages are there once they are used.
    let mut buffers = vec![0; 4 * BUFFER];
    let (first, rest) = buffers.split_at_mut(BUFFER);
    let second = &mut rest[..BUFFER];
    let since = clock::monotonic_now();
    let mut pipes = [
        Pipe { file: stdout, stream: Stream::Stdout, buffer: first, held: 0, since },
        Pipe { file: stderr, stream: Stream::Stderr, buffer: second, held: 0, since },
    ];
    let mut batch = Batch { bytes: Vec::with_capacity(BATCH), writer };
    batch.mark_start();
    while pipes.iter().any(|pipe| pipe.file.is_some()) {
        let ready = wait(&pipes);
        for (pipe, ready) in pipes.iter_mut().zip(ready) {
            if ready {
                pipe.read(&mut batch);
            } else if pipe.held > 0 && pipe.since.elapsed() >= PATIENCE {
                pipe.give_up_holding(&mut batch);
            }
        }
        batch.flush();
    }
}

/// Which pipes have something to be read, or have ended.
fn wait(pipes: &[Pipe<'_>; 2]) -> [bool; 2] {
    let held = pipes.iter().filter(|pipe| pipe.held > 0);
    let patience = held.map(|pipe| PATIENCE.saturating_sub(pipe.since.elapsed())).min();
    let limit = match patience {
        // A millisecond more, not to wake up just before.
        Some(left) => PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::ZERO),
        None => PollTimeout::NONE,
    };
    let open = |pipe: &Pipe<'_>| pipe.file.is_some();
    let mut waited = Vec::with_capacity(2);
    for file in pipes.iter().filter_map(|pipe| pipe.file.as_ref()) {
        waited.push(PollFd::new(file.as_fd(), PollFlags::POLLIN));
    }
    match poll(&mut waited, limit) {
        Ok(_) => {}
        // Nothing is known to be ready.
        Err(Errno::EINTR) => return [false, false],
        // Never seen; reading tells more.
        Err(_) => return [open(&pipes[0]), open(&pipes[1])],
    }
    let mut found = waited.iter().map(|fd| fd.any().unwrap_or(true));
    [
        open(&pipes[0]) && found.next().unwrap_or(false),
        open(&pipes[1]) && found.next().unwrap_or(false),
    ]
}

impl Pipe<'_> {
    fn read(&mut self, batch: &mut Batch<'_>) {
        let Some(file) = &mut self.file else { return };
        let count = match file.read(&mut self.buffer[self.held..]) {
            Ok(count) => count,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) =>
            {
                return;
            }
            Err(_) => 0,
        };
        if count == 0 {
            self.give_up_holding(batch);
            self.file = None;
            return;
        }
        let filled = self.held + count;
        let kept = batch.add(&self.buffer[..filled], self.stream);
        if self.held == 0 || kept < filled {
            // The beginning of a line that came with this read.
            self.since = clock::monotonic_now();
        }
        self.buffer.copy_within(filled - kept..filled, 0);
        self.held = kept;
        if self.held == self.buffer.len() {
            self.give_up_holding(batch);
        }
    }

    /// Writes what is held back as a part of a line.
    fn give_up_holding(&mut self, batch: &mut Batch<'_>) {
        if self.held > 0 {
            batch.add_part(&self.buffer[..self.held], self.stream);
            self.held = 0;
        }
    }
}

/// Lines on their way to the files.
struct Batch<'a> {
    bytes: Vec<u8>,
    writer: &'a mut Writer,
}

impl Batch<'_> {
    fn mark_start(&mut self) {
        line::add_header(&mut self.bytes, &Time::now().text(), Stream::Coracle);
        self.bytes.extend_from_slice(START);
        self.bytes.push(b'\n');
        self.flush();
    }

    /// Adds all whole lines; gives the number of bytes at the end that are none.
    fn add(&mut self, mut input: &[u8], stream: Stream) -> usize {
        let time = Time::now().text();
        while !input.is_empty() {
            self.make_room(input.len().min(BUFFER));
            let at = self.bytes.len();
            line::add_header(&mut self.bytes, &time, stream);
            let before = input.len();
            // Reading from memory into memory does not fail.
            let _ = input.read_until(b'\n', &mut self.bytes);
            if self.bytes.last() != Some(&b'\n') {
                self.bytes.truncate(at);
                return before;
            }
        }
        0
    }

    fn add_part(&mut self, text: &[u8], stream: Stream) {
        self.make_room(text.len());
        let at = self.bytes.len();
        line::add_header(&mut self.bytes, &Time::now().text(), stream);
        line::make_partial(&mut self.bytes, at, stream);
        self.bytes.extend_from_slice(text);
        self.bytes.push(b'\n');
    }

    /// So that another line fits into the memory that there is.
    fn make_room(&mut self, text: usize) {
        if self.bytes.len() + LONGEST_HEADER + text + 1 > BATCH {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if !self.bytes.is_empty() {
            self.writer.write(&self.bytes);
            self.bytes.clear();
        }
    }
}
