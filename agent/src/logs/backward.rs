//! The lines of one container from the newest to the oldest, a block at a time.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use coracle_log::files;
use coracle_log::line::Line;

use super::LONGEST_LINE;

const BLOCK: usize = 64 * 1024;

/// A place between two lines. Ordered as the lines are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    /// Of the file.
    pub(super) number: u32,
    /// In the file, in bytes.
    pub(super) offset: u64,
}

/// Goes from the newest line to the oldest. What is after the last newline, and what is no line of
/// ours, is passed over.
#[derive(Debug)]
pub(super) struct Backward<'a> {
    container: &'a Path,
    /// Of files not yet begun, oldest first.
    numbers: Vec<u32>,
    file: Option<(u32, File)>,
    /// A piece of the file; what is before `end` is not yet given, and ends with a newline.
    piece: Vec<u8>,
    end: usize,
    /// Where the piece is in the file.
    start: u64,
}

impl<'a> Backward<'a> {
    pub(super) fn new(container: &'a Path) -> io::Result<Self> {
        let numbers = files::numbers(container)?;
        Ok(Self { container, numbers, file: None, piece: Vec::new(), end: 0, start: 0 })
    }

    /// The line before, with its beginning and its end.
    pub(super) fn previous(&mut self) -> io::Result<Option<(Position, Position, Line<'_>)>> {
        loop {
            if self.end == 0 && !self.find_end()? {
                return Ok(None);
            }
            let line = self.piece[..self.end - 1].iter().rposition(|&byte| byte == b'\n');
            let from = match line {
                Some(newline) => newline + 1,
                None if self.start == 0 => 0,
                None if self.end > LONGEST_LINE => {
                    self.end = 0;
                    continue;
                }
                None => {
                    self.load_before()?;
                    continue;
                }
            };
            let to = std::mem::replace(&mut self.end, from);
            let number = self.file.as_ref().map_or(0, |(number, _)| *number);
            let place = |at: usize| Position { number, offset: self.start + at as u64 };
            if Line::parse(&self.piece[from..to - 1]).is_some() {
                let line = Line::parse(&self.piece[from..to - 1]);
                return Ok(line.map(|line| (place(from), place(to), line)));
            }
        }
    }

    /// Goes to the last newline that was not yet passed, in this file or the one before.
    fn find_end(&mut self) -> io::Result<bool> {
        loop {
            if self.start == 0 {
                let Some(number) = self.numbers.pop() else { return Ok(false) };
                match File::open(files::path(self.container, number)) {
                    Ok(file) => {
                        self.start = file.metadata()?.len();
                        self.file = Some((number, file));
                    }
                    // Taken for the sake of newer ones.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
                continue;
            }
            self.load_before()?;
            if let Some(newline) = self.piece.iter().rposition(|&byte| byte == b'\n') {
                self.end = newline + 1;
                return Ok(true);
            }
        }
    }

    /// Puts the block before in front of what is not yet given.
    fn load_before(&mut self) -> io::Result<()> {
        let Some((_, file)) = &self.file else { return Ok(()) };
        let size = BLOCK.min(usize::try_from(self.start).unwrap_or(BLOCK));
        let mut block = vec![0; size];
        self.start -= size as u64;
        match file.read_exact_at(&mut block, self.start) {
            Ok(()) => {}
            // It was cut meanwhile.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => block.fill(0),
            Err(error) => return Err(error),
        }
        block.extend_from_slice(&self.piece[..self.end]);
        self.piece = block;
        if self.end > 0 {
            self.end += size;
        }
        Ok(())
    }
}
