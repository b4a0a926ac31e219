//! Reading what one container said, from some line on, over the ends of files and over restarts.
//! Memory is bounded by the longest line. Nothing depends on the order of times: the clock of a
//! gateway may go back.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use coracle_core::name::ContainerId;
use coracle_log::files;
use coracle_log::line::{Line, Stream, Time};

use super::LONGEST_LINE;
use super::backward::{Backward, Position};

const BLOCK: usize = 64 * 1024;

/// Which runs of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// The newest one.
    Newest,
    /// The one before.
    Previous,
    /// All that are kept.
    All,
}

/// Which lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Of which runs.
    pub run: Run,
    /// At most so many, the last ones. Parts of one line are one.
    pub tail: Option<u64>,
    /// None that says it is older.
    pub since: Option<Time>,
    /// None but of this stream.
    pub stream: Option<Stream>,
}

impl Selection {
    /// Whether a line is one of those, as far as can be told from itself. What we say ourselves is.
    fn takes(&self, time: Time, stream: Stream) -> bool {
        let own = stream == Stream::Coracle;
        self.since.is_none_or(|since| time >= since)
            && self.stream.is_none_or(|wanted| own || stream == wanted)
    }
}

/// One line, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When it was read from the container.
    pub time: Time,
    /// Who said it.
    pub stream: Stream,
    /// Whether the next record of this stream goes on with the line.
    pub partial: bool,
    /// What was said, byte for byte.
    pub text: Vec<u8>,
}

impl Record {
    /// Whether a run of the container begins here.
    pub fn is_start(&self) -> bool {
        self.line().is_start()
    }

    fn line(&self) -> Line<'_> {
        Line { time: self.time, stream: self.stream, partial: self.partial, text: &self.text }
    }
}

/// What a reader finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A line.
    Record(Record),
    /// Files that had not yet been read were removed for the sake of newer ones.
    Gap,
}

/// Reads one container's lines, oldest first.
#[derive(Debug)]
pub struct Reader {
    container: PathBuf,
    selection: Selection,
    /// Where what is read next is.
    at: Position,
    /// Where reading ends; `None` if it goes on with what is yet to come.
    to: Option<Position>,
    file: Option<File>,
    /// Bytes of the file from `at` on.
    piece: Vec<u8>,
    /// How much of the piece was given.
    given: usize,
    /// Inside a line that is too long.
    skipping: bool,
}

impl Reader {
    /// Reads the selected lines; `None` if there is no such run of the container, or nothing is kept.
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn open(dir: &Path, id: &ContainerId, selection: Selection) -> io::Result<Option<Self>> {
        let container = dir.join(id.as_str());
        let range = match locate(&container, &selection) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            range => range?,
        };
        Ok(range.map(|(at, to)| Self {
            container,
            selection,
            at,
            to,
            file: None,
            piece: Vec::new(),
            given: 0,
            skipping: false,
        }))
    }

    /// The next line; `None` if there is none yet.
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn next_item(&mut self) -> io::Result<Option<Item>> {
        loop {
            if self.file.is_none() {
                match self.open_file()? {
                    Opened::Nothing => return Ok(None),
                    Opened::AfterGap => return Ok(Some(Item::Gap)),
                    Opened::Next => {}
                }
            }
            if let Some(newline) = self.piece[self.given..].iter().position(|&b| b == b'\n') {
                if self.to.is_some_and(|to| self.at >= to) {
                    return Ok(None);
                }
                let end = self.given + newline;
                let record = self.take_line(end);
                if let Some(record) = record {
                    return Ok(Some(Item::Record(record)));
                }
            } else if !self.read_more()? && !self.leave_file()? {
                return Ok(None);
            }
        }
    }

    fn take_line(&mut self, end: usize) -> Option<Record> {
        let line = Line::parse(&self.piece[self.given..end]).filter(|_| !self.skipping);
        let line = line.filter(|line| self.selection.takes(line.time, line.stream));
        let record = line.map(|line| Record {
            time: line.time,
            stream: line.stream,
            partial: line.partial,
            text: line.text.to_vec(),
        });
        self.at.offset += (end + 1 - self.given) as u64;
        self.given = end + 1;
        self.skipping = false;
        record
    }

    /// Opens the file at `at`, or the next one there is.
    fn open_file(&mut self) -> io::Result<Opened> {
        let numbers = self.numbers()?;
        let Some(&number) = numbers.range(self.at.number..).next() else {
            return Ok(Opened::Nothing);
        };
        match File::open(files::path(&self.container, number)) {
            Ok(file) => self.file = Some(file),
            // Taken meanwhile: the next one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Opened::Nothing),
            Err(error) => return Err(error),
        }
        let gap = self.at.number > 0 && number != self.at.number;
        if number != self.at.number {
            self.at = Position { number, offset: 0 };
        }
        (self.given, self.skipping) = (0, false);
        self.piece.clear();
        Ok(if gap { Opened::AfterGap } else { Opened::Next })
    }

    /// Reads on in the file. Whether there was more.
    fn read_more(&mut self) -> io::Result<bool> {
        self.piece.drain(..self.given);
        self.given = 0;
        if self.piece.len() > LONGEST_LINE {
            self.at.offset += self.piece.len() as u64;
            self.piece.clear();
            self.skipping = true;
        }
        let Some(file) = &self.file else { return Ok(false) };
        let known = self.piece.len();
        self.piece.resize(known + BLOCK, 0);
        let count = loop {
            match file.read_at(&mut self.piece[known..], self.at.offset + known as u64) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                count => break count?,
            }
        };
        if count == 0 {
            // A line that is not whole is read again: on a full disk its writer may take it back.
            self.piece.clear();
            return Ok(false);
        }
        self.piece.truncate(known + count);
        Ok(true)
    }

    /// Leaves a file that was read to its end for the next one. Whether there is something to read.
    fn leave_file(&mut self) -> io::Result<bool> {
        let numbers = self.numbers()?;
        let next = numbers.range(self.at.number.saturating_add(1)..).next();
        let begun_anew = !numbers.is_empty() && !numbers.contains(&self.at.number);
        match next {
            // What was written between our last look and the beginning of the next file.
            Some(_) if self.read_more()? => {}
            Some(_) => {
                self.file = None;
                self.at = Position { number: self.at.number.saturating_add(1), offset: 0 };
            }
            None if begun_anew => {
                self.file = None;
                self.at = Position::default();
            }
            None => return Ok(false),
        }
        Ok(true)
    }

    fn numbers(&self) -> io::Result<BTreeSet<u32>> {
        match files::numbers(&self.container) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            numbers => Ok(numbers?.into_iter().collect()),
        }
    }
}

enum Opened {
    Nothing,
    AfterGap,
    Next,
}

/// Where the selected lines begin and, if they are not the newest, end.
fn locate(
    container: &Path,
    selection: &Selection,
) -> io::Result<Option<(Position, Option<Position>)>> {
    let mut lines = Backward::new(container)?;
    let mut counted = Counted::default();
    let (mut from, mut to) = (None, None);
    let mut oldest = None;
    while let Some((begin, end, line)) = lines.previous()? {
        if line.is_start() {
            // What was not ended before is a line of its own.
            (counted.stdout, counted.stderr) = (false, false);
            match selection.run {
                Run::All => {}
                Run::Previous if to.is_none() => {
                    to = Some(begin);
                    counted = Counted::default();
                    oldest = None;
                    continue;
                }
                Run::Newest | Run::Previous => {
                    from = Some(begin);
                    break;
                }
            }
        }
        let inside = selection.run != Run::Previous || to.is_some();
        let said = line.stream != Stream::Coracle && selection.takes(line.time, line.stream);
        if inside && said && !counted.add(line.stream, line.partial, selection.tail) {
            from = Some(end);
            break;
        }
        oldest = Some(begin);
    }
    if selection.run == Run::Previous && (to.is_none() || (from.is_none() && oldest.is_none())) {
        return Ok(None);
    }
    Ok(Some((from.or(oldest).unwrap_or_default(), to)))
}

/// Lines counted from the newest to the oldest. A line that is cut where another stream came
/// between its parts may lose its first parts.
#[derive(Default)]
struct Counted {
    lines: u64,
    /// Whether the last part of a line of these streams was seen.
    stdout: bool,
    stderr: bool,
}

impl Counted {
    /// Whether this one is within the limit.
    fn add(&mut self, stream: Stream, partial: bool, limit: Option<u64>) -> bool {
        let seen = if stream == Stream::Stderr { &mut self.stderr } else { &mut self.stdout };
        if partial && *seen {
            return true;
        }
        if limit.is_some_and(|limit| self.lines >= limit) {
            return false;
        }
        *seen = true;
        self.lines += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use coracle_log::line::{add_header, make_partial};

    use super::*;

    const EVERYTHING: Selection =
        Selection { run: Run::All, tail: None, since: None, stream: None };

    struct Bed {
        dir: tempfile::TempDir,
        id: ContainerId,
        clock: u64,
    }

    impl Bed {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("web.0.main")).unwrap();
            Self { dir, id: ContainerId::from_listed("web.0.main"), clock: 100 }
        }

        /// Adds to a file: `o`, `e` for the streams, `O`, `E` for parts, `s` for a start, `?` for
        /// what is no line; then the text.
        fn add(&mut self, number: u32, lines: &[&str]) {
            let mut bytes = Vec::new();
            for said in lines {
                let (kind, text) = said.split_at(1);
                let at = bytes.len();
                let stream = match kind {
                    "o" | "O" => Stream::Stdout,
                    "e" | "E" => Stream::Stderr,
                    _ => Stream::Coracle,
                };
                self.clock += 1;
                match kind {
                    "?" => bytes.extend_from_slice(b"\0\0garbage"),
                    "s" => {
                        add_header(&mut bytes, &Time::from_micros(self.clock).text(), stream);
                        bytes.extend_from_slice(b"start");
                    }
                    _ => {
                        add_header(&mut bytes, &Time::from_micros(self.clock).text(), stream);
                        if kind.chars().all(char::is_uppercase) {
                            make_partial(&mut bytes, at, stream);
                        }
                        bytes.extend_from_slice(text.as_bytes());
                    }
                }
                bytes.push(b'\n');
            }
            let path = self.path(number);
            let mut there = fs::read(&path).unwrap_or_default();
            there.extend_from_slice(&bytes);
            fs::write(path, there).unwrap();
        }

        fn path(&self, number: u32) -> PathBuf {
            files::path(&self.dir.path().join("web.0.main"), number)
        }

        fn open(&self, selection: Selection) -> Option<Reader> {
            Reader::open(self.dir.path(), &self.id, selection).unwrap()
        }

        fn read(&self, selection: Selection) -> Vec<String> {
            self.open(selection).map_or(vec!["none".into()], |mut reader| drain(&mut reader))
        }
    }

    fn drain(reader: &mut Reader) -> Vec<String> {
        let mut found = Vec::new();
        while let Some(item) = reader.next_item().unwrap() {
            found.push(match item {
                Item::Record(record) if record.is_start() => "start".into(),
                Item::Record(record) => String::from_utf8(record.text).unwrap(),
                Item::Gap => "gap".into(),
            });
        }
        found
    }

    #[test]
    fn runs_are_told_apart_over_the_ends_of_files() {
        let mut bed = Bed::new();
        bed.add(3, &["oa", "ob"]);
        bed.add(4, &["s", "oc"]);
        bed.add(5, &["Od", "s", "oe"]);
        bed.add(6, &["of"]);
        let of = |run| bed.read(Selection { run, ..EVERYTHING });
        assert_eq!(of(Run::All), ["a", "b", "start", "c", "d", "start", "e", "f"]);
        assert_eq!(of(Run::Newest), ["start", "e", "f"]);
        assert_eq!(of(Run::Previous), ["start", "c", "d"]);
        let tail = |run, tail| bed.read(Selection { run, tail: Some(tail), ..EVERYTHING });
        assert_eq!(tail(Run::Previous, 1), ["d"]);
        assert_eq!(tail(Run::All, 3), ["d", "start", "e", "f"]);
        assert_eq!(tail(Run::Newest, 9), ["start", "e", "f"]);
        assert_eq!(tail(Run::Newest, 0), [""; 0]);
    }

    #[test]
    fn a_run_before_that_is_gone_is_none() {
        let mut bed = Bed::new();
        assert_eq!(bed.read(EVERYTHING), [""; 0]);
        bed.add(1, &["oa"]);
        let previous = Selection { run: Run::Previous, ..EVERYTHING };
        assert_eq!(bed.read(previous), ["none"]);
        bed.add(1, &["s", "ob"]);
        assert_eq!(bed.read(previous), ["a"]);
        fs::remove_file(bed.path(1)).unwrap();
        bed.add(2, &["s", "ob"]);
        assert_eq!(bed.read(previous), ["none"]);
        // A run that said nothing is one.
        bed.add(2, &["s"]);
        assert_eq!(bed.read(Selection { run: Run::Newest, ..EVERYTHING }), ["start"]);
        assert_eq!(bed.read(previous), ["start", "b"]);
    }

    #[test]
    fn parts_of_a_line_count_as_one_and_streams_are_told_apart() {
        let mut bed = Bed::new();
        bed.add(1, &["oa", "Eerr", "OHel", "Olo ", "oworld", "?", "Oopen"]);
        let tail = |tail, stream| bed.read(Selection { tail: Some(tail), stream, ..EVERYTHING });
        assert_eq!(tail(1, None), ["open"]);
        assert_eq!(tail(2, None), ["Hel", "lo ", "world", "open"]);
        assert_eq!(tail(1, Some(Stream::Stderr)), ["err"]);
        assert_eq!(tail(3, Some(Stream::Stdout)), ["a", "Hel", "lo ", "world", "open"]);
    }

    #[test]
    fn since_goes_by_each_lines_own_time() {
        let mut bed = Bed::new();
        bed.add(1, &["oa", "ob"]);
        bed.clock = 50;
        bed.add(1, &["oc"]);
        bed.clock = 200;
        bed.add(1, &["od"]);
        let since = Some(Time::from_micros(102));
        assert_eq!(bed.read(Selection { since, ..EVERYTHING }), ["b", "d"]);
        assert_eq!(bed.read(Selection { since, tail: Some(2), ..EVERYTHING }), ["b", "d"]);
        assert_eq!(bed.read(Selection { since, tail: Some(1), ..EVERYTHING }), ["d"]);
    }

    #[test]
    fn a_reader_follows_over_files_gaps_and_a_new_beginning() {
        let mut bed = Bed::new();
        bed.add(1, &["s", "oa"]);
        let mut reader = bed.open(EVERYTHING).unwrap();
        assert_eq!(drain(&mut reader), ["start", "a"]);
        bed.add(1, &["ob"]);
        // A line that is not whole yet, and is taken back.
        let whole = fs::read(bed.path(1)).unwrap();
        let mut torn = whole.clone();
        torn.extend_from_slice(b"1970-01-01T00:00:00.000001Z stdout F to");
        fs::write(bed.path(1), torn).unwrap();
        assert_eq!(drain(&mut reader), ["b"]);
        fs::write(bed.path(1), whole).unwrap();
        bed.add(1, &["oc"]);
        bed.add(2, &["od"]);
        assert_eq!(drain(&mut reader), ["c", "d"]);
        bed.add(2, &["oe"]);
        bed.add(5, &["of"]);
        fs::remove_file(bed.path(2)).unwrap();
        assert_eq!(drain(&mut reader), ["e", "gap", "f"]);
        fs::remove_dir_all(bed.dir.path().join("web.0.main")).unwrap();
        assert_eq!(drain(&mut reader), [""; 0]);
        fs::create_dir(bed.dir.path().join("web.0.main")).unwrap();
        bed.add(1, &["s", "og"]);
        assert_eq!(drain(&mut reader), ["start", "g"]);
    }

    #[test]
    fn long_lines_and_many_blocks_are_read_from_both_ends() {
        let mut bed = Bed::new();
        let long = "x".repeat(100_000);
        let lines = (0..5000).map(|n| format!("oline {n} {}", "y".repeat(n % 300)));
        let mut lines = lines.collect::<Vec<_>>();
        lines.insert(2500, format!("o{long}"));
        let texts = lines.iter().map(|line| line[1..].to_owned()).collect::<Vec<_>>();
        for (number, lines) in (1..).zip(lines.chunks(1700)) {
            bed.add(number, &lines.iter().map(String::as_str).collect::<Vec<_>>());
        }
        assert_eq!(bed.read(EVERYTHING), texts);
        for tail in [1, 1599, 1602, 2501, 2502, 4999] {
            let read = bed.read(Selection { tail: Some(tail as u64), ..EVERYTHING });
            assert!(read == texts[texts.len() - tail..], "{tail}");
        }
    }

    #[test]
    fn what_is_too_long_to_be_ours_is_passed_over() {
        let mut bed = Bed::new();
        bed.add(1, &["oa"]);
        let mut bytes = fs::read(bed.path(1)).unwrap();
        bytes.resize(bytes.len() + 3 * LONGEST_LINE, 0);
        bytes.push(b'\n');
        fs::write(bed.path(1), bytes).unwrap();
        bed.add(1, &["ob"]);
        assert_eq!(bed.read(EVERYTHING), ["a", "b"]);
        assert_eq!(bed.read(Selection { tail: Some(2), ..EVERYTHING }), ["a", "b"]);
    }
}
