//! Calls of the event loop, each with a deadline.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::reply::{Kind, Obstacle};
use crate::status::Call;

/// For answers from memory.
const SHORT: Duration = Duration::from_secs(10);
/// For an order to become durable.
const LONG: Duration = Duration::from_secs(60);

/// The event loop, as the API sees it.
#[derive(Debug)]
pub(super) struct Calls(mpsc::Sender<Call>);

impl Calls {
    pub(super) fn new(calls: mpsc::Sender<Call>) -> Self {
        Self(calls)
    }

    /// Waits for the end of the agent.
    pub(super) async fn ended(&self) {
        self.0.closed().await;
    }

    /// Asks for something that is there already.
    pub(super) async fn ask<T>(
        &self,
        call: impl FnOnce(oneshot::Sender<T>) -> Call,
    ) -> Result<T, Obstacle> {
        timeout(SHORT, self.call(call)).await.unwrap_or_else(|_| {
            Err(Obstacle::new(Kind::NoAnswer, "the agent is too busy to answer; try again"))
        })
    }

    /// Asks for something to be done.
    pub(super) async fn order<T>(
        &self,
        call: impl FnOnce(oneshot::Sender<T>) -> Call,
    ) -> Result<T, Obstacle> {
        timeout(LONG, self.call(call)).await.unwrap_or_else(|_| {
            Err(Obstacle::new(
                Kind::NoAnswer,
                "the agent took the order but has not answered; its status tells what became of it",
            ))
        })
    }

    async fn call<T>(&self, call: impl FnOnce(oneshot::Sender<T>) -> Call) -> Result<T, Obstacle> {
        let stopping =
            || Obstacle::new(Kind::Unavailable, "the agent is stopping; try again later");
        let (answer, answered) = oneshot::channel();
        self.0.send(call(answer)).await.map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())
    }
}
