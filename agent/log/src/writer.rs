//! Lines to files, whatever the disk does.
//!
//! In: batches of whole lines. Out: the files of one container. Nothing here fails, waits or is
//! repeated by a timer: what cannot be written is counted, and told in the log when there is room
//! again.
//!
//! On a full disk, in this order: our own oldest file goes; the oldest of the container that uses
//! most; our current file, if it holds enough to be worth it, for the sake of newer lines. Files are
//! then smaller, so that the next time costs less history. Only then lines are dropped.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::clock;
use crate::files::{self, Numbered, SMALLEST_FILE, Settings};
use crate::line::{self, Stream, Time};

/// Between two tries to open a file that could not be opened, if there is something to write.
const PAUSE: Duration = Duration::from_secs(1);
/// Most files that one batch may cost on a full disk.
const MOST_FREED: usize = 16;

/// Writes the files of one container.
#[derive(Debug)]
pub struct Writer {
    settings: Settings,
    place: PathBuf,
    current: Option<Current>,
    /// Bytes at which the current file is full; less than usual after the disk was full.
    full: u64,
    lost: Lost,
    /// When a file could not be opened or written to, and why (errno).
    last_failure: Option<(Instant, i32)>,
}

#[derive(Debug)]
struct Current {
    file: File,
    number: u32,
    len: u64,
    /// Whether the file ends inside a line, after a power cut or on a disk that fails.
    torn: bool,
}

/// What could not be kept.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lost {
    lines: u64,
    bytes: u64,
    reason: String,
}

impl Writer {
    /// For a container of that id.
    pub fn new(settings: Settings, id: &str) -> Self {
        let (place, full) = (settings.dir.join(id), settings.file);
        let lost = Lost::default();
        Self { settings, place, current: None, full, lost, last_failure: None }
    }

    /// Writes whole lines, or counts them as lost.
    pub fn write(&mut self, batch: &[u8]) {
        let written = match self.tell_lost() {
            Ok(()) => self.put(batch).map_err(|(error, rest)| (error, batch.len() - rest)),
            Err(error) => Err((error, 0)),
        };
        if let Err((error, written)) = written {
            self.lose(&batch[written..], &error);
        }
    }

    /// If lines were lost, says so first.
    fn tell_lost(&mut self) -> io::Result<()> {
        if self.lost.lines == 0 {
            return Ok(());
        }
        let mut text = Vec::new();
        line::add_header(&mut text, &Time::now().text(), Stream::Coracle);
        let Lost { lines, bytes, reason } = &self.lost;
        let noun = if *lines == 1 { "line" } else { "lines" };
        let mut said = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(said, "{} {lines} {noun}, {bytes} bytes: {reason}", line::LOST);
        text.extend_from_slice(said.as_bytes());
        self.put(&text).map_err(|(error, _)| error)?;
        self.lost = Lost::default();
        Ok(())
    }

    fn lose(&mut self, lines: &[u8], error: &io::Error) {
        self.lost.lines += lines.iter().filter(|&&byte| byte == b'\n').count() as u64;
        self.lost.bytes += lines.len() as u64;
        self.lost.reason = error.to_string();
    }

    /// Writes all of it, or gives the error and how many bytes at the end are not written.
    fn put(&mut self, batch: &[u8]) -> Result<(), (io::Error, usize)> {
        let mut rest = batch;
        let mut freed = 0;
        loop {
            let error = match self.try_put(&mut rest) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if !is_full(&error) || freed == MOST_FREED || !self.free_something() {
                return Err((error, rest.len()));
            }
            freed += 1;
        }
    }

    /// Writes what it can; `rest` is what is left.
    fn try_put(&mut self, rest: &mut &[u8]) -> io::Result<()> {
        let full = self.full;
        let stale = self.current.as_ref().is_none_or(|current| {
            files::is_gone(&current.file)
                || (current.len > 0 && current.len + rest.len() as u64 > full)
        });
        if stale {
            self.open_next()?;
        }
        let Some(current) = &mut self.current else { return Ok(()) };
        let result = current.append(rest);
        if result.as_ref().is_err_and(|error| !is_full(error)) {
            // Such as a file system that became read-only: it is opened anew, once in a while.
            self.current = None;
        }
        self.remember(&result);
        result
    }

    /// Opens the newest file if there is room in it, or else the next; removes what is too many.
    fn open_next(&mut self) -> io::Result<()> {
        match self.last_failure {
            Some((at, errno)) if at.elapsed() < PAUSE => Err(io::Error::from_raw_os_error(errno)),
            _ => {
                let result = self.try_open_next();
                self.remember(&result);
                result
            }
        }
    }

    /// A full disk is no reason to wait: somebody may have made room.
    fn remember(&mut self, result: &io::Result<()>) {
        let error = result.as_ref().err().filter(|error| !is_full(error));
        self.last_failure =
            error.map(|error| (clock::monotonic_now(), error.raw_os_error().unwrap_or(0)));
    }

    fn try_open_next(&mut self) -> io::Result<()> {
        files::make_dir(&self.place)?;
        let there = files::of_container(&self.place)?;
        let number = match (there.last(), &self.current) {
            (Some(newest), None) if newest.size < self.full => newest.number,
            (newest, current) => {
                let newest = newest.map_or(0, |newest| newest.number);
                newest.max(current.as_ref().map_or(0, |current| current.number)).saturating_add(1)
            }
        };
        let current = Current::open(files::open(&self.place, number)?, number)?;
        let usual = match files::enforce_cap(&self.settings) {
            Ok(usual) => usual,
            // Our own files are bounded all the same.
            Err(_) => self.settings.file,
        };
        self.full = self.full.saturating_mul(2).min(usual);
        let own = there.iter().filter(|file| file.number != number).collect::<Vec<_>>();
        for file in &own[..self.too_many(&own)] {
            files::remove(&self.place, file.number)?;
        }
        self.current = Some(current);
        Ok(())
    }

    /// How many of our older files are to go, before one more is filled. Where files are smaller than
    /// usual there may be more of them.
    fn too_many(&self, older: &[&Numbered]) -> usize {
        let files = u64::from(self.settings.files.max(2));
        let bytes = self.settings.file.saturating_mul(files);
        let most = files * (self.settings.file / self.full.max(1)).max(1);
        let mut used: u64 = older.iter().map(|file| file.size).sum::<u64>() + self.full;
        let mut left = older.len() as u64 + 1;
        let mut goes = 0;
        for file in older {
            if used <= bytes && left <= most {
                break;
            }
            used -= file.size;
            left -= 1;
            goes += 1;
        }
        goes
    }

    /// Makes room on a full disk. Whether anything was freed.
    fn free_something(&mut self) -> bool {
        let there = files::of_container(&self.place).unwrap_or_default();
        let used: u64 = there.iter().map(|file| file.size).sum();
        self.full = (used / 4).clamp(SMALLEST_FILE, self.full.max(SMALLEST_FILE));
        if let [oldest, _, ..] = there[..] {
            return files::remove(&self.place, oldest.number).is_ok();
        }
        if files::make_room(&self.settings.dir).unwrap_or(false) {
            return true;
        }
        match &self.current {
            Some(current) if current.len >= 2 * SMALLEST_FILE => {
                let number = current.number;
                self.current = None;
                files::remove(&self.place, number).is_ok() && self.start_after(number).is_ok()
            }
            _ => false,
        }
    }

    /// Goes on with the file after one that was removed, so that numbers only rise.
    fn start_after(&mut self, number: u32) -> io::Result<()> {
        let next = number.saturating_add(1);
        self.current = Some(Current::open(files::open(&self.place, next)?, next)?);
        Ok(())
    }
}

impl Current {
    fn open(file: File, number: u32) -> io::Result<Self> {
        let len = file.metadata()?.len();
        let mut last = [b'\n'];
        if len > 0 {
            file.read_exact_at(&mut last, len - 1)?;
        }
        Ok(Self { file, number, len, torn: last != *b"\n" })
    }

    /// Writes what it can, whole lines only; `rest` is what is left.
    fn append(&mut self, rest: &mut &[u8]) -> io::Result<()> {
        if self.torn {
            self.file.write_all(b"\n")?;
            self.len += 1;
            self.torn = false;
        }
        let mut written = 0;
        let result = loop {
            match self.file.write(&rest[written..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => break Err(error),
            }
            if written == rest.len() {
                break Ok(());
            }
        };
        let whole = rest[..written].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        self.len += whole as u64;
        if whole < written {
            self.torn = self.file.set_len(self.len).is_err();
        }
        *rest = &rest[whole..];
        result
    }
}

/// Whether room would help.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::line::Line;

    fn settings(dir: &Path) -> Settings {
        Settings { dir: dir.into(), file: 32 * 1024, files: 3, total: 1024 * 1024 }
    }

    fn batch(first: u64, lines: u64) -> Vec<u8> {
        let mut batch = Vec::new();
        for number in first..first + lines {
            line::add_header(&mut batch, &Time::from_micros(number).text(), Stream::Stdout);
            batch.extend_from_slice(format!("line {number}\n").as_bytes());
        }
        batch
    }

    /// Texts of all lines that are kept, oldest first.
    fn kept(dir: &Path) -> Vec<String> {
        let container = dir.join("web.0.main");
        let mut texts = Vec::new();
        for number in files::numbers(&container).unwrap() {
            let bytes = fs::read(files::path(&container, number)).unwrap();
            assert!(bytes.is_empty() || bytes.ends_with(b"\n"));
            for line in bytes.split_inclusive(|&byte| byte == b'\n') {
                let line = Line::parse(&line[..line.len() - 1]).map(|line| line.text.to_vec());
                texts.push(line.map_or("?".into(), |text| String::from_utf8(text).unwrap()));
            }
        }
        texts
    }

    #[test]
    fn the_newest_lines_are_kept_within_size_and_number() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(settings(dir.path()), "web.0.main");
        for first in (0..10_000).step_by(100) {
            writer.write(&batch(first, 100));
            let used = files::of_container(&dir.path().join("web.0.main")).unwrap();
            assert!(used.len() <= 3 && used.iter().all(|file| file.size <= 32 * 1024), "{used:?}");
        }
        let kept = kept(dir.path());
        assert!(kept.len() > 1000);
        let expected = (10_000 - kept.len()..10_000).map(|number| format!("line {number}"));
        assert_eq!(kept, expected.collect::<Vec<_>>());
    }

    #[test]
    fn many_containers_stay_below_the_cap_and_quiet_ones_keep_their_lines() {
        let dir = tempfile::tempdir().unwrap();
        let settings =
            Settings { file: 256 * 1024, total: 2 * 1024 * 1024, ..settings(dir.path()) };
        let mut writers = (0..50)
            .map(|index| Writer::new(settings.clone(), &format!("web.{index}.main")))
            .collect::<Vec<_>>();
        let mut most = 0;
        for round in 0..100 {
            for (index, writer) in writers.iter_mut().enumerate() {
                // A few are loud.
                let lines = if index % 10 == 3 { 300 } else { u64::from(round % 10 == 0) };
                if lines > 0 {
                    writer.write(&batch(round * 300, lines));
                }
            }
            let used = files::list(dir.path()).unwrap();
            most = most.max(used.iter().map(files::Used::size).sum());
        }
        assert!(most > settings.total / 2 && most <= settings.total / 8 * 9, "{most}");
        let used = files::list(dir.path()).unwrap();
        assert!(used.iter().map(files::Used::size).sum::<u64>() <= settings.total);
        let quiet = files::path(&dir.path().join("web.0.main"), 1);
        let lines = fs::read(quiet).unwrap();
        assert_eq!(lines.iter().filter(|&&byte| byte == b'\n').count(), 10);
    }

    #[test]
    fn a_second_run_goes_on_in_the_newest_file_and_mends_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        Writer::new(settings(dir.path()), "web.0.main").write(&batch(0, 1));
        let path = files::path(&dir.path().join("web.0.main"), 1);
        let mut text = fs::read(&path).unwrap();
        text.extend_from_slice(b"2026-03-01T12:00:0");
        fs::write(&path, text).unwrap();
        Writer::new(settings(dir.path()), "web.0.main").write(&batch(1, 1));
        assert_eq!(kept(dir.path()), ["line 0", "?", "line 1"]);
    }

    #[test]
    fn files_that_are_removed_under_it_are_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(settings(dir.path()), "web.0.main");
        writer.write(&batch(0, 1));
        fs::remove_dir_all(dir.path().join("web.0.main")).unwrap();
        writer.write(&batch(1, 1));
        assert_eq!(kept(dir.path()), ["line 1"]);
    }

    #[test]
    fn what_has_no_place_is_counted_and_told_when_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = dir.path().join("file");
        fs::write(&nowhere, "not a directory").unwrap();
        let mut writer = Writer::new(settings(&nowhere), "web.0.main");
        writer.write(&batch(0, 3));
        writer.write(&batch(3, 2));
        assert_eq!(writer.lost.lines, 5);
        fs::remove_file(&nowhere).unwrap();
        writer.last_failure = None;
        writer.write(&batch(5, 1));
        let kept = kept(&nowhere);
        assert!(
            kept[0].starts_with("lost 5 lines, ")
                && kept[0].ends_with("bytes: Not a directory (os error 20)"),
            "{kept:?}"
        );
        assert_eq!(kept[1..], ["line 5"]);
    }
}
