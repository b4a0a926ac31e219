//! The few messages to the packet filter for which no program is needed: which table there is, and
//! the flows that the kernel remembers (`linux/netfilter/nfnetlink_conntrack.h`,
//! `linux/netfilter/nf_tables.h`). Rules are not changed here.

use std::net::IpAddr;

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::netlink::{NLM_F_DUMP, ask, attribute, put_attribute};

const SUBSYSTEM_FLOWS: u16 = 1 << 8;
const SUBSYSTEM_TABLES: u16 = 10 << 8;

const IPCTNL_MSG_CT_GET: u16 = SUBSYSTEM_FLOWS | 1;
const IPCTNL_MSG_CT_DELETE: u16 = SUBSYSTEM_FLOWS | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_F_PROTO_NUM: u32 = 1 << 3;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
/// Source and destination, for IPv4 and for IPv6.
const CTA_IP: [(u16, u16); 2] = [(1, 2), (3, 4)];
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const NLA_F_NESTED: u16 = 0x8000;
const UDP: u8 = 17;

const NFT_MSG_GETTABLE: u16 = SUBSYSTEM_TABLES | 1;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_HANDLE: u16 = 4;

/// IPv4 and IPv6.
const FAMILIES: [u8; 2] = [2, 10];

/// Family, version, resource.
const HEADER: usize = 4;

/// How often flows are looked through at most: one that began meanwhile may be missed once.
const PASSES: usize = 4;

/// A flow of UDP packets that the kernel remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    /// Where they were sent to.
    pub(super) to: IpAddr,
    /// The port that they were sent to.
    pub(super) port: u16,
    /// Who answers: somebody else if they were translated.
    pub(super) answers: IpAddr,
    /// By what the kernel knows it.
    key: Vec<u8>,
}

impl Flow {
    /// Whether somebody else answers than was asked.
    pub(super) fn is_translated(&self) -> bool {
        self.to != self.answers
    }
}

/// The number of a table of the kernel's `family`, another one whenever it is made anew. `None` if there is none, or the
/// kernel knows no tables.
pub(super) fn table(family: u8, name: &str) -> Result<Option<u64>, Errno> {
    let mut message = header(family);
    put_attribute(&mut message, NFTA_TABLE_NAME, &[name.as_bytes(), &[0]].concat());
    let mut handle = None;
    let result = ask(SockProtocol::NetlinkNetFilter, NFT_MSG_GETTABLE, 0, &message, |answer| {
        let value = attribute(answer.get(HEADER..).unwrap_or_default(), NFTA_TABLE_HANDLE);
        handle = value.and_then(|value| Some(u64::from_be_bytes(value.try_into().ok()?)));
    });
    match result {
        // It is not there; there are no tables, or none of this family; whoever may not see one
        // cannot have made one.
        Err(
            Errno::ENOENT
            | Errno::EPERM
            | Errno::EINVAL
            | Errno::EOPNOTSUPP
            | Errno::EAFNOSUPPORT
            | Errno::EPROTONOSUPPORT,
        ) => Ok(None),
        result => result.map(|()| handle),
    }
}

/// Makes the kernel forget flows, so that their next packets are judged as the first ones of new
/// flows. Gives how many.
pub(super) fn forget_flows(mut which: impl FnMut(&Flow) -> bool) -> Result<usize, Errno> {
    let mut count = 0;
    for _ in 0..PASSES {
        let mut found = Vec::new();
        for family in FAMILIES {
            let all = all_udp(family);
            ask(SockProtocol::NetlinkNetFilter, IPCTNL_MSG_CT_GET, NLM_F_DUMP, &all, |answer| {
                let flow = read_flow(answer.get(HEADER..).unwrap_or_default());
                found.extend(flow.filter(&mut which).map(|flow| (family, flow)));
            })?;
        }
        if found.is_empty() {
            break;
        }
        for (family, flow) in found {
            let message = [header(family), flow.key].concat();
            match ask(SockProtocol::NetlinkNetFilter, IPCTNL_MSG_CT_DELETE, 0, &message, |_| {}) {
                Ok(()) => count += 1,
                // It ended by itself.
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(count)
}

fn header(family: u8) -> Vec<u8> {
    vec![family, 0, 0, 0]
}

/// What asks for flows of UDP; a kernel before 5.8 gives all others too.
fn all_udp(family: u8) -> Vec<u8> {
    let (mut protocol, mut direction, mut filter) = (Vec::new(), Vec::new(), Vec::new());
    put_attribute(&mut protocol, CTA_PROTO_NUM, &[UDP]);
    put_attribute(&mut direction, CTA_TUPLE_PROTO | NLA_F_NESTED, &protocol);
    put_attribute(&mut filter, CTA_FILTER_ORIG_FLAGS, &CTA_FILTER_F_PROTO_NUM.to_ne_bytes());
    let mut message = header(family);
    put_attribute(&mut message, CTA_TUPLE_ORIG | NLA_F_NESTED, &direction);
    put_attribute(&mut message, CTA_FILTER | NLA_F_NESTED, &filter);
    message
}

/// `None` for what is no flow of UDP.
fn read_flow(attributes: &[u8]) -> Option<Flow> {
    let original = attribute(attributes, CTA_TUPLE_ORIG)?;
    let protocol = attribute(original, CTA_TUPLE_PROTO)?;
    if attribute(protocol, CTA_PROTO_NUM)? != [UDP] {
        return None;
    }
    let port = attribute(protocol, CTA_PROTO_DST_PORT)?;
    let mut key = Vec::new();
    put_attribute(&mut key, CTA_TUPLE_ORIG | NLA_F_NESTED, original);
    for kind in [CTA_ID, CTA_ZONE] {
        if let Some(value) = attribute(attributes, kind) {
            put_attribute(&mut key, kind, value);
        }
    }
    Some(Flow {
        to: addresses(original)?.1,
        port: u16::from_be_bytes(port.try_into().ok()?),
        answers: addresses(attribute(attributes, CTA_TUPLE_REPLY)?)?.0,
        key,
    })
}

/// Source and destination of packets in one direction.
fn addresses(direction: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let both = attribute(direction, CTA_TUPLE_IP)?;
    CTA_IP.iter().find_map(|&(source, destination)| {
        Some((address(attribute(both, source)?)?, address(attribute(both, destination)?)?))
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_nobody_made_is_not_there() {
        for family in FAMILIES {
            assert_eq!(table(family, "coracle-nobodys"), Ok(None));
        }
    }

    #[test]
    fn a_flow_is_read_with_all_that_names_it() {
        let direction = |from: [u8; 4], to: [u8; 4], port: u16| {
            let (mut both, mut protocol, mut direction) = (Vec::new(), Vec::new(), Vec::new());
            put_attribute(&mut both, 1, &from);
            put_attribute(&mut both, 2, &to);
            put_attribute(&mut protocol, CTA_PROTO_NUM, &[UDP]);
            put_attribute(&mut protocol, CTA_PROTO_DST_PORT, &port.to_be_bytes());
            put_attribute(&mut direction, CTA_TUPLE_IP | NLA_F_NESTED, &both);
            put_attribute(&mut direction, CTA_TUPLE_PROTO | NLA_F_NESTED, &protocol);
            direction
        };
        let (client, gateway, pod) = ([192, 0, 2, 2], [192, 0, 2, 1], [10, 88, 0, 2]);
        let mut message = Vec::new();
        put_attribute(&mut message, 1 | NLA_F_NESTED, &direction(client, gateway, 53));
        put_attribute(&mut message, 2 | NLA_F_NESTED, &direction(pod, client, 1024));
        put_attribute(&mut message, CTA_ID, &[1, 2, 3, 4]);
        let flow = read_flow(&message).unwrap();
        assert_eq!((flow.to, flow.port), (gateway.into(), 53));
        assert_eq!(flow.answers, IpAddr::from(pod));
        assert_eq!(attribute(&flow.key, CTA_ID), Some(&[1, 2, 3, 4][..]));
        assert!(attribute(&flow.key, CTA_TUPLE_ORIG).is_some());
        assert_eq!(attribute(&flow.key, CTA_ZONE), None);
        for length in 0..message.len() {
            read_flow(&message[..length]);
        }
    }
}
