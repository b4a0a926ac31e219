//! The one loop: an event comes in, the state changes, a plan is made, its actions begin.
//!
//! In: everything that happens, as [`Event`]s. Out: actions for `execute`, orders and histories for
//! the store, documents for the link, answers for the API. Deliberately not here: deciding
//! (`coracle_core::reconcile`), doing (`execute`), I/O.
//!
//! | file | what it does |
//! |---|---|
//! | `act` | begins what the plan says, takes in what came of it |
//! | `alive` | signs of life for the service manager |
//! | `backlog` | events for the fleet, until it has them |
//! | `commands` | commands of the fleet: journalled, begun, ended; their results and output |
//! | `by_hand` | workloads that somebody starts, stops, drains, restarts |
//! | `health` | how the gateway is, on change, on demand and at intervals |
//! | `local` | what only this gateway can tell: volumes, public keys |
//! | `look` | what exists: lists, exits, containerd coming and going |
//! | `large` | orders that are larger than a packet: where they are, what has come of them |
//! | `lead` | what probes say, and where shared ports lead |
//! | `obey` | orders: judged, stored, acknowledged, put into force |
//! | `receipts` | what the fleet says that it holds |
//! | `parcels` | what goes to the fleet one at a time, the most important first |
//! | `receipts` | what the fleet holds |
//! | `tell` | reports, presence, status |
//! | `usage` | what the link carries in a day |

mod act;
mod alive;
mod backlog;
mod by_hand;
mod commands;
mod health;
mod large;
mod lead;
mod local;
mod look;
mod obey;
mod operations;
mod parcels;
mod receipts;
mod tell;
mod usage;

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_core::artifact::{ArtifactId, Software};
use coracle_core::history::{History, Now};
use coracle_core::name::{ContainerId, ReplicaId};
use coracle_core::observed::{Busy, Exit, Health as HealthOfContainer, Observed};
use coracle_core::orders::Orders;
use coracle_core::plan::Plan;
use coracle_core::reconcile::reconcile;
use coracle_core::record::RecordId;
use coracle_core::refusals::Refusals;
use coracle_core::report::Conditions;
use coracle_core::traffic::Traffic;
use coracle_protocol::presence::{Listening, Machine, OfflineReason};
use coracle_protocol::reported::Refused;
use coracle_protocol::{CommandId, GatewayId, Timestamp};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tracing::info;

use crate::clock::Clock;
use crate::execute::{Execute, Failure, Installed, Outcome, Seen};
use crate::health::Health;
use crate::intake::InForce;
use crate::journal::Journal;
use crate::large_orders::{Fetched, LargeOrderError, LargeOrders};
use crate::link::{AckToken, LinkEvent, LinkHandle};
use crate::preflight::Preflight;
use crate::progress::Progress;
use crate::readiness::Readiness;
use crate::runtime::RuntimeEvent;
use crate::status::{Call, LinkStatus};
use crate::store::{Store, StoreError, StoredOrder};
use crate::systemd::ServiceManager;
use crate::trust::TrustedKeys;

use operations::LongOperations;

pub use commands::Means;
pub use health::HealthSetup;
pub use local::Local;

/// Everything that can happen.
#[derive(Debug)]
pub enum Event {
    /// containerd came, went, or a container ended.
    Runtime(RuntimeEvent),
    /// On the link to the broker.
    Link(LinkEvent),
    /// What the probes of a container say has changed.
    Probed(ContainerId, HealthOfContainer),
    /// Somebody asks something through the local API.
    Call(Call),
    /// Background work is done.
    Done(Done),
    /// It is time to decide again, or to send what was held back.
    Wake,
}

/// Background work that is done.
#[derive(Debug)]
pub enum Done {
    /// An action.
    Acted(Box<Outcome>),
    /// A look at everything.
    Looked {
        /// The state that it may be put into: see [`EventLoop::epoch`].
        epoch: u64,
        /// What there is.
        seen: Result<Seen, Failure>,
    },
    /// Histories were stored, or not.
    Recorded(Vec<RecordId>, Result<(), StoreError>),
    /// An operation asked for by hand, by its number: what was done, or why not.
    LongWork(u64, Result<String, Failure>),
    /// Shared ports lead there now, or not.
    Shared(Traffic, Result<(), Failure>),
    /// Of the large order with this digest: what there is of it, or why there is no more.
    LargeOrder(String, Result<Fetched, LargeOrderError>),
    /// Whether the store gave its sign of life.
    StoreAnswered(bool),
    /// Work for a command.
    Command(CommandId, commands::Done),
    /// Nothing: it was called off.
    CalledOff,
}

/// Where events come from.
#[derive(Debug)]
pub struct Sources {
    /// From `runtime::follow`.
    pub runtime: mpsc::Receiver<RuntimeEvent>,
    /// From the link; `None` without one.
    pub link: Option<mpsc::Receiver<LinkEvent>>,
    /// From the API.
    pub calls: mpsc::Receiver<Call>,
    /// From `probes::run`.
    pub probes: mpsc::Receiver<(ContainerId, HealthOfContainer)>,
    /// Becomes true when the agent is to end.
    pub shutdown: watch::Receiver<bool>,
}

/// All that the loop is given at start.
#[derive(Debug)]
pub struct Setup<E> {
    /// Whose orders these are.
    pub gateway: GatewayId,
    /// What this machine is.
    pub machine: Machine,
    /// Whose signatures count.
    pub keys: TrustedKeys,
    /// Fetches orders that are larger than a packet.
    pub large_orders: LargeOrders,
    /// Where orders and histories are kept.
    pub store: Store,
    /// Does things and looks.
    pub hands: E,
    /// Publishes; `None` without a broker.
    pub link: Option<LinkHandle>,
    /// `HOST:PORT` of the broker.
    pub broker: Option<String>,
    /// What an order is judged by beyond its document.
    pub preflight: Preflight,
    /// What the gateway offers.
    pub health: Health,
    /// Is told how we are.
    pub manager: ServiceManager,
    /// Volumes and keys.
    pub local: Local,
    /// Who was ready before.
    pub readiness: Readiness,
    /// What commands are done with.
    pub means: Means,
    /// What health is made of.
    pub told: HealthSetup,
}

/// The state of the agent.
#[derive(Debug)]
pub struct EventLoop<E> {
    gateway: GatewayId,
    machine: Machine,
    keys: TrustedKeys,
    store: Store,
    preflight: Preflight,
    hands: E,
    link: Option<LinkHandle>,
    clock: Clock,
    journal: Journal,

    orders: Orders,
    in_force: InForce,
    unknown_fields: Vec<String>,
    generation_seen: u64,
    refused: Option<Refused>,
    refusals: Refusals,
    /// The order in force as it was received.
    envelope: Option<Vec<u8>>,
    /// An order that could not be stored, tried again later.
    unstored: Option<Unstored>,
    /// When to try again to store histories that could not be.
    record_again_at: Option<Duration>,

    observed: Observed,
    history: History,
    plan: Plan,
    conditions: Conditions,

    work: JoinSet<Done>,
    busy: BTreeMap<ReplicaId, Busy>,
    pulls: BTreeMap<Software, Pull>,
    operations: LongOperations,
    /// Artifacts, as they were last seen.
    installed: BTreeMap<ArtifactId, Installed>,
    /// Ends of containers whose start has not been told yet.
    early_exits: BTreeMap<ContainerId, (u32, Exit)>,
    /// Rises with each change of what exists, so that a look that began before is not believed.
    epoch: u64,
    looking: bool,
    /// When to look next if nothing asks for it before.
    look_at: Option<Duration>,
    /// When to look next at what the gateway itself offers.
    look_around_at: Duration,
    /// containerd answers.
    reachable: bool,
    containerd_version: String,

    link_status: Option<LinkStatus>,
    leading: lead::Leading,
    health: Health,
    life: alive::Life,
    local: Local,
    readiness: Readiness,
    telling: tell::Telling,
    parcels: parcels::Parcels,
    commands: commands::Doing,
    large: large::Large,
    listening: Listening,
    events: backlog::EventsToTell,
    telling_health: health::HealthToTell,
    usage: usage::UsageToTell,
}

#[derive(Debug)]
struct Pull {
    task: AbortHandle,
    progress: watch::Receiver<Progress>,
}

/// How long to wait before what could not be stored is tried again.
const STORE_AGAIN: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Unstored {
    order: StoredOrder,
    /// Acknowledged only when it is stored, or another takes its place.
    token: Option<AckToken>,
    /// It is in force all the same: it came from a plain file beside the store.
    in_force: bool,
    again_at: Duration,
}

impl<E: Execute> EventLoop<E> {
    /// A loop that has not seen anything yet.
    pub fn new(setup: Setup<E>) -> Self {
        let HealthSetup { config, meter, networks, caps, listening } = setup.told;
        let link_status = setup.broker.map(|broker| LinkStatus {
            broker,
            connected: false,
            reason: None,
            next_try: None,
        });
        Self {
            gateway: setup.gateway,
            machine: setup.machine,
            keys: setup.keys,
            store: setup.store,
            preflight: setup.preflight,
            hands: setup.hands,
            link: setup.link,
            clock: Clock::start(),
            journal: Journal::default(),
            orders: Orders::default(),
            in_force: InForce { generation: 0, payload: None },
            unknown_fields: Vec::new(),
            generation_seen: 0,
            refused: None,
            refusals: Refusals::default(),
            envelope: None,
            unstored: None,
            record_again_at: None,
            observed: Observed::default(),
            history: History::default(),
            plan: Plan::default(),
            conditions: Conditions::default(),
            work: JoinSet::new(),
            busy: BTreeMap::new(),
            pulls: BTreeMap::new(),
            operations: LongOperations::default(),
            installed: BTreeMap::new(),
            early_exits: BTreeMap::new(),
            epoch: 0,
            looking: false,
            look_at: None,
            look_around_at: Duration::ZERO,
            reachable: false,
            containerd_version: String::new(),
            link_status,
            leading: lead::Leading::default(),
            health: setup.health,
            life: alive::Life::new(setup.manager),
            local: setup.local,
            readiness: setup.readiness,
            telling: tell::Telling::default(),
            parcels: parcels::Parcels::default(),
            commands: commands::Doing::new(setup.means),
            large: large::Large::new(setup.large_orders),
            events: backlog::EventsToTell::default(),
            telling_health: health::HealthToTell::new(config, meter, networks),
            usage: usage::UsageToTell::new(caps),
            listening,
        }
    }

    /// For those who wait for the next event to show.
    pub fn newest_happening(&self) -> watch::Receiver<u64> {
        self.journal.newest()
    }

    /// Runs until told to end. What was started keeps running.
    pub async fn run(mut self, mut sources: Sources) -> Self {
        self.leave_for(OfflineReason::Shutdown);
        self.step().await;
        self.say_ready();
        while let Some(event) = self.next(&mut sources).await {
            self.handle(event).await;
            self.step().await;
        }
        self.say_stopping();
        self.work.shutdown().await;
        self.store_backlog().await;
        self
    }

    /// The next event; `None` when the agent is to end.
    async fn next(&mut self, sources: &mut Sources) -> Option<Event> {
        let wake = self.wake_in();
        let link = async {
            match &mut sources.link {
                Some(link) => link.recv().await,
                None => std::future::pending().await,
            }
        };
        let wake = async {
            match wake {
                Some(wake) => tokio::time::sleep(wake).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = sources.shutdown.wait_for(|ends| *ends) => None,
            Some(event) = sources.runtime.recv() => Some(Event::Runtime(event)),
            Some(done) = self.work.join_next(), if !self.work.is_empty() => {
                Some(Event::Done(done.unwrap_or_else(|error| match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => Done::CalledOff,
                })))
            }
            Some(event) = link => Some(Event::Link(event)),
            Some((id, health)) = sources.probes.recv() => Some(Event::Probed(id, health)),
            Some(call) = sources.calls.recv() => Some(Event::Call(call)),
            () = wake => Some(Event::Wake),
        }
    }

    /// Takes in what happened.
    async fn handle(&mut self, event: Event) {
        match event {
            Event::Runtime(event) => self.on_runtime(event),
            Event::Link(event) => self.on_link(event).await,
            Event::Call(call) => self.on_call(call).await,
            Event::Probed(id, health) => self.on_probed(id, health),
            Event::Done(Done::Shared(traffic, result)) => self.on_shared(traffic, result),
            Event::Done(Done::LongWork(number, result)) => self.on_long_work(number, result),
            Event::Done(Done::Acted(outcome)) => self.on_outcome(*outcome),
            Event::Done(Done::Looked { epoch, seen }) => self.on_looked(epoch, seen),
            Event::Done(Done::Recorded(containers, result)) => self.on_recorded(containers, result),
            Event::Done(Done::Command(id, done)) => self.on_command_done(id, done),
            Event::Done(Done::LargeOrder(digest, result)) => {
                self.on_large_order(&digest, result).await;
            }
            Event::Done(Done::StoreAnswered(answered)) => self.on_store_answered(answered),
            Event::Done(Done::CalledOff) => {}
            Event::Wake => {}
        }
    }

    /// Decides anew and begins what is to be done.
    async fn step(&mut self) {
        self.store_again().await;
        self.fetch_order_if_due();
        self.look_if_due();
        let now = self.clock.now();
        self.ask_store(now);
        self.step_commands(now).await;
        self.refresh_observed();
        self.history
            .learn(&self.observed, now, |id, definition| self.orders.policy(id, definition));
        self.learn_of_updates(now);
        self.plan = reconcile(&self.orders, &self.observed, &self.history, now);
        if self.begin() {
            self.refresh_observed();
        }
        self.ask_and_share(now);
        self.record();
        self.say_leftovers();
        self.finish_commands(now).await;
        self.tell(now).await;
        self.send_parcels();
    }

    /// How long to wait if nothing happens.
    fn wake_in(&self) -> Option<Duration> {
        let order = self.unstored.as_ref().map(|unstored| unstored.again_at);
        let look = self.look_at.filter(|_| !self.looking);
        let moments = [
            self.plan.wake_at,
            order,
            self.record_again_at,
            self.large.due(),
            look,
            self.telling.due(),
            self.leading.due(),
            self.life.due(),
            self.commands.due(),
            Some(self.look_around_at),
            self.events.due(),
            self.telling_health.due(self.can_send_parcels()),
        ];
        moments.into_iter().flatten().min().map(|moment| self.clock.until(moment))
    }

    fn happened(&mut self, now: Now, kind: &str, replica: Option<&ReplicaId>, message: String) {
        let replica = replica.map(ToString::to_string);
        info!(kind, replica, "{message}");
        self.keep_event(now, kind, replica.as_deref(), &message);
        self.journal.add(Timestamp::from_unix(now.wall.as_secs()), kind, replica, message);
    }
}

#[cfg(test)]
mod tests;
