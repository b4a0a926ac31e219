//! TCP sockets in the networks of workloads.
//!
//! A socket belongs to the namespace that it was made in, whoever uses it, and one that was
//! disconnected can be connected again. So a namespace is entered once for each workload, by a
//! thread that lives for that alone, and every probe is made by the thread that all else runs on.
//! A socket keeps its namespace from vanishing: it must be closed when its workload ends.
//!
//! Deliberately not here: what is said over a connection.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use rustix::io::Errno;
use rustix::net::sockopt::set_tcp_quickack;
use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, connect, connect_unspec, send, socket_with,
};
use tokio::net::TcpStream;

use super::error::RequestError;

/// Name of the thread that enters namespaces.
const THREAD: &str = "probes";

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// To `127.0.0.1`.
    V4,
    /// To `::1`, where nothing listens on `127.0.0.1`.
    V6,
}

/// A socket that is not connected, or on its way to be.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) family: Family,
    fd: OwnedFd,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Connected,
    Pending,
}

/// A socket to be made, and for what.
#[derive(Debug)]
pub(super) struct Wanted<K> {
    pub(super) key: K,
    pub(super) netns: Arc<Path>,
    pub(super) family: Family,
}

impl Socket {
    /// In the network of the calling thread.
    pub(super) fn new(family: Family, port: u16) -> Result<Self, RequestError> {
        let domain = match family {
            Family::V4 => AddressFamily::INET,
            Family::V6 => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match socket_with(domain, SocketType::STREAM, flags, None) {
            Ok(fd) => Ok(Self { family, fd }),
            Err(Errno::AFNOSUPPORT) => Err(RequestError::Refused(port)),
            Err(errno) => Err(RequestError::Own(errno.into())),
        }
    }

    /// Begins to connect. On loopback all is done, or refused, when this returns.
    ///
    /// The last packet of the three-way handshake is held back, to be sent together with the first
    /// data. Where there is none, the disconnection comes in its place, and the workload neither
    /// sees nor logs a connection: it is not woken.
    pub(super) fn connect(&self, port: u16) -> Result<Progress, RequestError> {
        let address: SocketAddr = match self.family {
            Family::V4 => (Ipv4Addr::LOCALHOST, port).into(),
            Family::V6 => (Ipv6Addr::LOCALHOST, port).into(),
        };
        // It costs a packet if this fails, and nothing else.
        set_tcp_quickack(&self.fd, false).ok();
        let mut result = connect(&self.fd, &address);
        if result == Err(Errno::INPROGRESS) {
            // The other end has answered by now, but for a moment of high load.
            result = connect(&self.fd, &address);
        }
        match result {
            Ok(()) | Err(Errno::ISCONN) => Ok(Progress::Connected),
            Err(Errno::INPROGRESS | Errno::ALREADY) => Ok(Progress::Pending),
            Err(errno) => Err(self.refused(port, errno)),
        }
    }

    /// Sends as much as is taken at once; gives how much that is.
    pub(super) fn send(&self, bytes: &[u8]) -> usize {
        // What is wrong is found when the rest is sent, or the answer read.
        send(&self.fd, bytes, SendFlags::NOSIGNAL).unwrap_or(0)
    }

    /// Breaks a connection off, so that nothing is left of it at either end. `None` if the socket
    /// cannot be used again.
    pub(super) fn disconnect(self) -> Option<Self> {
        connect_unspec(&self.fd).is_ok().then_some(self)
    }

    /// Waits until it is connected.
    pub(super) async fn connected(
        self,
        progress: Progress,
        port: u16,
    ) -> Result<TcpStream, (Option<Self>, RequestError)> {
        let family = self.family;
        let stream = TcpStream::from_std(StdStream::from(self.fd));
        let stream = stream.map_err(|error| (None, RequestError::Own(error)))?;
        if progress == Progress::Pending {
            let waited = match stream.writable().await {
                Ok(()) => stream.take_error(),
                Err(error) => Err(error),
            };
            if let Some(error) = waited.unwrap_or_else(Some) {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                let socket = Self::from_stream(stream, family);
                let error = match &socket {
                    Some(socket) => socket.refused(port, errno),
                    None => RequestError::Connect { port, source: errno },
                };
                return Err((socket, error));
            }
        }
        Ok(stream)
    }

    /// Takes a socket back; disconnected.
    pub(super) fn from_stream(stream: TcpStream, family: Family) -> Option<Self> {
        let fd = OwnedFd::from(stream.into_std().ok()?);
        Self { family, fd }.disconnect()
    }

    fn refused(&self, port: u16, errno: Errno) -> RequestError {
        match (self.family, errno) {
            (_, Errno::CONNREFUSED)
            // There is no IPv6 here.
            | (Family::V6, Errno::ADDRNOTAVAIL | Errno::NETUNREACH) => RequestError::Refused(port),
            (_, source) => RequestError::Connect { port, source },
        }
    }
}

/// Makes sockets in their namespaces, in a thread that ends afterwards; `done` is called there.
///
/// # Errors
/// There can be no thread.
pub(super) fn make_all<K: Send + 'static>(
    wanted: Vec<Wanted<K>>,
    done: impl FnOnce(Vec<(Wanted<K>, Result<Socket, RequestError>)>) + Send + 'static,
) -> io::Result<()> {
    let work = move || {
        let make = |wanted: Wanted<K>| {
            let made = make(&wanted);
            (wanted, made)
        };
        done(wanted.into_iter().map(make).collect());
    };
    thread::Builder::new().name(THREAD.into()).spawn(work).map(drop)
}

/// Leaves the thread in the namespace.
fn make<K>(wanted: &Wanted<K>) -> Result<Socket, RequestError> {
    let path = &wanted.netns;
    let namespace = |source| RequestError::Namespace { path: path.to_path_buf(), source };
    // Whatever is there instead, it must not block.
    let flags = OFlag::O_NONBLOCK.bits();
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(namespace)?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|errno| namespace(errno.into()))?;
    Socket::new(wanted.family, 0)
}
