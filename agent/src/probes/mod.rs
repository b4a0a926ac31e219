//! Asks containers whether they do their work.
//!
//! In: the complete list of containers that run, each time that it changes. Out: what is known of
//! each, whenever that changes and once at first. What answers come to and when which question is
//! due is decided in [`coracle_core::probe`].
//!
//! TCP and HTTP probes are made in the container's network by the agent's one thread: see `socket`.
//! A TCP probe is three system calls that are done when they return; it has no task, no timer and
//! no allocation. What must be waited for (an HTTP answer, a command) has a task. All that are due
//! are asked in one wake-up.
//!
//! Deliberately not here: what follows from an answer, and running commands, which is the runtime's
//! ([`Commands`]).

mod error;
mod http;
mod prober;
mod request;
mod socket;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle_core::desired::Container;
use coracle_core::name::ContainerId;
use coracle_core::observed::Health;
use coracle_core::probe::{Answer, Before};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep_until;

pub use error::RequestError;
pub use request::request_in;

use prober::Prober;

/// Room for news of what must be waited for; whoever has some waits.
const NEWS: usize = 64;

/// A container that runs.
#[derive(Clone, Debug)]
pub struct ProbeTarget {
    /// Which.
    pub id: ContainerId,
    /// Its main process. With another one it is another container.
    pub pid: u32,
    /// With its probes.
    pub container: Arc<Container>,
    /// Its network namespace; `None` for the gateway's own.
    pub netns: Option<PathBuf>,
    /// What it counts as before the first answer.
    pub before: Before,
}

/// Runs commands in containers.
pub trait Commands: Clone + Send + Sync + 'static {
    /// Runs a command and judges how it ends; after `limit` that is bad. Dropped, it is broken off
    /// and leaves nothing behind.
    fn run(
        &self,
        id: &ContainerId,
        command: &[String],
        limit: Duration,
    ) -> impl Future<Output = Answer> + Send;
}

/// Asks until nobody gives targets or takes verdicts any more.
pub async fn run<C: Commands>(
    commands: C,
    mut targets: watch::Receiver<Vec<ProbeTarget>>,
    verdicts: mpsc::Sender<(ContainerId, Health)>,
) {
    let (sender, mut news) = mpsc::channel(NEWS);
    let mut prober = Prober::new(commands, sender);
    targets.mark_changed();
    loop {
        let wake = prober.next_due();
        tokio::select! {
            changed = targets.changed() => match changed {
                Ok(()) => prober.update(&targets.borrow_and_update()),
                Err(_) => return,
            },
            Some(news) = news.recv() => prober.learn(news),
            () = sleep_until(wake.unwrap_or(prober.origin)), if wake.is_some() => {}
            () = verdicts.closed() => return,
        }
        while let Ok(news) = news.try_recv() {
            prober.learn(news);
        }
        prober.pass();
        while let Some(verdict) = prober.verdicts.pop() {
            if verdicts.send(verdict).await.is_err() {
                return;
            }
        }
    }
}
