//! Messages to the kernel, and the few of rtnetlink that are needed: an interface set up, the ports
//! of a bridge, an interface deleted, a way looked up
//! (<https://man7.org/linux/man-pages/man7/rtnetlink.7.html>). They act in the network namespace of
//! the calling thread.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_GETROUTE: u16 = 26;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// Asks for all that there are.
pub(super) const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const IFF_UP: u32 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTN_LOCAL: u8 = 2;
/// Of the type of an attribute: that it holds others, or that it is in network byte order.
const FLAGS_OF_TYPE: u16 = 0xc000;

const HEADER: usize = 16;
const LINK: usize = 16;
const ROUTE: usize = 12;
/// The loopback interface has this number in every network namespace.
const LOOPBACK: u32 = 1;

/// An interface of the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Its number.
    pub(super) index: u32,
    /// Number of the bridge that it is a port of.
    pub(super) bridge: Option<u32>,
}

/// Where packets to an address go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// Whether the address is one of the namespace's own.
    pub(super) is_local: bool,
    /// Number of the interface.
    pub(super) interface: Option<u32>,
}

/// Sets the loopback interface up.
pub(super) fn set_loopback_up() -> Result<(), Errno> {
    ask_for_link(RTM_NEWLINK, 0, LOOPBACK, IFF_UP, |_| {})
}

/// Deletes an interface; one that is not there is no error.
pub(super) fn delete(index: u32) -> Result<(), Errno> {
    match ask_for_link(RTM_DELLINK, 0, index, 0, |_| {}) {
        Err(Errno::ENODEV) => Ok(()),
        result => result,
    }
}

/// All interfaces by name.
pub(super) fn links() -> Result<BTreeMap<String, Link>, Errno> {
    let mut links = BTreeMap::new();
    ask_for_link(RTM_GETLINK, NLM_F_DUMP, 0, 0, |message| links.extend(read_link(message)))?;
    Ok(links)
}

/// The way to an address; an error if there is none.
pub(super) fn way_to(address: IpAddr) -> Result<Way, Errno> {
    let mut message = vec![0; ROUTE];
    let bytes = match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    message[0] = family_of(address);
    message[1] = u8::try_from(8 * bytes.len()).unwrap_or_default();
    put_attribute(&mut message, RTA_DST, &bytes);
    let mut way = None;
    ask(SockProtocol::NetlinkRoute, RTM_GETROUTE, 0, &message, |answer| {
        let Some(&kind) = answer.get(7) else { return };
        let attributes = answer.get(ROUTE..).unwrap_or_default();
        let interface = attribute(attributes, RTA_OIF).and_then(|value| read_u32(value, 0));
        way = Some(Way { is_local: kind == RTN_LOCAL, interface });
    })?;
    way.ok_or(Errno::EBADMSG)
}

/// As the kernel numbers the families of addresses.
pub(super) fn family_of(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 2,
        IpAddr::V6(_) => 10,
    }
}

/// [`ask`] with an `ifinfomsg`.
fn ask_for_link(
    kind: u16,
    flags: u16,
    index: u32,
    up: u32,
    each: impl FnMut(&[u8]),
) -> Result<(), Errno> {
    let mut message = Vec::with_capacity(LINK);
    // Family and type of hardware are left open; then number, flags, and which flags to change.
    message.extend([0; 4]);
    message.extend(index.to_ne_bytes());
    message.extend(up.to_ne_bytes());
    message.extend(up.to_ne_bytes());
    ask(SockProtocol::NetlinkRoute, kind, flags, &message, each)
}

/// Sends a message and takes the bodies of the answers up to the last.
pub(super) fn ask(
    protocol: SockProtocol,
    kind: u16,
    flags: u16,
    body: &[u8],
    mut each: impl FnMut(&[u8]),
) -> Result<(), Errno> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(5))?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
    message.extend(1_u32.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend(body);
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;

    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some((kind, body, next)) = first_message(rest) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    return match read_u32(body, 0).map(u32::cast_signed) {
                        Some(0) => Ok(()),
                        Some(code) => Err(Errno::from_raw(-code)),
                        None => Err(Errno::EBADMSG),
                    };
                }
                _ => each(body),
            }
            rest = next;
        }
    }
}

/// Type and body of the first message, and what follows.
fn first_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = read_u32(bytes, 0)? as usize;
    let body = bytes.get(HEADER..length)?;
    Some((read_u16(bytes, 4)?, body, bytes.get(padded(length)..).unwrap_or_default()))
}

fn read_link(body: &[u8]) -> Option<(String, Link)> {
    let mut link = Link { index: read_u32(body, 4)?, bridge: None };
    let attributes = body.get(LINK..)?;
    let name = attribute(attributes, IFLA_IFNAME)?;
    let name = name.strip_suffix(&[0]).unwrap_or(name);
    link.bridge = attribute(attributes, IFLA_MASTER).and_then(|value| read_u32(value, 0));
    Some((String::from_utf8_lossy(name).into_owned(), link))
}

/// Appends an attribute.
pub(super) fn put_attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(((4 + value.len()) as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(padded(message.len()), 0);
}

/// The value of one of the attributes that stand in a row.
pub(super) fn attribute(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut rest = attributes;
    while let (Some(length), Some(kind)) = (read_u16(rest, 0), read_u16(rest, 2)) {
        let value = rest.get(4..length as usize)?;
        if kind & !FLAGS_OF_TYPE == wanted {
            return Some(value);
        }
        rest = rest.get(padded(length as usize)..).unwrap_or_default();
    }
    None
}

fn padded(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interfaces_are_found_by_name() {
        let links = links().unwrap();
        assert_eq!(links["lo"], Link { index: LOOPBACK, bridge: None });
    }

    #[test]
    fn the_way_to_oneself_is_local() {
        let way = way_to([127, 0, 0, 1].into()).unwrap();
        assert_eq!(way, Way { is_local: true, interface: Some(LOOPBACK) });
    }

    #[test]
    fn attributes_are_found_whatever_stands_before_them() {
        let mut message = Vec::new();
        put_attribute(&mut message, 1, b"odd");
        put_attribute(&mut message, 2 | 0x8000, b"nest");
        assert_eq!(attribute(&message, 2), Some(&b"nest"[..]));
        assert_eq!(attribute(&message, 3), None);
        // Longer than what is there.
        assert_eq!(attribute(&[200, 0, 1, 0, 7], 1), None);
        assert_eq!(attribute(&[0, 0, 1, 0], 2), None);
    }

    #[test]
    fn what_is_not_there_is_deleted() {
        assert_eq!(delete(0x7fff_fff0), Ok(()));
    }
}
