//! Manual pages and shell completions are generated from the command line's definition and checked
//! in, so that a packager needs neither the generators nor to run anything. This test fails when
//! they are stale, and writes them anew when told to:
//!
//! `UPDATE_EXPECT=1 cargo test -p coracle --test shell_documents`

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use coracle::cli::Cli;
use expect_test::expect_file;

#[test]
fn manual_pages_are_those_of_the_command_line() {
    let mut pages = BTreeMap::new();
    add_pages(&with_global_arguments(visible()), &mut pages);
    assert_files("man", &pages);
}

#[test]
fn shell_completions_are_those_of_the_command_line() {
    let named =
        [("coracle.bash", Shell::Bash), ("_coracle", Shell::Zsh), ("coracle.fish", Shell::Fish)];
    let files = named.map(|(name, shell)| {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut visible(), "coracle", &mut text);
        (name.to_owned(), String::from_utf8(text).unwrap())
    });
    assert_files("completions", &files.into());
}

/// The command line without hidden subcommands, which not every generator leaves out by itself.
fn visible() -> Command {
    let all = Cli::command();
    assert!(all.get_subcommands().any(Command::is_hide_set), "nothing is hidden any more");
    let mut visible = Command::new("coracle")
        .version(env!("CARGO_PKG_VERSION"))
        .about(all.get_about().unwrap().clone())
        .after_help(all.get_after_help().unwrap().clone())
        .subcommand_required(all.is_subcommand_required_set())
        .args(all.get_arguments().cloned());
    for command in all.get_subcommands().filter(|command| !command.is_hide_set()) {
        visible = visible.subcommand(command.clone());
    }
    visible
}

/// Built, so that each subcommand has its full name and the arguments that all of them take.
fn with_global_arguments(mut command: Command) -> Command {
    command.build();
    command
}

/// The page of `command` and those of the subcommands below it, by file name.
fn add_pages(command: &Command, pages: &mut BTreeMap<String, String>) {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    // What `help` says is on the pages.
    let shown = || command.get_subcommands().filter(|command| command.get_name() != "help");
    let man = Man::new(command.clone())
        .title(name.to_uppercase())
        .source(concat!("coracle ", env!("CARGO_PKG_VERSION")))
        .manual("Coracle");
    let mut text = rendered(|text| man.render_title(text));
    text.push_str(&rendered(|text| man.render_name_section(text)));
    let usage = command.clone().render_usage().to_string();
    text.push_str(&format!(".SH SYNOPSIS\n{}\n", roff(usage.trim_start_matches("Usage: "))));
    text.push_str(&rendered(|text| man.render_description_section(text)));
    text.push_str(&rendered(|text| man.render_options_section(text)));
    if shown().next().is_some() {
        text.push_str(".SH SUBCOMMANDS\n");
    }
    for command in shown() {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let name = command.get_display_name().unwrap();
        text.push_str(&format!(".TP\n\\fB{}\\fR(1)\n{}\n", roff(name), roff(&about)));
    }
    text.push_str(&sections(&command.get_after_help().unwrap().to_string()));
    text.push_str(&see_also(&name, command.has_subcommands()));
    assert_eq!(pages.insert(format!("{name}.1"), text), None);
    for command in shown() {
        add_pages(command, pages);
    }
}

/// A section, without the definition of the apostrophe that comes before each.
fn rendered(section: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()>) -> String {
    const APOSTROPHE: &str = ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n";
    let mut text = Vec::new();
    section(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap().replace(APOSTROPHE, "").replace("\\*(Aq", "\\(aq");
    text.trim_start().replace(" \n", "\n")
}

/// The end of a help text as sections of a page: "Heading:" and indented lines, or else prose.
fn sections(after_help: &str) -> String {
    let (mut notes, mut listed) = (String::new(), String::new());
    for part in after_help.split("\n\n") {
        match part.split_once(":\n") {
            Some((heading, lines)) if lines.lines().all(|line| line.starts_with("  ")) => {
                listed.push_str(&format!(".SH {}\n.nf\n", roff(&heading.to_uppercase())));
                for line in lines.lines() {
                    listed.push_str(&format!("{}\n", roff(line.trim_start_matches("  "))));
                }
                listed.push_str(".fi\n");
            }
            _ => {
                notes.push_str(if notes.is_empty() { ".SH NOTES\n" } else { ".PP\n" });
                part.lines().for_each(|line| notes.push_str(&format!("{}\n", roff(line))));
            }
        }
    }
    notes + &listed
}

fn see_also(name: &str, has_subcommands: bool) -> String {
    match name.split_once('-') {
        Some((above, _)) if !has_subcommands => {
            format!(".SH SEE ALSO\n\\fB{}\\fR(1)\n", roff(above))
        }
        _ => String::new(),
    }
}

/// Text that the formatter leaves as it is.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

/// The directory holds these files and no others.
fn assert_files(directory: &str, files: &BTreeMap<String, String>) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    fs::create_dir_all(&directory).unwrap();
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        if !files.contains_key(path.file_name().unwrap().to_str().unwrap()) {
            assert!(std::env::var_os("UPDATE_EXPECT").is_some(), "{} is stale", path.display());
            fs::remove_file(path).unwrap();
        }
    }
    for (name, text) in files {
        expect_file![directory.join(name)].assert_eq(text);
    }
}
