//! A child process that uses a store as an agent does, and says what was acknowledged.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use coracle::store::Loaded;

use super::support::{NONE, container_change, open, order, this_program, wait, workload_change};

const DIRECTORY: &str = "CORACLE_TEST_STORE_DIRECTORY";
const ORDERS: &str = "CORACLE_TEST_STORE_ORDERS";

/// Opens, takes the first candidate if there is no order, then for each order: accepts it, keeping
/// [`needed`] ones, records a container and a workload, reserves. Prints `accepted N` after each acknowledged order.
#[test]
fn child_that_uses_a_store() {
    let Ok(dir) = std::env::var(DIRECTORY) else { return };
    let orders: u64 = std::env::var(ORDERS).unwrap().parse().unwrap();
    let (store, loaded) = open(&PathBuf::from(dir));
    println!("\nopened");
    wait(async {
        let newest = newest(&loaded);
        if let (None, Some(candidate)) = (&loaded.current, loaded.candidates.first()) {
            store.accept(candidate.order.clone(), NONE).await.unwrap();
        }
        for generation in newest + 1..=newest + orders {
            store.accept(order(generation), needed(generation)).await.unwrap();
            println!("accepted {generation}");
            let number = Some(generation as u32);
            let index = (generation % 50) as u32;
            let changes = vec![container_change(index, number), workload_change(index, number)];
            store.record(changes).await.unwrap();
            store.reserve_sequence("boot", 0).await.unwrap();
        }
        store.close().await;
    });
    println!("closed");
}

/// The orders that are still needed when this one is accepted: two of three, for a while.
fn needed(generation: u64) -> BTreeSet<u64> {
    (generation.saturating_sub(14)..generation).filter(|older| older % 3 != 0).collect()
}

/// The kept orders, newest first, once this one was accepted by a store that knows all since `first`.
pub(crate) fn kept(generation: u64, first: u64) -> Vec<u64> {
    let needed = needed(generation).into_iter();
    needed.filter(|older| (first..generation - 1).contains(older)).rev().take(8).collect()
}

/// The generation that the agent would go on from.
pub(crate) fn newest(loaded: &Loaded) -> u64 {
    let candidate = loaded.candidates.first().map_or(0, |candidate| candidate.order.generation);
    loaded.highest_generation.max(candidate)
}

/// The child, to be started.
pub(crate) fn child(dir: &Path, orders: u64) -> Command {
    let mut command = this_program("scenario::child_that_uses_a_store");
    command.env(DIRECTORY, dir).env(ORDERS, orders.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The highest generation that the child said was accepted.
pub(crate) fn acknowledged(stdout: &[u8]) -> u64 {
    String::from_utf8_lossy(stdout)
        .lines()
        .filter_map(|line| line.strip_prefix("accepted ")?.parse().ok())
        .max()
        .unwrap_or(0)
}
