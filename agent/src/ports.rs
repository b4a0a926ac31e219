//! Ports that are in use on the gateway itself, from `/proc/net`
//! (<https://man7.org/linux/man-pages/man5/proc_pid_net.5.html>).

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use coracle_core::desired::Protocol;

/// A port that somebody listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BoundPort {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where; `0.0.0.0` or `::` is everywhere. `::` usually takes IPv4 too.
    pub address: IpAddr,
    /// Which.
    pub port: u16,
}

/// State of a TCP socket that listens, and of a UDP socket that is bound and not connected
/// (the kernel's `tcp_states.h`).
const TCP_LISTEN: &str = "0A";
const UDP_BOUND: &str = "07";

/// What is listened on now, sorted, in the network of the calling thread.
///
/// # Errors
/// `/proc` cannot be read. A kernel without IPv6 is no error.
pub fn bound_ports() -> io::Result<Vec<BoundPort>> {
    let mut ports = Vec::new();
    let tables = [
        ("tcp", Protocol::Tcp, TCP_LISTEN),
        ("tcp6", Protocol::Tcp, TCP_LISTEN),
        ("udp", Protocol::Udp, UDP_BOUND),
        ("udp6", Protocol::Udp, UDP_BOUND),
    ];
    for (name, protocol, state) in tables {
        match fs::read_to_string(format!("/proc/thread-self/net/{name}")) {
            Ok(text) => ports.extend(listening(&text, protocol, state)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && name.ends_with('6') => {}
            Err(error) => return Err(error),
        }
    }
    ports.sort_unstable();
    ports.dedup();
    Ok(ports)
}

fn listening<'a>(
    table: &'a str,
    protocol: Protocol,
    state: &'a str,
) -> impl Iterator<Item = BoundPort> + 'a {
    table.lines().skip(1).filter_map(move |line| {
        let mut words = line.split_whitespace();
        let (local, _remote, its) = (words.nth(1)?, words.next()?, words.next()?);
        let (address, port) = local.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok().filter(|port| *port != 0)?;
        (its == state).then_some(BoundPort { protocol, address: parse_address(address)?, port })
    })
}

/// Words of 32 bits, each in the machine's byte order.
fn parse_address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let digits = text.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for at in 0..4 {
                bytes[at * 4..at * 4 + 4].copy_from_slice(&word(at)?);
            }
            let address = Ipv6Addr::from(bytes);
            Some(address.to_ipv4_mapped().map_or(address.into(), IpAddr::from))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn what_is_bound_is_found_and_what_is_connected_is_not() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let six = TcpListener::bind("[::1]:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let ports = bound_ports().unwrap();
        let has = |protocol, of: std::net::SocketAddr| {
            ports.contains(&BoundPort { protocol, address: of.ip(), port: of.port() })
        };
        assert!(has(Protocol::Tcp, tcp.local_addr().unwrap()));
        assert!(has(Protocol::Tcp, six.local_addr().unwrap()));
        assert!(has(Protocol::Udp, udp.local_addr().unwrap()));
        assert!(!has(Protocol::Udp, tcp.local_addr().unwrap()));
        assert!(!has(Protocol::Tcp, client.local_addr().unwrap()));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn addresses_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_address("0100007F"), Some("127.0.0.1".parse().unwrap()));
        let mapped = "0000000000000000FFFF00000100007F";
        assert_eq!(parse_address(mapped), Some("127.0.0.1".parse().unwrap()));
        let loopback = "00000000000000000000000001000000";
        assert_eq!(parse_address(loopback), Some("::1".parse().unwrap()));
        for bad in ["", "0100", "zz00007F", "€€€"] {
            assert_eq!(parse_address(bad), None, "{bad}");
        }
    }
}
