//! `scripts/demo`: the main job on one machine, step by step, with everything around it private.
//! In: options. Out: the story on standard output, and nothing left behind. Exit code 0 good, 1 a
//! step failed or something was left, 2 usage, 130 interrupted before the end.

mod interrupt;
mod screen;
mod story;

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Parser;
use coracle_testbed::{Result, place};

use crate::screen::Screen;
use crate::story::Story;

/// Shows the main job of Coracle on this machine, in under a minute.
///
/// Starts a private containerd, a broker with mutual TLS, a registry with an image built on the
/// spot, and `coracle agent`; signs and publishes an order; cuts the agent from the broker; kills
/// processes. Then it waits, so that you can look around. Ctrl-C, at any moment, removes all of it.
/// Needs root.
#[derive(Debug, Parser)]
#[command(
    name = "scripts/demo",
    max_term_width = 90,
    after_help = "\
Examples:
  scripts/demo                                      then look around, and press Ctrl-C
  scripts/demo --once                               clean up at the end of the story
  scripts/demo --image docker.io/library/nginx:1.27 run an image of yours

Exit codes:
  0    good
  1    a step failed (its reason is printed), or something was left behind
  2    usage
  130  interrupted before the end of the story"
)]
pub(crate) struct Args {
    /// Clean up and exit at the end, instead of waiting for Ctrl-C
    #[arg(long)]
    once: bool,
    /// Run this image instead of one built on the spot: HOST/NAME:TAG or HOST/NAME@DIGEST
    #[arg(long, value_name = "REF")]
    image: Option<String>,
    /// Longest time for the image of --image to be pulled and started, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300, requires = "image")]
    patience: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match play(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            Screen::of_stdout().failure(&format!("{error:#}"), &[]);
            ExitCode::FAILURE
        }
    }
}

fn play(args: Args) -> Result<u8> {
    let stop = interrupt::flag()?;
    let mut screen = Screen::of_stdout();
    let once = args.once;
    let mut story = Story::begin(args, stop.clone())?;
    let told = story.tell(&mut screen);
    let interrupted = stop.load(Ordering::SeqCst);
    if let (Err(error), false) = (&told, interrupted) {
        screen.failure(&format!("{error}"), &story.details(error));
    }
    if told.is_ok() && !once {
        screen.line("\nPress Ctrl-C to end and remove all of this.");
        while !stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let tidy = clean_up(story, &screen);
    Ok(match told {
        _ if !tidy => 1,
        Ok(()) => 0,
        Err(_) if interrupted => 130,
        Err(_) => 1,
    })
}

fn clean_up(story: Story, screen: &Screen) -> bool {
    let begun = Instant::now();
    let name = story.name().to_owned();
    drop(story);
    let left = place::leftovers(&name);
    if left.is_empty() {
        let time = begun.elapsed().as_secs_f64();
        screen.line(&format!(
            "\nCleaned up in {time:.1} s: no process, mount, cgroup or directory of the demo is left."
        ));
    } else {
        screen.failure("not everything could be removed", &[("Left behind", left.join("\n"))]);
    }
    left.is_empty()
}
