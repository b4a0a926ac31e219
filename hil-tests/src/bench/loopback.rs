//! The one interface that every network namespace has.

use std::os::fd::AsRawFd as _;

use anyhow::ensure;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    socket,
};

use super::Result;

/// The loopback interface has this number in every network namespace.
const LOOPBACK: u32 = 1;

/// Sets the loopback interface of this thread's network up (rtnetlink(7): `RTM_NEWLINK` with an
/// `ifinfomsg`).
pub(super) fn set_up() -> Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST_ACK: u16 = 1 | 4;
    const IFF_UP: u32 = 1;
    let route = SockProtocol::NetlinkRoute;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, route)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    let mut message = 32_u32.to_ne_bytes().to_vec();
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    // Sequence number and port, family and kind of hardware; the interface, its flags, which change.
    message.extend([0; 12]);
    for field in [LOOPBACK, IFF_UP, IFF_UP] {
        message.extend(field.to_ne_bytes());
    }
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0; 64];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    ensure!(length >= 20, "the kernel's answer is short");
    let code = i32::from_ne_bytes(answer[16..20].try_into()?);
    ensure!(code == 0, "cannot set the loopback interface up: {}", Errno::from_raw(-code));
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn a_new_network_has_a_loopback_that_answers() {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("run as root");
            set_up().unwrap();
            let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
            std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        });
        thread.join().unwrap();
    }
}
