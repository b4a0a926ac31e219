//! The gateway's network interfaces with their addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use coracle_protocol::health::Interface;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// All but the loopback, sorted by name; none if the kernel does not say.
pub fn interfaces() -> Vec<Interface> {
    let Ok(all) = getifaddrs() else { return Vec::new() };
    let mut found: BTreeMap<String, Interface> = BTreeMap::new();
    for one in all.filter(|one| !one.flags.contains(InterfaceFlags::IFF_LOOPBACK)) {
        let up = one.flags.contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING);
        let name = one.interface_name;
        let interface = found.entry(name.clone()).or_insert_with(|| Interface {
            name,
            mac: None,
            addresses: Vec::new(),
            up,
        });
        let Some(address) = one.address else { continue };
        let link = address.as_link_addr().and_then(|link| link.addr());
        if let Some(bytes) = link.filter(|bytes| *bytes != [0; 6]) {
            let digits: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            interface.mac = Some(digits.join(":"));
        }
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        let v6 = address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip()));
        interface.addresses.extend(v4.or(v6));
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_not_among_them_and_hardware_addresses_are_as_usual() {
        for interface in interfaces() {
            assert_ne!(interface.name, "lo");
            assert!(!interface.addresses.contains(&IpAddr::from([127, 0, 0, 1])));
            assert!(interface.mac.is_none_or(|mac| mac.len() == 17 && mac.split(':').count() == 6));
        }
    }
}
