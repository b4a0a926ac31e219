//! One connection, and one request over it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::error::RequestError;
use super::http;
use super::socket::{self, Family, Progress, Socket, Wanted};

/// Makes a GET request to `127.0.0.1`, or `::1` if nothing listens there, in a network namespace or
/// in the gateway's own network; gives the status.
///
/// # Errors
/// There was no answer in time, or none that is HTTP.
pub async fn request_in(
    netns: Option<&Path>,
    port: u16,
    path: &str,
    headers: &BTreeMap<String, String>,
    limit: Duration,
) -> Result<u16, RequestError> {
    let request = http::request(port, path, headers);
    let asked = async {
        for family in [Family::V4, Family::V6] {
            let socket = match netns {
                None => Socket::new(family, port),
                Some(netns) => make_one(netns, family).await,
            };
            let exchanged = async {
                let socket = socket?;
                let progress = socket.connect(port)?;
                let exchanged = exchange(socket, progress, port, Some(&request)).await;
                exchanged.map_err(|(_, error)| error)
            };
            match exchanged.await {
                Err(RequestError::Refused(_)) => {}
                Err(error) => return Err(error),
                Ok((stream, status)) => {
                    tokio::spawn(async move { http::drain(&stream).await });
                    return Ok(status);
                }
            }
        }
        Err(RequestError::Refused(port))
    };
    timeout(limit, asked).await.unwrap_or(Err(RequestError::Late(limit)))
}

/// Waits for a connection and, if something is asked, for the status of its answer (otherwise 200).
/// A socket that can still be used is given back with the error.
pub(super) async fn exchange(
    socket: Socket,
    progress: Progress,
    port: u16,
    request: Option<&[u8]>,
) -> Result<(TcpStream, u16), (Option<Socket>, RequestError)> {
    let mut unsent = request.unwrap_or_default();
    if progress == Progress::Connected {
        unsent = &unsent[socket.send(unsent)..];
    }
    let stream = socket.connected(progress, port).await?;
    if request.is_none() {
        return Ok((stream, 200));
    }
    match http::exchange(&stream, unsent).await {
        Ok(status) => Ok((stream, status)),
        Err(error) => Err((None, error)),
    }
}

async fn make_one(netns: &Path, family: Family) -> Result<Socket, RequestError> {
    let (done, made) = oneshot::channel();
    let wanted = vec![Wanted { key: (), netns: netns.into(), family }];
    let started = socket::make_all(wanted, move |made| {
        // Whoever asked may have given up.
        done.send(made.into_iter().next().map(|(_, socket)| socket)).ok();
    });
    started.map_err(RequestError::Own)?;
    let broken_off = || RequestError::Own(std::io::ErrorKind::Interrupted.into());
    made.await.ok().flatten().ok_or_else(broken_off)?
}
