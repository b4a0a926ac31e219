//! `coracle logs`: what containers said, straight from the files, whether the agent runs or not.

use std::io::{self, BufWriter, IsTerminal as _, StdoutLock, Write};
use std::path::{Path, PathBuf};

use coracle_core::name::ContainerId;
use serde::Serialize;

use super::failure::Failure;
use super::style::{Style, Tone};
use super::text::{Cell, add_table, clean, size};
use super::{Outcome, config_file, output, status};
use crate::logs::{
    self, Item, Kept, Pattern, Record, Run, Selection, Sources, Stream, Time, Watch, parse_since,
};

/// Arguments of `coracle logs`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Whose: all containers of a workload, of one of its replicas, or one container. Without it,
    /// list what is kept
    #[arg(value_name = "WORKLOAD[.INDEX[.CONTAINER]]")]
    name: Option<Pattern>,
    /// Only containers of this name
    #[arg(long, short, value_name = "NAME", requires = "name")]
    container: Option<String>,
    /// Go on until interrupted, also when the container is started anew
    #[arg(long, short, requires = "name", conflicts_with = "previous")]
    follow: bool,
    /// Only lines from a time on, such as 2026-03-01T12:00:00Z, or from a while ago, such as 10m
    #[arg(long, value_name = "TIME", requires = "name", value_parser = parse_since)]
    since: Option<Time>,
    /// Only so many lines of each container, the last ones
    #[arg(long, short = 'n', value_name = "LINES", requires = "name")]
    tail: Option<u64>,
    /// Of the run before the newest one: why did it end?
    #[arg(long, short, requires = "name")]
    previous: bool,
    /// Of all runs that are kept, not only of the newest one
    #[arg(long, requires = "name", conflicts_with = "previous")]
    all: bool,
    /// Put the time before each line
    #[arg(long, short, requires = "name")]
    timestamps: bool,
    /// Only what was said on this one
    #[arg(long, value_name = "STREAM", requires = "name", value_parser = parse_stream)]
    stream: Option<Stream>,
    /// Print one line of JSON for each line, or the list as JSON
    #[arg(long)]
    json: bool,
    /// Configuration file that says where logs are; /etc/coracle/coracle.toml if there is one
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
}

fn parse_stream(text: &str) -> Result<Stream, &'static str> {
    [Stream::Stdout, Stream::Stderr]
        .into_iter()
        .find(|stream| stream.name() == text)
        .ok_or("it is stdout or stderr")
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    let dir = dir(args.config.as_deref())?;
    match &args.name {
        None => show_list(&dir, args.json),
        Some(pattern) => show(&dir, pattern, args),
    }
}

/// Where logs are.
fn dir(named: Option<&Path>) -> Result<PathBuf, Failure> {
    let (config, trouble) = config_file::read(named, "tell where logs are")?;
    let dir = logs::dir(&config.logs, &config.state_dir);
    if let Some(trouble) = trouble {
        output::remark(&format!("-- {trouble}; looking in {} --", dir.display()));
    }
    Ok(dir)
}

fn unreadable(dir: &Path) -> impl Fn(io::Error) -> Failure + '_ {
    |source| Failure::Logs { dir: dir.to_owned(), source }
}

// --- the list -----------------------------------------------------------------------------------

#[derive(Serialize)]
struct Listed<'a> {
    container: &'a str,
    size: u64,
    newest: Option<coracle_protocol::Timestamp>,
}

fn show_list(dir: &Path, json: bool) -> Result<Outcome, Failure> {
    let kept = logs::list(dir).map_err(unreadable(dir))?;
    if json {
        let listed = kept.iter().map(|kept| Listed {
            container: kept.id.as_str(),
            size: kept.size,
            newest: kept.newest,
        });
        output::print_json(&listed.collect::<Vec<_>>())?;
    } else if kept.is_empty() {
        output::remark(&format!("no logs in {}", dir.display()));
    } else {
        output::print(&render_list(&kept, output::now(), &Style::of_stdout()))?;
    }
    Ok(Outcome::Good)
}

fn render_list(kept: &[Kept], now: coracle_protocol::Timestamp, style: &Style) -> String {
    let row = |kept: &Kept| {
        let cells = vec![Cell::new(clean(kept.id.as_str(), style)), Cell::new(size(kept.size))];
        (cells, kept.newest.map_or("-".into(), |newest| status::roughly_ago(newest, now)))
    };
    let rows: Vec<_> = kept.iter().map(row).collect();
    let mut page = String::new();
    add_table(&mut page, &["CONTAINER", "SIZE", "WRITTEN"], &rows, style);
    page
}

// --- lines --------------------------------------------------------------------------------------

fn show(dir: &Path, pattern: &Pattern, args: &Args) -> Result<Outcome, Failure> {
    let selection = Selection {
        run: match (args.previous, args.all) {
            (true, _) => Run::Previous,
            (_, true) => Run::All,
            _ => Run::Newest,
        },
        tail: args.tail,
        since: args.since,
        stream: args.stream,
    };
    let failed = unreadable(dir);
    let mut sources = Sources::new(dir, pattern.clone(), args.container.clone());
    sources.look(selection).map_err(&failed)?;
    if sources.read().len() == 0 {
        let missing = || Failure::NoLogs {
            name: pattern.to_string(),
            dir: dir.to_owned(),
            previous: sources.knows_any(),
        };
        if !args.follow {
            return Err(missing());
        }
        output::remark(&format!("-- {}; waiting --", missing()));
    }
    let several = sources.read().len() > 1 || (args.follow && pattern.parts() < 3);
    let mut page = Page::new(args, dir, several);
    page.print_all(&mut sources)?;
    if !args.follow {
        page.finish()?;
        return Ok(Outcome::Good);
    }
    // What appears later is new from its beginning.
    let later = Selection { run: Run::All, tail: None, ..selection };
    let watch = Watch::new();
    loop {
        watch.add(dir);
        for id in sources.read() {
            watch.add(&dir.join(id.as_str()));
        }
        sources.look(later).map_err(&failed)?;
        page.print_all(&mut sources)?;
        watch.wait();
    }
}

/// Standard output, and what was last written to it.
struct Page<'a> {
    args: &'a Args,
    dir: &'a Path,
    out: BufWriter<StdoutLock<'static>>,
    style: Style,
    /// Whether bytes are made harmless.
    terminal: bool,
    /// Whether lines say whose they are.
    several: bool,
    /// Whose line is not at its end.
    open: Option<(ContainerId, Stream)>,
}

impl<'a> Page<'a> {
    fn new(args: &'a Args, dir: &'a Path, several: bool) -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        let out = BufWriter::with_capacity(64 * 1024, stdout.lock());
        Self { args, dir, out, style: Style::of_stdout(), terminal, several, open: None }
    }

    /// Prints what there is.
    fn print_all(&mut self, sources: &mut Sources) -> Result<(), Failure> {
        let failed =
            |error: io::Error| Failure::Client { action: "write the output", source: error.into() };
        while let Some((id, item, fresh)) = sources.next_item().map_err(unreadable(self.dir))? {
            match item {
                Item::Gap => self
                    .remark(&id, "lines are missing: removed before they were read")
                    .map_err(failed)?,
                Item::Record(record) if self.args.json => self.print_json(&id, &record)?,
                Item::Record(record) if record.is_start() && fresh => {}
                Item::Record(record) if record.stream == Stream::Coracle => {
                    let said = if record.is_start() {
                        "started anew".into()
                    } else {
                        String::from_utf8_lossy(&record.text).into_owned()
                    };
                    self.remark(&id, &said).map_err(failed)?;
                }
                Item::Record(record) => self.print(id, &record).map_err(failed)?,
            }
        }
        self.out.flush().map_err(failed)
    }

    fn print(&mut self, id: ContainerId, record: &Record) -> io::Result<()> {
        let this = (id, record.stream);
        if self.open.as_ref() != Some(&this) {
            self.end_line()?;
            let mut prefix = String::new();
            if self.several {
                prefix = format!("{} | ", clean(this.0.as_str(), &self.style));
            }
            if self.args.timestamps {
                prefix.push_str(&format!("{} ", record.time));
            }
            if !prefix.is_empty() {
                let prefix = self.style.paint(Tone::Quiet, &prefix);
                self.out.write_all(prefix.as_bytes())?;
            }
        }
        if self.terminal {
            self.out.write_all(escape(&record.text, self.style.utf8).as_bytes())?;
        } else {
            self.out.write_all(&record.text)?;
        }
        self.open = record.partial.then_some(this);
        if !record.partial { self.out.write_all(b"\n") } else { Ok(()) }
    }

    /// What is no line of the container, on standard error.
    fn remark(&mut self, id: &ContainerId, said: &str) -> io::Result<()> {
        self.end_line()?;
        self.out.flush()?;
        output::remark(&format!("-- {id}: {} --", clean(said, &self.style)));
        Ok(())
    }

    fn end_line(&mut self) -> io::Result<()> {
        if self.open.take().is_some() { self.out.write_all(b"\n") } else { Ok(()) }
    }

    /// The last line has an end on a terminal; elsewhere it is as the container left it.
    fn finish(&mut self) -> Result<(), Failure> {
        let ended = if self.terminal { self.end_line() } else { Ok(()) };
        ended
            .and_then(|()| self.out.flush())
            .map_err(|error| Failure::Client { action: "write the output", source: error.into() })
    }

    fn print_json(&mut self, id: &ContainerId, record: &Record) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct Said<'a> {
            container: &'a str,
            time: String,
            stream: &'a str,
            partial: bool,
            text: std::borrow::Cow<'a, str>,
        }
        let said = Said {
            container: id.as_str(),
            time: record.time.to_string(),
            stream: record.stream.name(),
            partial: record.partial,
            text: String::from_utf8_lossy(&record.text),
        };
        serde_json::to_writer(&mut self.out, &said)
            .map_err(io::Error::from)
            .and_then(|()| self.out.write_all(b"\n"))
            .map_err(|error| Failure::Client { action: "write the output", source: error.into() })
    }
}

/// What a terminal shows as it is stays; all that could drive it is written out: `\x1b`.
fn escape(text: &[u8], utf8: bool) -> String {
    let mut shown = String::with_capacity(text.len());
    // The end of a line as devices write it.
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\t' | ' '..='~' => shown.push(c),
                c if c.is_ascii() => shown.push_str(&format!("\\x{:02x}", u32::from(c))),
                c if utf8 && !c.is_control() && !super::text::is_invisible(c) => shown.push(c),
                c => shown.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
            }
        }
        for byte in chunk.invalid() {
            shown.push_str(&format!("\\x{byte:02x}"));
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use coracle_protocol::Timestamp;
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_hostile_container_cannot_drive_the_terminal() {
        let evil = b"a\tb\x1b[2J\x07\x00\x7f\xc2\x9b31m\xff\xfe\xc3\xa9\xe2\x80\xae\\\r";
        assert_eq!(escape(evil, true), r"a	b\x1b[2J\x07\x00\x7f\u{9b}31m\xff\xfeé\u{202e}\");
        assert_eq!(escape("é".as_bytes(), false), r"\u{e9}");
        assert_eq!(escape(b"a\rb\r", true), r"a\x0db");
    }

    #[test]
    fn the_list_tells_size_and_age() {
        let kept = |id, size, newest: u64| Kept {
            id: ContainerId::from_listed(id),
            size,
            newest: Some(Timestamp::from_unix(newest)),
        };
        let style = Style { width: Some(80), colour: false, utf8: false };
        let list = [kept("reader.0.main", 4096, 940), kept("web.0.proxy", 4_194_304, 999)];
        expect![[r#"
            CONTAINER      SIZE     WRITTEN
            reader.0.main  4.0 KiB  1 min ago
            web.0.proxy    4.0 MiB  1 s ago
        "#]]
        .assert_eq(&render_list(&list, Timestamp::from_unix(1000), &style));
    }
}
