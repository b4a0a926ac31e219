//! The client of the local API. Blocking, one request a connection, every wait with an end.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use nix::unistd::{Gid, Group};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::failure::Failure;
use crate::http_reply::Kind;
use crate::native_status::OperationStatus;
use crate::status::{Applied, EventsPage, Operated, Operation, Problem};

/// For an answer from memory, beyond what the API itself allows the event loop.
const PATIENCE: Duration = Duration::from_secs(15);
/// For an answer that will be asked for again.
const SHORT_PATIENCE: Duration = Duration::from_secs(3);
/// For an order to become durable.
const LONG_PATIENCE: Duration = Duration::from_secs(75);
/// Most that is read of an answer, in bytes.
const MAX_ANSWER: usize = 8 * 1024 * 1024;

/// The agent, as its clients see it.
#[derive(Debug)]
pub(super) struct Client {
    runtime: Runtime,
    socket: PathBuf,
}

impl Client {
    pub(super) fn new(socket: PathBuf) -> Result<Self, Failure> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::Client { action: "start", source: error.into() })?;
        Ok(Self { runtime, socket })
    }

    /// Reads a resource.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.get_patiently(path, PATIENCE)
    }

    /// What happened after the event with that sequence; waits for it up to that many seconds.
    pub(super) fn events(&self, after: u64, wait: u64) -> Result<EventsPage, Failure> {
        let path = format!("/v1/events?after={after}&wait={wait}");
        self.get_patiently(&path, PATIENCE + Duration::from_secs(wait))
    }

    /// Gives a signed order.
    pub(super) fn apply(&self, envelope: Vec<u8>) -> Result<Applied, Failure> {
        let answer = self.exchange(Method::POST, "/v1/orders", envelope, LONG_PATIENCE)?;
        match answer.0 {
            StatusCode::OK => self.decode(&answer.1),
            StatusCode::UNPROCESSABLE_ENTITY => refused(&answer),
            _ => Err(problem(&answer)),
        }
    }

    /// Does something to a resource such as `workloads/web`.
    pub(super) fn operate(&self, resource: &str, what: Operation) -> Result<Operated, Failure> {
        let path = format!("/v1/{resource}/{}", what.as_str());
        let answer = self.exchange(Method::POST, &path, Vec::new(), LONG_PATIENCE)?;
        if answer.0 == StatusCode::OK { self.decode(&answer.1) } else { Err(problem(&answer)) }
    }

    /// Begins what takes long.
    pub(super) fn begin(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<OperationStatus, Failure> {
        let answer = self.exchange(method, path, body, LONG_PATIENCE)?;
        if answer.0 == StatusCode::ACCEPTED {
            self.decode(&answer.1)
        } else {
            Err(problem(&answer))
        }
    }

    /// How far that is. Whoever watches asks again anyway, so it is not waited long for.
    pub(super) fn operation(&self, id: &str) -> Result<OperationStatus, Failure> {
        self.get_patiently(&format!("/v1/operations/{id}"), SHORT_PATIENCE)
    }

    /// Removes a resource.
    pub(super) fn delete(&self, path: &str) -> Result<(), Failure> {
        let answer = self.exchange(Method::DELETE, path, Vec::new(), LONG_PATIENCE)?;
        if answer.0 == StatusCode::OK { Ok(()) } else { Err(problem(&answer)) }
    }

    /// Waits before another try.
    pub(super) fn pause(&self, time: Duration) {
        // Inside the runtime, because a timer is bound to it when it is made.
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }

    fn get_patiently<T: DeserializeOwned>(
        &self,
        path: &str,
        patience: Duration,
    ) -> Result<T, Failure> {
        let answer = self.exchange(Method::GET, path, Vec::new(), patience)?;
        if answer.0 != StatusCode::OK {
            return Err(problem(&answer));
        }
        self.decode(&answer.1)
    }

    fn decode<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, Failure> {
        serde_json::from_slice(body).map_err(|error| self.no_answer(error))
    }

    fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        patience: Duration,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "coracle")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Failure::Client { action: "ask", source: error.into() })?;
        self.runtime.block_on(async {
            timeout(patience, self.send(request))
                .await
                .unwrap_or_else(|_| Err(self.no_answer(io::Error::from(io::ErrorKind::TimedOut))))
        })
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), Failure> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| Failure::Unreachable { socket: self.socket.clone(), source })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.no_answer(error))?;
        let connection = tokio::spawn(connection);
        let answer = async {
            let (head, body) = sender.send_request(request).await?.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((head.status, body))
        };
        let answer = answer.await.map_err(|error| self.no_answer(error));
        connection.abort();
        answer
    }

    fn no_answer(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
        Failure::NoAnswer { socket: self.socket.clone(), source: source.into() }
    }
}

/// An order that was refused is an answer like others.
fn refused(answer: &(StatusCode, Bytes)) -> Result<Applied, Failure> {
    match serde_json::from_slice::<Problem>(&answer.1) {
        Ok(Problem { kind, generation, refusals, .. }) if kind == Kind::Refused.reference() => {
            Ok(Applied { generation, accepted: false, unchanged: false, refusals })
        }
        _ => Err(problem(answer)),
    }
}

fn problem((status, body): &(StatusCode, Bytes)) -> Failure {
    let message = match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => problem.detail,
        Err(_) => format!("HTTP status {status}"),
    };
    if status.is_server_error() {
        Failure::NotNow { message }
    } else {
        Failure::Denied { status: *status, message }
    }
}

/// For somebody who may not.
pub(super) fn who_may_connect(socket: &Path) -> String {
    let group = std::fs::metadata(socket)
        .ok()
        .filter(|socket| socket.mode() & 0o020 != 0)
        .and_then(|socket| Group::from_gid(Gid::from_raw(socket.gid())).ok().flatten());
    match group {
        Some(group) => format!(
            "be root, or a member of the group {} (new members must log in again)",
            group.name
        ),
        None => "be root; the setting api.group can let a group's members read".to_owned(),
    }
}
