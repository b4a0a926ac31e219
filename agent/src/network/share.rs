//! Ports of the gateway that are shared out over replicas, by the kernel's packet filter.
//!
//! In: where shared ports lead, complete, and who is to get no more. Out: one table of rules, of
//! this agent alone, that says just that; connections that are open stay where they are. Rules of
//! an agent before this one stay until this one is told for the first time where ports lead.
//!
//! Deliberately not here: deciding who is ready, waiting for connections to end, ports that
//! plugins publish.

mod ruleset;

use std::collections::BTreeSet;
use std::fs;
use std::mem::ManuallyDrop;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_core::desired::Protocol;
use coracle_core::name::{ReplicaId, WorkloadName};
use coracle_core::traffic::{SharedPort, Traffic};
use nix::errno::Errno;
use tracing::{debug, warn};

use self::ruleset::{Family, Port};
use super::error::NetworkError;
use super::netfilter::Flow;
use super::process::{self, OUTPUT_LIMIT, Said, TIME_LIMIT};
use super::record::{self, Attached, Record, State};
use super::{Inner, Networks, netfilter, netlink};
use crate::fault::fault_point;

pub(super) use self::ruleset::Subnet;

/// Makes and removes rules.
const PROGRAM: &str = "nft";

/// No pod has a file of this name.
const INPUT: &str = "shared-ports.nft";

/// Longest text of the program's that is passed on, in characters.
const MESSAGE_LIMIT: usize = 300;

/// How long after its start the agent may take to say for the first time where ports lead.
const FIRST_TIME_LIMIT: Duration = Duration::from_secs(10);

/// Ports of UDP that lead somewhere, with the only address on which each is open.
type Open = BTreeSet<(u16, Option<IpAddr>)>;

/// What is shared out.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    /// As this run was told last, without those who are to get no more. `None`: not told yet.
    traffic: Option<Traffic>,
    /// What the kernel is known to have of it.
    applied: Option<Applied>,
    /// To whom the kernel may lead connections. `None`: an agent before us has said so.
    led: Option<BTreeSet<ReplicaId>>,
    /// Who is to get no more, whatever is told.
    withdrawn: BTreeSet<ReplicaId>,
    /// Addresses whose flows have to be forgotten.
    left: BTreeSet<IpAddr>,
    /// Ports that no flow passes by any more.
    open: Open,
}

/// The rules of both families, and the numbers of their tables.
#[derive(Debug, PartialEq, Eq)]
struct Applied {
    rules: [Option<String>; 2],
    tables: [Option<u64>; 2],
}

impl Sharing {
    fn tell(&mut self, traffic: Traffic) {
        self.traffic = Some(traffic);
        self.keep_withdrawn();
    }

    fn withdraw(&mut self, replica: &ReplicaId) {
        self.withdrawn.insert(replica.clone());
        self.keep_withdrawn();
    }

    /// Who is readmitted gets nothing before he is named again.
    fn keep_withdrawn(&mut self) {
        let ports = self.traffic.iter_mut().flat_map(|traffic| &mut traffic.0);
        for port in ports {
            port.targets.retain(|target| !self.withdrawn.contains(&target.replica));
        }
    }

    /// Whether a workload is known to share its ports out.
    fn names(&self, workload: &WorkloadName) -> bool {
        let mut ports = self.traffic.iter().flat_map(|traffic| &traffic.0);
        ports.any(|port| port.workload == *workload)
    }
}

impl Networks {
    /// Brings the kernel to share ports out just like this, in one step; does nothing if it is so
    /// already. A port that leads nowhere is refused. Who was withdrawn, or has not the address that
    /// is said, gets nothing.
    ///
    /// To be called in each run before anything is removed that an agent before may have shared
    /// ports out to. The work is done to its end even if nobody waits for it any more.
    ///
    /// # Errors
    /// `nft` is missing or fails: what was shared out before stays.
    pub async fn share(&self, traffic: &Traffic) -> Result<(), NetworkError> {
        let (inner, traffic) = (self.inner.clone(), traffic.clone());
        let work = tokio::spawn(async move {
            let mut sharing = inner.sharing.lock().await;
            sharing.tell(traffic);
            let result = inner.bring(&mut sharing).await;
            inner.told.send_replace(true);
            result
        });
        work.await.unwrap_or(Err(NetworkError::SharingBrokenOff))
    }

    /// From when this returns, no new connection through shared ports goes to the replica, until it
    /// was given to [`Self::ensure`] or [`Self::remove`] and then [`Self::share`] names it. TCP
    /// connections that are open stay; flows of UDP, which have no end, go elsewhere with their next
    /// packet.
    ///
    /// Where an agent before this one shared ports out, this waits some seconds for being told for
    /// the first time where they lead. The work is done to its end even if nobody waits for it any
    /// more.
    ///
    /// # Errors
    /// `nft` is missing or fails; it is not told where ports lead.
    pub async fn withdraw(&self, replica: &ReplicaId) -> Result<(), NetworkError> {
        let (inner, replica) = (self.inner.clone(), replica.clone());
        let work = tokio::spawn(async move { inner.withdraw_when_told(replica).await });
        work.await.unwrap_or(Err(NetworkError::SharingBrokenOff))
    }
}

impl Inner {
    /// Withdraws a replica whose network is about to be removed.
    pub(super) async fn withdraw_before_removal(
        &self,
        replica: &ReplicaId,
    ) -> Result<(), NetworkError> {
        self.withdraw(&mut *self.sharing.lock().await, replica).await
    }

    /// The replica may be given connections again.
    pub(super) async fn readmit(&self, replica: &ReplicaId) {
        self.sharing.lock().await.withdrawn.remove(replica);
    }

    async fn withdraw(
        &self,
        sharing: &mut Sharing,
        replica: &ReplicaId,
    ) -> Result<(), NetworkError> {
        let record = self.with_records(|records| records.get(replica).cloned())?;
        let shares = sharing.names(&replica.workload)
            || record.as_ref().is_some_and(|record| record.request.shared_ports);
        if let Some(record) = record.filter(|record| shares && has_udp(record)) {
            sharing.left.extend(addresses(&record));
        }
        sharing.withdraw(replica);
        if sharing.led.is_none() && self.tables()? == [None, None] {
            sharing.led = Some(BTreeSet::new());
        }
        // Who never got anything does not depend on what others need.
        if sharing.led.as_ref().map_or(shares, |led| led.contains(replica)) {
            return self.bring(sharing).await;
        }
        let open = sharing.open.clone();
        self.forget_flows(sharing, open).await
    }

    /// Withdraws a replica as soon as it is known where ports lead: as long as it is not, the
    /// kernel may have rules of an agent before.
    async fn withdraw_when_told(&self, replica: ReplicaId) -> Result<(), NetworkError> {
        self.withdraw(&mut *self.sharing.lock().await, &replica).await?;
        let told = *self.told.borrow();
        if told || self.tables()? == [None, None] {
            return Ok(());
        }
        let mut told = self.told.subscribe();
        let first = told.wait_for(|told| *told);
        if tokio::time::timeout(FIRST_TIME_LIMIT, first).await.is_err() {
            return Err(NetworkError::NotShared { replica });
        }
        self.withdraw(&mut *self.sharing.lock().await, &replica).await
    }

    /// Brings the kernel to what was told last.
    async fn bring(&self, sharing: &mut Sharing) -> Result<(), NetworkError> {
        let Some(traffic) = &sharing.traffic else { return Ok(()) };
        let (ports, subnets) = self.resolve(traffic)?;
        if sharing.applied.is_none() {
            // Started by an agent before us, or by us and given up.
            process::wait_for_leftover(&self.input_path()).await?;
        }
        let table = self.table();
        let rules = Family::ALL.map(|family| ruleset::rules(family, table, &ports, &subnets));
        let wanted = Applied { rules, tables: self.tables()? };
        if sharing.applied.as_ref() != Some(&wanted) {
            let targets = ports.iter().flat_map(|port| &port.targets);
            let led = targets.map(|(replica, _)| replica.clone()).collect();
            open_loopback(&ports);
            self.apply(sharing, wanted, led).await?;
        }
        let open = ports.iter().filter(|p| p.protocol == Protocol::Udp && !p.targets.is_empty());
        let open = open.map(|port| (port.number, port.address)).collect();
        self.forget_flows(sharing, open).await
    }

    /// Where each port leads, and which subnets pods have.
    fn resolve(&self, traffic: &Traffic) -> Result<(Vec<Port>, BTreeSet<Subnet>), NetworkError> {
        self.with_records(|records| {
            let attached = records.values().filter_map(|record| record.attached.as_ref());
            let subnets = attached.flat_map(Attached::subnets).collect();
            let ready = |replica: &ReplicaId| {
                records.get(replica).filter(|record| record.state == State::Ready)
            };
            let ports = traffic.0.iter().map(|port| resolve(port, ready)).collect();
            (ports, subnets)
        })
    }

    async fn apply(
        &self,
        sharing: &mut Sharing,
        wanted: Applied,
        led: BTreeSet<ReplicaId>,
    ) -> Result<(), NetworkError> {
        sharing.applied = None;
        let mut script = String::new();
        for ((rules, there), family) in wanted.rules.iter().zip(&wanted.tables).zip(Family::ALL) {
            match rules {
                Some(rules) => script.push_str(rules),
                None if there.is_some() => {
                    script.push_str(&ruleset::removal(family, self.table()));
                }
                None => {}
            }
        }
        if !script.is_empty() {
            let said = self.run(&script, sharing, &led).await?;
            if !said.status.success() {
                let words = String::from_utf8_lossy(&said.err);
                let message = words.trim().chars().take(MESSAGE_LIMIT).collect();
                return Err(NetworkError::Nft { message });
            }
        }
        sharing.led = Some(led);
        if wanted.rules == [None, None] {
            record::remove_file(&self.input_path())?;
        }
        sharing.applied = Some(Applied { tables: self.tables()?, ..wanted });
        Ok(())
    }

    /// Runs the program with what it is to do. If it is not heard to its end, the kernel may lead to
    /// old targets or to new ones.
    async fn run(
        &self,
        script: &str,
        sharing: &mut Sharing,
        led: &BTreeSet<ReplicaId>,
    ) -> Result<Said, NetworkError> {
        let Some(program) = process::find(PROGRAM) else {
            return Err(NetworkError::NftMissing { places: process::PATH.replace(':', ", ") });
        };
        self.make_directories()?;
        let path = self.input_path();
        // If the agent ends in the middle, the program keeps the lock: it is not given back here.
        let input = ManuallyDrop::new(process::locked_input(&path, script.as_bytes())?);
        let stdin = input.try_clone().map_err(NetworkError::file("open", path))?;
        let (none, limits) = ([("", ""); 0], (TIME_LIMIT, OUTPUT_LIMIT));
        fault_point("share.before");
        let said = process::run(&program, &["-f", "-"], &none, stdin.into(), limits).await;
        fault_point("share.after");
        drop(ManuallyDrop::into_inner(input));
        said.map_err(|error| {
            if let Some(before) = &mut sharing.led {
                before.extend(led.iter().cloned());
            }
            NetworkError::file("run", program)(error)
        })
    }

    /// What the program reads; there as long as there may be rules.
    fn input_path(&self) -> PathBuf {
        self.records_dir.join(INPUT)
    }

    /// Lets UDP packets go where they would go if they were the first of their flows: those to
    /// replicas that are left, and those that came to ports before these were `open`.
    async fn forget_flows(&self, sharing: &mut Sharing, open: Open) -> Result<(), NetworkError> {
        let opened: BTreeSet<_> = open.difference(&sharing.open).copied().collect();
        if !sharing.left.is_empty() || !opened.is_empty() {
            let left = sharing.left.clone();
            let is_early = move |flow: &Flow| {
                [None, Some(flow.to)].iter().any(|to| opened.contains(&(flow.port, *to)))
                    && netlink::way_to(flow.to).is_ok_and(|way| way.is_local)
            };
            let stale = move |flow: &Flow| match flow.is_translated() {
                true => left.contains(&flow.answers),
                false => is_early(flow),
            };
            let count = in_background(move || netfilter::forget_flows(stale)).await;
            let count = count.map_err(|source| NetworkError::Flows { source })?;
            debug!(count, "flows go elsewhere from now on");
        }
        sharing.left.clear();
        sharing.open = open;
        Ok(())
    }

    /// The name of this agent's table.
    fn table(&self) -> &str {
        self.prefix.trim_end_matches('.')
    }

    /// Which tables of this agent there are.
    fn tables(&self) -> Result<[Option<u64>; 2], NetworkError> {
        let table = |family: Family| netfilter::table(family.number(), self.table());
        let [v4, v6] = Family::ALL.map(table);
        let failed = |source| NetworkError::Flows { source };
        Ok([v4.map_err(failed)?, v6.map_err(failed)?])
    }
}

/// Forgets the flows to a pod that is gone, whoever led them there.
pub(super) async fn forget_flows_to(record: &Record) -> Result<(), Errno> {
    if !has_udp(record) {
        return Ok(());
    }
    let gone = addresses(record);
    let which = move |flow: &Flow| flow.is_translated() && gone.contains(&flow.answers);
    in_background(move || netfilter::forget_flows(which)).await.map(drop)
}

/// Reading through many flows takes its time.
async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Errno> + Send + 'static,
) -> Result<T, Errno> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Errno::ECANCELED))
}

fn has_udp(record: &Record) -> bool {
    record.request.ports.iter().any(|port| port.protocol == Protocol::Udp)
}

fn addresses(record: &Record) -> Vec<IpAddr> {
    record.attached.as_ref().map(Attached::addresses).unwrap_or_default()
}

/// Who is not ready any more, or has another address by now, is left out.
fn resolve<'a>(port: &SharedPort, ready: impl Fn(&ReplicaId) -> Option<&'a Record>) -> Port {
    let mut targets = Vec::new();
    for target in &port.targets {
        let its = ready(&target.replica).map(addresses).unwrap_or_default();
        if !its.contains(&target.address) {
            debug!(replica = %target.replica, "a shared port does not lead to who is not there");
            continue;
        }
        // The address that is said, and the pod's first one of the other family.
        for family in Family::ALL {
            let said = Some(target.address).filter(|address| family.has(*address));
            let other = || its.iter().copied().find(|address| family.has(*address));
            if let Some(address) = said.or_else(other) {
                let to = SocketAddr::new(address, target.port);
                targets.push((target.replica.clone(), to));
            }
        }
    }
    Port {
        workload: port.workload.clone(),
        protocol: port.protocol,
        number: port.host,
        address: port.address.filter(|address| !address.is_unspecified()),
        targets,
    }
}

/// Lets connections from `127.0.0.1` leave by the interfaces that lead to targets, as the plugin
/// `portmap` does.
fn open_loopback(ports: &[Port]) {
    let targets = ports.iter().filter(|port| port.is_on_loopback()).flat_map(|port| &port.targets);
    let addresses: BTreeSet<_> =
        targets.map(|(_, to)| to.ip()).filter(|address| address.is_ipv4()).collect();
    if addresses.is_empty() {
        return;
    }
    let interfaces: BTreeSet<_> = addresses
        .into_iter()
        .filter_map(|address| netlink::way_to(address).ok()?.interface)
        .collect();
    for (name, link) in netlink::links().unwrap_or_default() {
        if !interfaces.contains(&link.index) {
            continue;
        }
        let path = Path::new("/proc/sys/net/ipv4/conf").join(&name).join("route_localnet");
        let open = fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1");
        if let Some(error) = (!open).then(|| fs::write(&path, "1").err()).flatten() {
            warn!(interface = name, %error, "shared ports are not open at 127.0.0.1");
        }
    }
}
