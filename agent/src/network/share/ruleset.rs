//! The rules by which the packet filter shares ports out, as text for `nft -f`
//! (<https://www.netfilter.org/projects/nftables/manpage.html>).
//!
//! In: ports, where they lead, the pods' subnets. Out: what is to be read by `nft` as one
//! transaction. Everything in it is a number, an address or a name that was parsed. Nothing is done
//! here.
//!
//! A packet meets either all old rules or all new ones, because within one table the chains stay and
//! only their rules are replaced, and because no rule looks into a map or a set: those are looked
//! into by the generation of the moment, not by the one that the packet began with. Whoever changes
//! a chain's hook or priority gives the table another name, and removes this one.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};

use coracle_core::desired::Protocol;
use coracle_core::name::{ReplicaId, WorkloadName};

/// A port of the gateway, and where new connections to it go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    /// Whose.
    pub(super) workload: WorkloadName,
    /// Over which protocol.
    pub(super) protocol: Protocol,
    /// Its number.
    pub(super) number: u16,
    /// The only address of the gateway on which it is open.
    pub(super) address: Option<IpAddr>,
    /// Nowhere if there are none.
    pub(super) targets: Vec<(ReplicaId, SocketAddr)>,
}

/// Addresses that are reached without the gateway by those that have one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::network) struct Subnet {
    /// Any address of it.
    address: IpAddr,
    /// How many bits all its addresses have in common.
    prefix: u8,
}

/// Addresses of which version. Each has a table of its own, so that a kernel without IPv6 will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

/// All that `nft` is told of one family; `None` if there is to be no table of it.
pub(super) fn rules(
    family: Family,
    table: &str,
    ports: &[Port],
    subnets: &BTreeSet<Subnet>,
) -> Option<String> {
    let ports: Vec<_> = ports.iter().filter(|port| port.is_of(family)).collect();
    let subnets: Vec<_> = subnets.iter().filter(|subnet| family.has(subnet.address)).collect();
    // Where no pod has an IPv6 address, nothing can be said of IPv6.
    if ports.is_empty() || (family == Family::Ip6 && subnets.is_empty()) {
        return None;
    }
    let head = format!("table {family} {table}");
    let mut text = format!("{head} {{\n{CHAINS}}}\nflush {head}\n{head} {{\n");
    chain(&mut text, "guard", &family.guard(&ports));
    chain(&mut text, "refuse-in", &refusals(family, &ports, &[Protocol::Tcp, Protocol::Udp]));
    // A program of the gateway itself that sends UDP would be told that it may not, instead of that
    // nobody is there.
    chain(&mut text, "refuse-out", &refusals(family, &ports, &[Protocol::Tcp]));
    chain(&mut text, "share-in", &["jump share".to_owned()]);
    chain(&mut text, "share-out", &[format!("{}jump share", family.not_to_itself())]);
    chain(&mut text, "share", &shares(family, &ports));
    chain(&mut text, "answer", &answers(&ports));
    chain(&mut text, "hide", &family.hidden(&subnets));
    text.push_str("}\n");
    Some(text)
}

/// What `nft` is told if there is a table and is to be none.
pub(super) fn removal(family: Family, table: &str) -> String {
    format!("delete table {family} {table}\n")
}

/// `portmap` translates at -100: whoever is first decides. Refused is before that, and before
/// anything is remembered of the packet; 100 is where others masquerade.
const CHAINS: &str = "    chain guard { type filter hook prerouting priority -300; policy accept; }
    chain refuse-in { type filter hook prerouting priority -150; policy accept; }
    chain refuse-out { type filter hook output priority -150; policy accept; }
    chain share-in { type nat hook prerouting priority -101; policy accept; }
    chain share-out { type nat hook output priority -101; policy accept; }
    chain answer { type nat hook postrouting priority 99; policy accept; }
    chain share { }
    chain hide { }
";

fn chain(text: &mut String, name: &str, rules: &[String]) {
    writeln!(text, "    chain {name} {{").expect("a string takes everything");
    for rule in rules {
        writeln!(text, "        {rule}").expect("a string takes everything");
    }
    text.push_str("    }\n");
}

/// New connections to ports that lead nowhere.
fn refusals(family: Family, ports: &[&Port], protocols: &[Protocol]) -> Vec<String> {
    let closed = ports.iter().filter(|port| port.targets.is_empty());
    let closed = closed.filter(|port| protocols.contains(&port.protocol));
    let refusal = |port: &&Port| {
        let with = match port.protocol {
            Protocol::Tcp => " with tcp reset",
            Protocol::Udp => "",
        };
        // What is open, or flows, is remembered already.
        let (to, whose) = (port.condition(family), &port.workload);
        format!("{to} ct status & confirmed == 0 reject{with} comment \"{whose}\"")
    };
    closed.map(refusal).collect()
}

/// New connections in turn: of three targets the first takes each third, the second each second of
/// the rest, and the last what remains.
fn shares(family: Family, ports: &[&Port]) -> Vec<String> {
    let mut rules = Vec::new();
    for port in ports {
        let targets: Vec<_> =
            port.targets.iter().filter(|(_, address)| family.has(address.ip())).collect();
        for (at, (replica, address)) in targets.iter().enumerate() {
            let turn = match targets.len() - at {
                1 => String::new(),
                left => format!("numgen inc mod {left} 0 "),
            };
            let to = port.condition(family);
            rules.push(format!("{to} {turn}dnat to {address} comment \"{replica}\""));
        }
    }
    rules
}

/// Translated connections to shared ports, whatever they lead to: what was translated by the rules
/// before these may come here only now.
fn answers(ports: &[&Port]) -> Vec<String> {
    let ports: BTreeSet<_> = ports.iter().map(|port| (port.transport(), port.number)).collect();
    let answer = |(transport, number): &(&str, u16)| {
        format!("ct status dnat meta l4proto {transport} ct original proto-dst {number} jump hide")
    };
    ports.iter().map(answer).collect()
}

impl Port {
    fn is_of(&self, family: Family) -> bool {
        self.address.is_none_or(|address| family.has(address))
    }

    fn transport(&self) -> &'static str {
        match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }

    /// Whether a packet is for it.
    fn condition(&self, family: Family) -> String {
        let port = format!("{} dport {}", self.transport(), self.number);
        match self.address {
            Some(address) => format!("{port} {family} daddr {address}"),
            None => format!("{port} fib daddr type local"),
        }
    }

    /// Whether it is open at `127.0.0.1`.
    pub(super) fn is_on_loopback(&self) -> bool {
        self.is_of(Family::Ip) && self.address.is_none_or(|address| address.is_loopback())
    }
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::Ip, Self::Ip6];

    /// As the kernel numbers it.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Ip => 2,
            Self::Ip6 => 10,
        }
    }

    pub(super) fn has(self, address: IpAddr) -> bool {
        address.is_ipv4() == (self == Self::Ip)
    }

    /// An interface that may lead connections out of `127.0.0.0/8` also takes in what comes for it
    /// from elsewhere, unless somebody keeps that out.
    fn guard(self, ports: &[&Port]) -> Vec<String> {
        let open = self == Self::Ip && ports.iter().any(|port| port.is_on_loopback());
        open.then(|| "iifname != \"lo\" ip daddr 127.0.0.0/8 drop".to_owned()).into_iter().collect()
    }

    /// The kernel never lets a connection out of `::1`.
    fn not_to_itself(self) -> &'static str {
        match self {
            Self::Ip => "",
            Self::Ip6 => "ip6 daddr != ::1 ",
        }
    }

    /// Connections whose answers would not find back, or go past the gateway.
    fn hidden(self, subnets: &[&Subnet]) -> Vec<String> {
        let loopback = (self == Self::Ip).then(|| "ip saddr 127.0.0.0/8 masquerade".to_owned());
        let inside =
            |subnet: &&Subnet| format!("{self} saddr {subnet} {self} daddr {subnet} masquerade");
        loopback.into_iter().chain(subnets.iter().map(inside)).collect()
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        })
    }
}

impl Subnet {
    /// The one that an address with the length of its prefix is in.
    pub(in crate::network) fn of(address: IpAddr, prefix: u8) -> Self {
        let cut = |bits: u128, all: u8| -> u128 {
            let free = u32::from(all.saturating_sub(prefix));
            bits.checked_shr(free).and_then(|bits| bits.checked_shl(free)).unwrap_or_default()
        };
        match address {
            IpAddr::V4(v4) => {
                let bits = u32::try_from(cut(v4.to_bits().into(), 32)).unwrap_or_default();
                Self { address: IpAddr::V4(bits.into()), prefix: prefix.min(32) }
            }
            IpAddr::V6(v6) => {
                Self { address: IpAddr::V6(cut(v6.to_bits(), 128).into()), prefix: prefix.min(128) }
            }
        }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn port(protocol: Protocol, number: u16, targets: &[&str]) -> Port {
        let workload = WorkloadName::parse("web").unwrap();
        let replica = |index| ReplicaId { workload: workload.clone(), index };
        let targets = targets.iter().zip(0..);
        let targets = targets.map(|(to, index)| (replica(index), to.parse().unwrap())).collect();
        Port { workload: workload.clone(), protocol, number, address: None, targets }
    }

    fn subnets(all: &[(&str, u8)]) -> BTreeSet<Subnet> {
        all.iter().map(|(address, prefix)| Subnet::of(address.parse().unwrap(), *prefix)).collect()
    }

    /// What is in the chains.
    fn check(family: Family, ports: &[Port], expected: &Expect) {
        let subnets = subnets(&[("10.88.0.2", 16), ("fd00::2", 64)]);
        let text = rules(family, "coracle-0", ports, &subnets).unwrap();
        let (_, rules) = text.split_once("flush").unwrap();
        let mut lines = rules.lines().skip(2).filter(|line| line.trim() != "}").collect::<Vec<_>>();
        // Without chains that are empty.
        let chain = |line: &&str| line.trim_end().ends_with('{');
        for at in (0..lines.len()).rev() {
            if chain(&lines[at]) && lines.get(at + 1).is_none_or(chain) {
                lines.remove(at);
            }
        }
        let text: String = lines.iter().map(|line| format!("{}\n", &line[4..])).collect();
        expected.assert_eq(&text);
    }

    #[test]
    fn a_table_is_made_of_chains_that_stay_and_rules_that_are_replaced() {
        let ports = [port(Protocol::Tcp, 80, &["10.88.0.2:8080"])];
        let text = rules(Family::Ip, "coracle-0", &ports, &subnets(&[("10.88.0.2", 16)])).unwrap();
        let expected = expect![[r#"
            table ip coracle-0 {
                chain guard { type filter hook prerouting priority -300; policy accept; }
                chain refuse-in { type filter hook prerouting priority -150; policy accept; }
                chain refuse-out { type filter hook output priority -150; policy accept; }
                chain share-in { type nat hook prerouting priority -101; policy accept; }
                chain share-out { type nat hook output priority -101; policy accept; }
                chain answer { type nat hook postrouting priority 99; policy accept; }
                chain share { }
                chain hide { }
            }
            flush table ip coracle-0
            table ip coracle-0 {
                chain guard {
                    iifname != "lo" ip daddr 127.0.0.0/8 drop
                }
                chain refuse-in {
                }
                chain refuse-out {
                }
                chain share-in {
                    jump share
                }
                chain share-out {
                    jump share
                }
                chain share {
                    tcp dport 80 fib daddr type local dnat to 10.88.0.2:8080 comment "web.0"
                }
                chain answer {
                    ct status dnat meta l4proto tcp ct original proto-dst 80 jump hide
                }
                chain hide {
                    ip saddr 127.0.0.0/8 masquerade
                    ip saddr 10.88.0.0/16 ip daddr 10.88.0.0/16 masquerade
                }
            }
        "#]];
        expected.assert_eq(&text);
        assert_eq!(removal(Family::Ip6, "coracle-0"), "delete table ip6 coracle-0\n");
    }

    #[test]
    fn new_connections_go_to_each_in_turn() {
        let three = ["10.88.0.2:8080", "10.88.0.3:8080", "10.88.0.4:8081"];
        let expected = expect![[r#"
            chain guard {
                iifname != "lo" ip daddr 127.0.0.0/8 drop
            chain share-in {
                jump share
            chain share-out {
                jump share
            chain share {
                tcp dport 80 fib daddr type local numgen inc mod 3 0 dnat to 10.88.0.2:8080 comment "web.0"
                tcp dport 80 fib daddr type local numgen inc mod 2 0 dnat to 10.88.0.3:8080 comment "web.1"
                tcp dport 80 fib daddr type local dnat to 10.88.0.4:8081 comment "web.2"
            chain answer {
                ct status dnat meta l4proto tcp ct original proto-dst 80 jump hide
            chain hide {
                ip saddr 127.0.0.0/8 masquerade
                ip saddr 10.88.0.0/16 ip daddr 10.88.0.0/16 masquerade
        "#]];
        check(Family::Ip, &[port(Protocol::Tcp, 80, &three)], &expected);
    }

    #[test]
    fn a_port_that_leads_nowhere_is_refused() {
        let ports = [port(Protocol::Tcp, 80, &[]), port(Protocol::Udp, 53, &[])];
        let expected = expect![[r#"
            chain guard {
                iifname != "lo" ip daddr 127.0.0.0/8 drop
            chain refuse-in {
                tcp dport 80 fib daddr type local ct status & confirmed == 0 reject with tcp reset comment "web"
                udp dport 53 fib daddr type local ct status & confirmed == 0 reject comment "web"
            chain refuse-out {
                tcp dport 80 fib daddr type local ct status & confirmed == 0 reject with tcp reset comment "web"
            chain share-in {
                jump share
            chain share-out {
                jump share
            chain answer {
                ct status dnat meta l4proto tcp ct original proto-dst 80 jump hide
                ct status dnat meta l4proto udp ct original proto-dst 53 jump hide
            chain hide {
                ip saddr 127.0.0.0/8 masquerade
                ip saddr 10.88.0.0/16 ip daddr 10.88.0.0/16 masquerade
        "#]];
        check(Family::Ip, &ports, &expected);
    }

    #[test]
    fn a_port_may_be_of_one_address() {
        let mut ports = [port(Protocol::Udp, 53, &["10.88.0.2:53"]), port(Protocol::Tcp, 80, &[])];
        for port in &mut ports {
            port.address = Some("192.0.2.1".parse().unwrap());
        }
        let expected = expect![[r#"
            chain refuse-in {
                tcp dport 80 ip daddr 192.0.2.1 ct status & confirmed == 0 reject with tcp reset comment "web"
            chain refuse-out {
                tcp dport 80 ip daddr 192.0.2.1 ct status & confirmed == 0 reject with tcp reset comment "web"
            chain share-in {
                jump share
            chain share-out {
                jump share
            chain share {
                udp dport 53 ip daddr 192.0.2.1 dnat to 10.88.0.2:53 comment "web.0"
            chain answer {
                ct status dnat meta l4proto tcp ct original proto-dst 80 jump hide
                ct status dnat meta l4proto udp ct original proto-dst 53 jump hide
            chain hide {
                ip saddr 127.0.0.0/8 masquerade
                ip saddr 10.88.0.0/16 ip daddr 10.88.0.0/16 masquerade
        "#]];
        check(Family::Ip, &ports, &expected);
        assert_eq!(rules(Family::Ip6, "coracle-0", &ports, &subnets(&[("fd00::2", 64)])), None);
    }

    #[test]
    fn each_family_has_its_own_targets() {
        let both = ["10.88.0.2:80", "[fd00::2]:80", "10.88.0.3:80", "[fd00::3]:80"];
        let ports = [port(Protocol::Tcp, 80, &both), port(Protocol::Udp, 53, &["10.88.0.2:53"])];
        let expected = expect![[r#"
            chain share-in {
                jump share
            chain share-out {
                ip6 daddr != ::1 jump share
            chain share {
                tcp dport 80 fib daddr type local numgen inc mod 2 0 dnat to [fd00::2]:80 comment "web.1"
                tcp dport 80 fib daddr type local dnat to [fd00::3]:80 comment "web.3"
            chain answer {
                ct status dnat meta l4proto tcp ct original proto-dst 80 jump hide
                ct status dnat meta l4proto udp ct original proto-dst 53 jump hide
            chain hide {
                ip6 saddr fd00::/64 ip6 daddr fd00::/64 masquerade
        "#]];
        check(Family::Ip6, &ports, &expected);
        let ports = [port(Protocol::Tcp, 80, &["[fd00::2]:80"])];
        let expected = expect![[r#"
            chain guard {
                iifname != "lo" ip daddr 127.0.0.0/8 drop
            chain share-in {
                jump share
            chain share-out {
                jump share
            chain answer {
                ct status dnat meta l4proto tcp ct original proto-dst 80 jump hide
            chain hide {
                ip saddr 127.0.0.0/8 masquerade
                ip saddr 10.88.0.0/16 ip daddr 10.88.0.0/16 masquerade
        "#]];
        check(Family::Ip, &ports, &expected);
    }

    #[test]
    fn without_ports_or_addresses_there_is_no_table() {
        let v4 = subnets(&[("10.88.0.2", 16)]);
        assert_eq!(rules(Family::Ip, "coracle-0", &[], &v4), None);
        let ports = [port(Protocol::Tcp, 80, &[])];
        assert_eq!(rules(Family::Ip6, "coracle-0", &ports, &v4), None);
        assert!(rules(Family::Ip, "coracle-0", &ports, &BTreeSet::new()).is_some());
    }

    #[test]
    fn a_subnet_is_the_same_whichever_of_its_addresses_is_given() {
        let show = |address: &str, prefix| Subnet::of(address.parse().unwrap(), prefix).to_string();
        for (address, prefix, subnet) in [
            ("10.88.3.7", 16, "10.88.0.0/16"),
            ("10.88.3.7", 32, "10.88.3.7/32"),
            ("10.88.3.7", 0, "0.0.0.0/0"),
            ("10.88.3.7", 99, "10.88.3.7/32"),
            ("fd00:1::7", 64, "fd00:1::/64"),
            ("fd00:1::7", 0, "::/0"),
        ] {
            assert_eq!(show(address, prefix), subnet);
        }
    }
}
