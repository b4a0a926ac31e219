//! The daemon: the only place where tasks and channels are made.
//!
//! ```text
//! containerd --> runtime::follow --+                 +--> execute (one task for each action)
//! broker <-----> link::run --------+--> event_loop --+--> store (a thread of its own)
//! CLI <--------> api::serve -------+                 +--> link (newest report and presence)
//! signals --------------------------> shutdown
//! ```

use std::future::Future;

use anyhow::{Context, Result};
use coracle_protocol::Presence;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{error, info};

use crate::api::ApiError;
use crate::config::Config;
use crate::containerd::Containerd;
use crate::event_loop::{EventLoop, Setup, Sources};
use crate::execute::{Executor, chain};
use crate::images::Images;
use crate::link::Link;
use crate::runtime::ContainerdRuntime;
use crate::store::{Store, check_in_child};
use crate::trust::TrustedKeys;
use crate::{api, machine, runtime};

/// Events of containerd, and calls of the API, that may wait.
const WAITING: usize = 32;

/// Runs the agent until SIGTERM or SIGINT. Workloads keep running afterwards.
///
/// # Errors
/// What makes it pointless to start: a configuration that cannot be used, another agent at work.
pub fn run(config: Config) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(daemon(config))
}

async fn daemon(config: Config) -> Result<()> {
    let machine = machine::read();
    info!(gateway = %config.gateway, version = machine::AGENT_VERSION, "starting");
    let keys = TrustedKeys::load(&config.trust.keys)?;
    let containerd = Containerd::new(&config.containerd)?;
    let images = Images::new(containerd.clone(), &config.registries)?;
    let hands = Executor::new(ContainerdRuntime::new(containerd.clone()), images);
    let (store, loaded) =
        Store::open(&config.state_dir, config.factory_orders.as_deref(), check_in_child)
            .with_context(|| format!("cannot open the store in {}", config.state_dir.display()))?;

    let (end, shutdown) = watch::channel(false);
    let (exits, runtime_events) = mpsc::channel(WAITING);
    let (calls, api_calls) = mpsc::channel(WAITING);
    let broker = config.link.as_ref().map(|link| format!("{}:{}", link.host, link.port));
    let (link, link_handle, link_events) = match config.link {
        Some(link) => {
            let offline = serde_json::to_vec(&Presence::offline(config.gateway))?;
            let (link, handle, events) = Link::new(link, config.gateway, offline);
            (Some(link), Some(handle), Some(events))
        }
        None => (None, None, None),
    };
    let mut event_loop = EventLoop::new(Setup {
        gateway: config.gateway,
        machine,
        keys,
        store: store.clone(),
        hands,
        link: link_handle,
        broker,
    });
    event_loop.restore(loaded, random_seed()).await;

    let follow = tokio::spawn(runtime::follow(containerd, exits));
    let serve = api::serve(config.api, calls, event_loop.newest_happening());
    let serve = tokio::spawn(offer_api(serve, end.clone()));
    let link = link.map(|link| tokio::spawn(link.run(ended(shutdown.clone()))));
    let signals = tokio::spawn(await_signal(end));

    let sources =
        Sources { runtime: runtime_events, link: link_events, calls: api_calls, shutdown };
    let rest = event_loop.run(sources).await;
    // Takes leave of the broker within its own time limit.
    if let Some(link) = link {
        link.await.context("the link's task failed")?;
    }
    drop(rest);
    follow.abort();
    signals.abort();
    store.close().await;
    info!("ended; workloads keep running");
    serve.await.context("the API's task failed")?
}

/// Workloads matter more than the local API: without it the agent goes on, unless that is because
/// another agent is at work.
async fn offer_api(
    serve: impl Future<Output = Result<(), ApiError>>,
    end: watch::Sender<bool>,
) -> Result<()> {
    match serve.await {
        Err(error @ ApiError::InUse(_)) => {
            end.send_replace(true);
            Err(error.into())
        }
        Err(error) => {
            error!(error = chain(&error), "there is no local API");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

async fn await_signal(end: watch::Sender<bool>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM"),
        _ = interrupt.recv() => info!("SIGINT"),
    }
    end.send_replace(true);
    Ok(())
}

/// Completes when the agent is to end.
async fn ended(mut shutdown: watch::Receiver<bool>) {
    // An error says that nobody can end it any more, which is an end as well.
    drop(shutdown.wait_for(|ends| *ends).await);
}

/// Spreads delays over gateways and starts; nothing secret depends on it.
fn random_seed() -> u64 {
    let mut bytes = [0; 8];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => u64::from_le_bytes(bytes),
        Err(_) => crate::clock::wall_now().subsec_nanos().into(),
    }
}
