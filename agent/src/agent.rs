//! The daemon: the only place where tasks and channels are made.
//!
//! ```text
//! containerd --> runtime::follow --+                 +--> execute (one task for each action)
//! containers <-> probes::run ------+                 |
//! broker <-----> link::run --------+--> event_loop --+--> store (a thread of its own)
//! CLI <--------> Api::serve -------+                 +--> link (newest report and presence)
//! signals --------------------------> shutdown
//! ```

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use coracle_protocol::Presence;
use coracle_protocol::presence::Listening;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::api::{Api, ApiError, Remote};
use crate::artifacts::Artifacts;
use crate::config::{ApiConfig, Config};
use crate::containerd::Containerd;
use crate::event_loop::{EventLoop, HealthSetup, Local, Means, Setup, Sources};
use crate::execute::{Around, Executor, Native, chain};
use crate::health::{Finding, Health, Meter};
use crate::images::{Images, ImagesError};
use crate::large_orders::LargeOrders;
use crate::link::Link;
use crate::mounts::Mounts;
use crate::network::Networks;
use crate::output::without_passwords;
use crate::policy::Installed;
use crate::preflight::Preflight;
use crate::readiness::Readiness;
use crate::runtime::ContainerdRuntime;
use crate::secrets::Secrets;
use crate::store::{Store, check_in_child};
use crate::systemd::ServiceManager;
use crate::trust::TrustedKeys;
use crate::workload_identity::Identities;
use crate::{identity, logs, machine, probes, runtime};

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
    let device = identity::find(&config);
    info!(gateway = %device.gateway, version = machine::AGENT_VERSION, "starting");
    let (keys, trust) = trusted_keys(&device.keys);
    let containerd = Containerd::new(&config.containerd)?;
    let (images, troubles) = Images::with_what_there_is(containerd.clone(), &config.registries)?;
    let policy = Installed::load(&config.policy);
    let mut known = vec![trust, registries(&troubles), Finding::of_policy(&policy.state)];
    let remote = offer_api_over_tcp(&config.api, &mut known).await;
    let listening = Listening {
        socket: Some(config.api.socket.display().to_string()),
        tls: remote.as_ref().and_then(|remote| remote.address().ok()).map(|a| a.to_string()),
        console: None,
    };
    let caps = policy.caps.clone();
    let health = Health::new(config.clone(), device.clone(), known);
    let secrets = Arc::new(Secrets::new(&config.state_dir, device.gateway));
    let preflight =
        Preflight::new(secrets.clone(), policy.policy.clone(), config.templates.clone());
    let networks = Networks::new(&config);
    let mounts = Mounts::new(&config, secrets.clone());
    let identities = Identities::new(&config, secrets.clone());
    let local = Local {
        mounts: mounts.clone(),
        secrets,
        identities: identities.clone(),
        logs: logs::dir(&config.logs, &config.state_dir),
    };
    let policy = Arc::new(policy);
    let around = Around::new(&config, networks.clone(), mounts.clone(), identities, policy.clone());
    let (artifacts, missing) = Artifacts::new(config.native_prefix(), &config.artifacts)?;
    for trouble in missing {
        error!(error = %chain(&trouble), "a repository's certificates cannot be used");
    }
    if let Err(error) = artifacts.sweep().await {
        warn!(error = %chain(&error), "what is left of artifacts cannot be cleared away");
    }
    let native = Native::new(&config, artifacts, policy);
    let (ask, asked) = watch::channel(Vec::new());
    let (verdicts, probed) = mpsc::channel(WAITING);
    let containers = ContainerdRuntime::new(containerd.clone());
    let hands = Executor::new(containers.clone(), images, native, around, ask);
    let (store, loaded) =
        Store::open(&config.state_dir, device.factory_orders.as_deref(), check_in_child)
            .with_context(|| format!("cannot open the store in {}", config.state_dir.display()))?;

    let (end, shutdown) = watch::channel(false);
    let (exits, runtime_events) = mpsc::channel(WAITING);
    let (calls, api_calls) = mpsc::channel(WAITING);
    let broker = device.link.as_ref().map(|link| format!("{}:{}", link.host, link.port));
    let authority = device.link.as_ref().map(|link| link.ca.clone());
    let (link, link_handle, link_events) = match device.link {
        Some(link) => {
            let offline = serde_json::to_vec(&Presence::offline(device.gateway))?;
            let (link, handle, events) = Link::new(link, device.gateway, offline);
            (Some(link), Some(handle), Some(events))
        }
        None => (None, None, None),
    };
    let large_orders = LargeOrders::new(&config.state_dir, authority);
    let mut event_loop = EventLoop::new(Setup {
        gateway: device.gateway,
        machine,
        keys,
        large_orders,
        store: store.clone(),
        preflight,
        hands,
        link: link_handle,
        broker,
        health,
        manager: ServiceManager::default(),
        local,
        readiness: Readiness::open(&config.runtime_dir),
        means: Means {
            reboot: config.reboot.clone(),
            configuration: without_passwords(&format!("{config:#?}")),
        },
        told: HealthSetup {
            config: config.health,
            meter: Meter::new(&config.state_dir),
            networks: networks.clone(),
            caps,
            listening,
        },
    });
    event_loop.restore(loaded, random_seed()).await;
    networks.begin_sweep();
    if let Err(error) = mounts.sweep().await {
        warn!(error = chain(&error), "something that an earlier run left is still there");
    }

    let follow = tokio::spawn(runtime::follow(containerd, exits));
    let probes = tokio::spawn(probes::run(containers, asked, verdicts));
    let logs = logs::dir(&config.logs, &config.state_dir);
    let api = offer_api(&config.api, remote, logs).await?;
    let api = api.map(|api| tokio::spawn(api.serve(calls, event_loop.newest_happening())));
    let link = link.map(|link| tokio::spawn(link.run(ended(shutdown.clone()))));
    let signals = tokio::spawn(await_signal(end));

    let sources = Sources {
        runtime: runtime_events,
        link: link_events,
        calls: api_calls,
        probes: probed,
        shutdown,
    };
    let rest = event_loop.run(sources).await;
    // Takes leave of the broker within its own time limit.
    if let Some(link) = link {
        link.await.context("the link's task failed")?;
    }
    drop(rest);
    follow.abort();
    probes.abort();
    signals.abort();
    store.close().await;
    if let Some(api) = api {
        api.await.context("the API's task failed")?;
    }
    info!("ended; workloads keep running");
    Ok(())
}

/// The keys of those whose orders are obeyed, and what is to be said of them. Without any, what was
/// accepted before still runs; new orders are refused.
fn trusted_keys(files: &[PathBuf]) -> (TrustedKeys, Finding) {
    const NAME: &str = "trust";
    if files.is_empty() {
        let message = "nobody's orders are obeyed: no key is named";
        return (TrustedKeys::none(), Finding::bad(NAME, "no-keys", message));
    }
    match TrustedKeys::load(files) {
        Ok(keys) => {
            let ids: Vec<_> = keys.ids().collect();
            let message = format!("orders signed by {} are obeyed", ids.join(", "));
            (keys, Finding::good(NAME, "keys-loaded", message))
        }
        Err(error) => {
            let message = format!("no new order can be obeyed: {}", chain(&error));
            (TrustedKeys::none(), Finding::bad(NAME, "keys-unusable", message))
        }
    }
}

/// What is to be said of the registries' certificates.
fn registries(troubles: &[ImagesError]) -> Finding {
    const NAME: &str = "registries";
    let troubles: Vec<_> = troubles.iter().map(|trouble| chain(trouble)).collect();
    match troubles.is_empty() {
        true => Finding::good(NAME, "usable", "what is configured for registries can be used"),
        false => Finding::bad(NAME, "certificates-unusable", troubles.join("; ")),
    }
}

/// Workloads matter more than the local API: without it the agent goes on, unless that is because
/// another agent is at work.
async fn offer_api(
    config: &ApiConfig,
    remote: Option<Remote>,
    logs: PathBuf,
) -> Result<Option<Api>> {
    match Api::listen(config, remote, logs).await {
        Ok(api) => Ok(Some(api)),
        Err(error @ ApiError::InUse(_)) => Err(error.into()),
        Err(error) => {
            error!(error = chain(&error), "there is no local API");
            Ok(None)
        }
    }
}

/// The way into the API over TCP, if one is configured, and what is to be said of it. Without it the
/// socket stays.
async fn offer_api_over_tcp(config: &ApiConfig, known: &mut Vec<Finding>) -> Option<Remote> {
    const NAME: &str = "api-tls";
    match Remote::start(config.tls.as_ref()?).await {
        Ok(remote) => {
            let address = remote.address().map_or_else(|e| e.to_string(), |a| a.to_string());
            known.push(Finding::good(NAME, "listening", format!("the API is at {address}, too")));
            Some(remote)
        }
        Err(error) => {
            let message = format!("the API is not offered over TCP: {}", chain(&error));
            known.push(Finding::bad(NAME, "unusable", message));
            None
        }
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
