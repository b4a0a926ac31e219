//! One connection's life: subscribe, deliver orders, acknowledge them, publish, take leave.

use std::future::Future;
use std::pin::{Pin, pin};
use std::time::Duration;

use coracle_protocol::Topic;
use coracle_protocol::limits::MAX_CORRELATION_BYTES;
use coracle_protocol::topic::{Kind, ReplyWord};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::error::LinkError;
use super::mqtt::{Connection, Incoming, Message};
use super::outbox::{Flying, Next};
use super::sender::{Limits, Outgoing, Sender};
use super::traffic::kind_of;
use super::{AckToken, Delivery, Document, End, Link, LinkEvent};
use crate::clock::runtime_now;

/// For the last publish and the farewell together.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Completes when the agent goes down.
pub(super) type Shutdown<'a> = Pin<&'a mut (dyn Future<Output = ()> + Send)>;

/// How far a connection is.
enum Stage {
    Connecting,
    /// Publishing begins when the subscription stands.
    Subscribing(Limits),
    Serving(Limits),
}

/// What ends a connection.
enum Interrupt {
    Shutdown,
    Lost(LinkError),
}

impl From<LinkError> for Interrupt {
    fn from(error: LinkError) -> Self {
        Interrupt::Lost(error)
    }
}

/// One connection with what is known of it.
struct Service<'a> {
    sender: &'a Sender,
    shutdown: Shutdown<'a>,
    stage: Stage,
    connected: Option<Instant>,
    /// When a subscription or a publish was sent that the broker has not answered.
    asked: Option<Instant>,
}

impl Link {
    /// Serves one connection until it is lost or the agent goes down.
    pub(super) async fn serve(
        &mut self,
        sender: &Sender,
        connection: &mut Connection,
        shutdown: Shutdown<'_>,
    ) -> End {
        let mut service =
            Service { sender, shutdown, stage: Stage::Connecting, connected: None, asked: None };
        match self.keep_serving(connection, &mut service).await {
            Err(Interrupt::Lost(error)) => {
                let lasted = service.connected.map_or(Duration::ZERO, |since| since.elapsed());
                return End::Lost { error, lasted };
            }
            Err(Interrupt::Shutdown) => {}
            Ok(never) => match never {},
        }
        if let Stage::Subscribing(limits) | Stage::Serving(limits) = service.stage {
            match timeout(LEAVE_TIMEOUT, self.take_leave(sender, connection, limits)).await {
                Ok(Ok(())) => info!("left the broker"),
                Ok(Err(error)) => warn!(reason = error.sentence(), "could not take leave"),
                Err(_) => warn!("the broker did not answer the farewell in time"),
            }
        }
        End::Shutdown
    }

    async fn keep_serving(
        &mut self,
        connection: &mut Connection,
        service: &mut Service<'_>,
    ) -> Result<std::convert::Infallible, Interrupt> {
        loop {
            let patience = connection.answer_timeout();
            let mut next = pin!(connection.next());
            let incoming = loop {
                if let Stage::Serving(limits) = service.stage {
                    self.publish_due(limits, service).await?;
                }
                let idle = matches!(service.stage, Stage::Serving(_)) && service.asked.is_none();
                let due = service.asked.unwrap_or_else(runtime_now) + patience;
                tokio::select! {
                    () = service.shutdown.as_mut() => return Err(Interrupt::Shutdown),
                    incoming = next.as_mut() => break incoming?,
                    Some(token) = self.acknowledgements.recv() => {
                        self.acknowledge(&token, service.sender)?;
                    }
                    () = self.outbox.changed(), if idle => {}
                    () = sleep_until(due), if service.asked.is_some() => {
                        return Err(LinkError::Unanswered(patience).into());
                    }
                }
            };
            self.handle(incoming, service).await?;
        }
    }

    async fn handle(
        &mut self,
        incoming: Incoming,
        service: &mut Service<'_>,
    ) -> Result<(), Interrupt> {
        match incoming {
            Incoming::Connected { session_present, limits } => {
                let broker = self.route.target();
                info!(%broker, session_present, "connected to the broker");
                self.outbox.connected(session_present);
                service.connected = Some(runtime_now());
                service.stage = Stage::Subscribing(limits);
                service.sender.subscribe()?;
                service.asked = Some(runtime_now());
                let packet_limit = limits.packet;
                self.emit(LinkEvent::Connected { session_present, packet_limit }, service).await
            }
            Incoming::Subscribed { refused } => {
                service.asked = None;
                if let Stage::Subscribing(limits) = service.stage {
                    service.stage = Stage::Serving(limits);
                }
                self.not_subscribed(refused, service).await
            }
            Incoming::Message(message) => self.deliver(message, service).await,
            Incoming::Published => {
                service.asked = None;
                self.published(service).await
            }
            Incoming::PublishRefused { reason } => {
                service.asked = None;
                let reason = format!("the broker refused it: {reason}");
                self.not_published(reason, service).await
            }
            Incoming::Left => Ok(()),
        }
    }

    /// Tells of topics that were refused, each once as long as the reason is the same.
    async fn not_subscribed(
        &mut self,
        refused: Vec<(String, String)>,
        service: &mut Service<'_>,
    ) -> Result<(), Interrupt> {
        let known = std::mem::replace(&mut self.refused_topics, refused.clone());
        for (topic, reason) in refused {
            if known.iter().any(|(t, r)| *t == topic && *r == reason) {
                continue;
            }
            warn!(topic, reason, "the broker refused a subscription; orders still come");
            self.emit(LinkEvent::NotSubscribed { topic, reason }, service).await?;
        }
        Ok(())
    }

    async fn deliver(
        &mut self,
        message: Message,
        service: &mut Service<'_>,
    ) -> Result<(), Interrupt> {
        let Message { topic, payload, packet, response_topic, mut correlation } = message;
        let bytes = payload.len();
        let topic = topic.parse::<Topic>().ok().filter(|topic| topic.gateway == self.gateway);
        let kind = topic.map(|topic| topic.kind).filter(|kind| Kind::TO_GATEWAY.contains(kind));
        let token = AckToken { connection: self.connections, packet };
        let event = match kind {
            None => {
                warn!(bytes, "a message on a topic that was not subscribed to was dropped");
                return Ok(service.sender.acknowledge(packet)?);
            }
            Some(Kind::Desired) if payload.is_empty() => {
                info!("the retained order was removed from the broker; the accepted one stays");
                return Ok(service.sender.acknowledge(packet)?);
            }
            Some(Kind::Desired) => LinkEvent::Desired { envelope: payload, token },
            Some(Kind::Commands) => {
                let gateway = self.gateway;
                let reply = response_topic.and_then(|t| ReplyWord::of_response_topic(&t, gateway));
                if correlation.len() > MAX_CORRELATION_BYTES {
                    correlation = Vec::new();
                }
                LinkEvent::Command { envelope: payload, reply, correlation, token }
            }
            Some(kind) => {
                service.sender.acknowledge(packet)?;
                match kind {
                    Kind::Receipts => LinkEvent::Receipt(payload),
                    _ => LinkEvent::Chunk(payload),
                }
            }
        };
        debug!(bytes, ?kind, "a message arrived");
        self.emit(event, service).await
    }

    fn acknowledge(&self, token: &AckToken, sender: &Sender) -> Result<(), LinkError> {
        if token.connection != self.connections {
            return Ok(());
        }
        sender.acknowledge(token.packet)
    }

    /// Queues what is next, if there is anything and nothing is in flight.
    async fn publish_due(
        &mut self,
        limits: Limits,
        service: &mut Service<'_>,
    ) -> Result<(), Interrupt> {
        while let Some(next) = self.outbox.take_next() {
            let queued = match &next {
                Next::Document(document, value) => {
                    let topic = self.topic(document.kind());
                    let message = Outgoing {
                        topic: &topic,
                        payload: value,
                        retain: true,
                        acknowledged: true,
                        correlation: &[],
                        kind: kind_of(document.kind()),
                    };
                    service.sender.publish(&message, limits)?
                }
                Next::Parcel(parcel) => {
                    let topic = match &parcel.reply {
                        Some(word) => word.topic(self.gateway),
                        None => self.topic(parcel.kind),
                    };
                    let message = Outgoing {
                        topic: &topic,
                        payload: &parcel.payload,
                        retain: false,
                        acknowledged: parcel.acknowledged,
                        correlation: &parcel.correlation,
                        kind: kind_of(parcel.kind),
                    };
                    service.sender.publish(&message, limits)?
                }
            };
            match queued {
                Ok(()) => service.asked = Some(runtime_now()),
                Err(too_large) => self.not_published(too_large.to_string(), service).await?,
            }
        }
        Ok(())
    }

    async fn published(&mut self, service: &mut Service<'_>) -> Result<(), Interrupt> {
        match self.outbox.acknowledged() {
            Some(Flying::Parcel(ticket)) => {
                self.emit(LinkEvent::Parcel { ticket, delivery: Delivery::Done }, service).await
            }
            _ => Ok(()),
        }
    }

    async fn not_published(
        &mut self,
        reason: String,
        service: &mut Service<'_>,
    ) -> Result<(), Interrupt> {
        let event = match self.outbox.refused() {
            None => return Ok(()),
            Some(Flying::Document(document)) => {
                warn!(?document, reason, "a document was not published");
                LinkEvent::NotPublished { document, reason }
            }
            Some(Flying::Parcel(ticket)) => {
                LinkEvent::Parcel { ticket, delivery: Delivery::Refused(reason) }
            }
        };
        self.emit(event, service).await
    }

    /// Waits for room; nobody reading any more is the end of the agent.
    async fn emit(&self, event: LinkEvent, service: &mut Service<'_>) -> Result<(), Interrupt> {
        tokio::select! {
            () = service.shutdown.as_mut() => Err(Interrupt::Shutdown),
            sent = self.events.send(event) => sent.map_err(|_| Interrupt::Shutdown),
        }
    }

    /// Sends what is owed, publishes that the gateway is offline, waits until the broker has it, and disconnects.
    async fn take_leave(
        &mut self,
        sender: &Sender,
        connection: &mut Connection,
        limits: Limits,
    ) -> Result<(), LinkError> {
        while let Ok(token) = self.acknowledgements.try_recv() {
            self.acknowledge(&token, sender)?;
        }
        let mut unanswered = usize::from(self.outbox.is_in_flight());
        let status = self.topic(Document::Presence.kind());
        let said = self.farewell.borrow().clone();
        let farewell = Outgoing {
            topic: &status,
            payload: said.as_deref().unwrap_or(&self.offline),
            retain: true,
            acknowledged: true,
            correlation: &[],
            kind: kind_of(Document::Presence.kind()),
        };
        match sender.publish(&farewell, limits)? {
            Ok(()) => unanswered += 1,
            Err(too_large) => warn!(reason = %too_large, "cannot publish being offline"),
        }
        while unanswered > 0 {
            match connection.next().await? {
                Incoming::Published | Incoming::PublishRefused { .. } => unanswered -= 1,
                _ => {}
            }
        }
        sender.leave()?;
        while !matches!(connection.next().await?, Incoming::Left) {}
        Ok(())
    }
}
