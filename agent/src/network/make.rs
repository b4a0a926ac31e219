//! Making a pod's network, step by step, each recorded before it is taken.

use coracle_core::desired::Network;
use tracing::warn;

use super::error::NetworkError;
use super::plugins::Pod;
use super::record::{Attached, Record, State};
use super::{Inner, NetworkRequest, PodNetwork, namespace, plugins};
use crate::conflist::Conflist;

impl Inner {
    pub(super) async fn ensure(
        &self,
        request: &NetworkRequest,
    ) -> Result<PodNetwork, NetworkError> {
        let replica = &request.replica;
        let found = self.with_records(|records| records.get(replica).cloned())?;
        if let Some(record) = found {
            if record.is_for(request) && self.is_whole(&record) {
                self.write_names()?;
                self.readmit(replica).await;
                return Ok(self.pod_network(&record));
            }
            self.withdraw_before_removal(replica).await?;
            self.tear_down(record).await?;
        }
        // Nothing is begun that cannot be finished.
        let attached = match request.kind {
            Network::Pod => Some(self.network_for(request).await?),
            Network::None | Network::Host => None,
        };
        let record = Record { state: State::Making, request: request.clone(), attached };
        match self.make(record).await {
            Ok(record) => {
                self.readmit(replica).await;
                Ok(self.pod_network(&record))
            }
            Err((record, error)) => {
                if let Err(left) = self.tear_down(*record).await {
                    warn!(%replica, error = %left, "a half-made network is left");
                }
                Err(error)
            }
        }
    }

    /// Whether it is ready, and its namespace too.
    pub(super) fn is_whole(&self, record: &Record) -> bool {
        record.state == State::Ready
            && (record.request.kind == Network::Host
                || namespace::is_there(&self.netns_of(&record.request.replica)))
    }

    /// The network as it is configured now, in a version that all its plugins know.
    pub(super) async fn network_for(
        &self,
        request: &NetworkRequest,
    ) -> Result<Attached, NetworkError> {
        let network = Conflist::load(&self.config)?;
        if !request.published().is_empty() && !plugins::publishes_ports(&network) {
            return Err(NetworkError::PortsUnsupported { network: network.name });
        }
        let version = self.plugins.negotiate(&network).await?;
        Ok(Attached {
            network: network.name,
            version,
            plugins: network.plugins,
            id: self.id_of(&request.replica),
            result: None,
            refused_at: None,
        })
    }

    /// Makes everything of a pod. An error comes with what is recorded of it by then.
    pub(super) async fn make(
        &self,
        mut record: Record,
    ) -> Result<Record, (Box<Record>, NetworkError)> {
        match self.make_all(&mut record).await {
            Ok(()) => Ok(record),
            Err(error) => Err((Box::new(record), error)),
        }
    }

    pub(super) async fn make_all(&self, record: &mut Record) -> Result<(), NetworkError> {
        let replica = record.request.replica.clone();
        self.make_directories()?;
        self.put(record)?;
        if record.request.kind != Network::Host {
            namespace::make(&replica, self.netns_of(&replica)).await?;
        }
        if record.attached.is_some() {
            self.attach(record).await?;
        }
        record.state = State::Ready;
        self.put(record)?;
        self.write_names()
    }

    /// Calls the plugins: alone for the first pod, beside those of other pods later.
    pub(super) async fn attach(&self, record: &mut Record) -> Result<(), NetworkError> {
        let later = self.warm.read().await;
        if *later {
            return self.attach_by_all(record).await;
        }
        drop(later);
        let mut first = self.warm.write().await;
        if *first {
            let _later = first.downgrade();
            return self.attach_by_all(record).await;
        }
        self.attach_by_all(record).await?;
        *first = true;
        Ok(())
    }

    /// Calls the plugins one after the other.
    pub(super) async fn attach_by_all(&self, record: &mut Record) -> Result<(), NetworkError> {
        let replica = record.request.replica.clone();
        let netns = self.netns_of(&replica);
        let count = record.attached.as_ref().map_or(0, |attached| attached.plugins.len());
        for at in 0..count {
            let Some(attached) = &mut record.attached else { break };
            let ports = record.request.published();
            let pod = Pod { replica: &replica, netns: Some(&netns), ports };
            let result = self.plugins.add(&pod, attached, &attached.plugins[at]).await;
            match &result {
                Ok(result) => attached.result = Some(result.clone()),
                Err(NetworkError::Plugin { .. }) => attached.refused_at = Some(at),
                Err(_) => {}
            }
            self.put(record)?;
            result?;
        }
        Ok(())
    }
}
