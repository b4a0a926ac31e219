//! Real traffic.

use std::net::IpAddr;

use coracle_core::desired::{Network, Protocol};

use super::host::{ask, inside, on_a_host, port, request, serve, sh, wait};

#[test]
fn published_ports_are_reached_from_the_host_from_pods_and_from_outside() {
    on_a_host(|host| {
        let networks = host.networks();
        let mut web = request("web", Network::Pod);
        web.ports = vec![port(80, 8080, Protocol::Tcp), port(80, 8080, Protocol::Udp)];
        let (web, other) = wait(async {
            networks.sweep().await;
            (
                networks.ensure(&web).await.unwrap(),
                networks.ensure(&request("other", Network::Pod)).await.unwrap(),
            )
        });
        let (netns, address) = (web.netns.unwrap(), web.address.unwrap());
        assert_eq!(address.to_string(), "10.88.0.2");
        serve(&netns, 80);
        let from_host = |to: &str, port| ask(to.parse().unwrap(), port).unwrap();
        // From the gateway itself: to the pod, through its own addresses, and through localhost.
        assert_eq!(from_host("10.88.0.2", 80).0, "10.88.0.1");
        from_host("10.88.0.1", 8080);
        from_host("127.0.0.1", 8080);
        // From another pod, and from the pod itself, by the gateway's port and directly.
        let other = other.netns.unwrap();
        let gateway: IpAddr = "10.88.0.1".parse().unwrap();
        assert_eq!(inside(&other, || ask(address, 80)).unwrap().0, "10.88.0.3");
        inside(&other, || ask(gateway, 8080)).unwrap();
        inside(&netns, || ask(gateway, 8080)).unwrap();
        // From another machine: it has one cable to the gateway, and knows nothing of pods.
        sh("ip link add outside type veth peer name inside
            ip addr add 192.0.2.1/24 dev outside; ip link set outside up");
        let far = wait(networks.ensure(&request("far", Network::None))).unwrap().netns.unwrap();
        sh(&format!(
            "ip link set inside netns {0}; nsenter --net={0} ip addr add 192.0.2.2/24 dev inside
             nsenter --net={0} ip link set inside up",
            far.display()
        ));
        let near: IpAddr = "192.0.2.1".parse().unwrap();
        let seen = inside(&far, || ask(near, 8080)).unwrap();
        assert_eq!(seen, ("192.0.2.2".to_owned(), "192.0.2.2".to_owned()));
        // And the other way round, masqueraded: the other machine has no way back to pods.
        serve(&far, 70);
        let seen = inside(&netns, || ask("192.0.2.2".parse().unwrap(), 70)).unwrap();
        assert_eq!(seen, ("192.0.2.1".to_owned(), "192.0.2.1".to_owned()));
        wait(networks.remove(&super::host::replica("web", 0))).unwrap();
        assert!(inside(&far, || ask(near, 8080)).is_err(), "the port outlives the pod");
    });
}

#[test]
fn a_port_may_be_bound_to_one_address_of_the_gateway() {
    on_a_host(|host| {
        sh("ip addr add 192.0.2.1/32 dev lo; ip addr add 192.0.2.2/32 dev lo");
        let mut web = request("web", Network::Pod);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let mut port = port(80, 8080, protocol);
            port.host_address = Some("192.0.2.1".parse().unwrap());
            web.ports.push(port);
        }
        let pod = wait(host.networks().ensure(&web)).unwrap();
        serve(&pod.netns.unwrap(), 80);
        ask("192.0.2.1".parse().unwrap(), 8080).unwrap();
        assert!(ask("192.0.2.2".parse().unwrap(), 8080).is_err());
    });
}

#[test]
fn a_network_of_none_has_a_loopback_interface_and_nothing_else() {
    on_a_host(|host| {
        let pod = wait(host.networks().ensure(&request("alone", Network::None))).unwrap();
        let netns = pod.netns.unwrap();
        assert_eq!((pod.address, pod.resolv_conf), (None, None));
        serve(&netns, 80);
        inside(&netns, || ask("127.0.0.1".parse().unwrap(), 80)).unwrap();
        let links = sh(&format!("nsenter --net={} ip -o link", netns.display()));
        assert_eq!(links.lines().count(), 1, "{links}");
    });
}
