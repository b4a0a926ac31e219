//! Ports that are shared out over replicas: who is reached, from where, and when nobody is.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use coracle::network::{NetworkError, Networks};
use coracle_core::backoff::Retry;
use coracle_core::desired::{Network, Protocol};
use coracle_core::traffic::Traffic;

use super::host::{Host, ask, inside, on_a_host, port, replica, request, serve, sh, wait};
use super::peers::{
    FAR, GATEWAY, LOOPBACK, Machine, OUTSIDE, SHARED, Sender, Server, ask_often, ask_once, traffic,
    web,
};

/// The ordinary port of a replica.
pub(crate) fn http() -> coracle::network::PortMapping {
    port(80, SHARED, Protocol::Tcp)
}

/// As [`http`], and UDP.
fn replica_with_both(index: u32) -> coracle::network::NetworkRequest {
    let mut request = web(index, http());
    request.ports.push(port(80, SHARED, Protocol::Udp));
    request
}

fn rules() -> String {
    sh("nft -a list ruleset")
}

fn is_refused(to: &str) {
    let error = ask_once(to, SHARED).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
}

#[test]
fn a_port_is_shared_out_evenly_from_wherever_it_is_reached() {
    // Whether frames that stay on the bridge pass the packet filter differs from gateway to gateway.
    for bridged in ["0", "1"] {
        on_a_host(|host| {
            sh(&format!("sysctl -q net.bridge.bridge-nf-call-iptables={bridged}"));
            let before = host.used();
            let far = Machine::plug_in();
            let networks = host.networks();
            wait(async {
                let mut servers = Vec::new();
                for index in 0..3 {
                    servers.push(Server::start(&networks, &web(index, http())).await);
                }
                let other = networks.ensure(&request("other", Network::Pod)).await.unwrap();
                networks.share(&traffic(&servers)).await.unwrap();
                let even = BTreeMap::from(["web.0", "web.1", "web.2"].map(|n| (n.to_owned(), 10)));
                let check = |(counts, seen), expected: &str| {
                    assert_eq!(counts, even);
                    assert_eq!(seen, expected);
                };
                check(inside(&far.netns, || ask_often(OUTSIDE, 30)), FAR);
                check(ask_often(OUTSIDE, 30), OUTSIDE);
                check(ask_often(GATEWAY, 30), GATEWAY);
                check(ask_often(LOOPBACK, 30), GATEWAY);
                // Of pods, the answer would go past the gateway if they were seen as they are.
                let other = other.netns.unwrap();
                check(inside(&other, || ask_often(GATEWAY, 30)), GATEWAY);
                check(inside(&other, || ask_often(OUTSIDE, 30)), GATEWAY);
                for server in &servers {
                    check(inside(server.netns(), || ask_often(GATEWAY, 30)), GATEWAY);
                }
                for server in servers {
                    networks.remove(&server.replica).await.unwrap();
                }
                networks.remove(&replica("other", 0)).await.unwrap();
                networks.share(&Traffic::default()).await.unwrap();
            });
            far.unplug();
            host.comes_back_to(&before, "all removed");
        });
    }
}

#[test]
fn what_is_so_already_is_not_written_again() {
    on_a_host(|host| {
        let before = host.used();
        let networks = host.networks();
        wait(async {
            networks.share(&Traffic::default()).await.unwrap();
            let one = Server::start(&networks, &web(0, http())).await;
            let two = Server::start(&networks, &web(1, http())).await;
            networks.share(&traffic([&one])).await.unwrap();
            let first = rules();
            networks.share(&traffic([&one])).await.unwrap();
            networks.withdraw(&two.replica).await.unwrap();
            networks.share(&traffic([&one, &two])).await.unwrap();
            assert_eq!(rules(), first, "who is withdrawn gets something");
            // Somebody may empty the packet filter.
            sh("nft list tables | grep coracle | while read -r table; do nft delete $table; done");
            networks.share(&traffic([&one, &two])).await.unwrap();
            assert_eq!(ask_once(LOOPBACK, SHARED).unwrap().0, "web.0");
            // Made anew, it is one of them again, when it is named again.
            networks.remove(&two.replica).await.unwrap();
            drop(two);
            let two = Server::start(&networks, &web(1, http())).await;
            assert_eq!(ask_often(LOOPBACK, 4).0.len(), 1);
            networks.share(&traffic([&one, &two])).await.unwrap();
            assert_eq!(ask_often(LOOPBACK, 4).0.len(), 2);
            // Nobody is led to who is removed.
            networks.remove(&one.replica).await.unwrap();
            assert_eq!(ask_often(LOOPBACK, 4).0.keys().collect::<Vec<_>>(), ["web.1"]);
            networks.share(&traffic([&one, &two])).await.unwrap();
            assert_eq!(ask_often(LOOPBACK, 4).0.keys().collect::<Vec<_>>(), ["web.1"]);
            networks.remove(&two.replica).await.unwrap();
            is_refused(LOOPBACK);
            networks.share(&Traffic::default()).await.unwrap();
        });
        host.comes_back_to(&before, "all removed");
    });
}

#[test]
fn a_port_that_leads_nowhere_is_refused_at_once() {
    on_a_host(|host| {
        let far = Machine::plug_in();
        let networks = host.networks();
        wait(async {
            let server = Server::start(&networks, &replica_with_both(0)).await;
            networks.share(&traffic([])).await.unwrap();
            let senders = [Sender::at(&far.netns, OUTSIDE), Sender::here(LOOPBACK)];
            let refused = || {
                inside(&far.netns, || is_refused(OUTSIDE));
                inside(server.netns(), || is_refused(GATEWAY));
                for to in [OUTSIDE, GATEWAY, LOOPBACK] {
                    is_refused(to);
                }
                for sender in &senders {
                    let kind = sender.ask().unwrap_err().kind();
                    assert_eq!(kind, ErrorKind::ConnectionRefused, "{sender:?}");
                }
            };
            refused();
            networks.share(&traffic([&server])).await.unwrap();
            // Also for those who asked before, from the same port.
            for _ in 0..2 {
                assert_eq!(senders[0].ask().unwrap(), ("web.0".into(), FAR.into()));
                assert_eq!(senders[1].ask().unwrap(), ("web.0".into(), GATEWAY.into()));
                assert_eq!(inside(&far.netns, || ask_once(OUTSIDE, SHARED)).unwrap().1, FAR);
            }
            networks.withdraw(&server.replica).await.unwrap();
            refused();
        });
    });
}

#[test]
fn a_sender_of_udp_goes_on_with_another_replica() {
    on_a_host(|host| {
        let far = Machine::plug_in();
        let networks = host.networks();
        wait(async {
            let mut servers = Vec::new();
            for index in 0..3 {
                servers.push(Server::start(&networks, &replica_with_both(index)).await);
            }
            let senders = [
                Sender::at(&far.netns, OUTSIDE),
                Sender::at(servers[2].netns(), GATEWAY),
                Sender::here(LOOPBACK),
                Sender::here(OUTSIDE),
            ];
            let take = |servers: &[Server]| traffic(servers);
            networks.share(&take(&servers[..1])).await.unwrap();
            let answer_is = |name: &str| {
                for sender in &senders {
                    for _ in 0..3 {
                        assert_eq!(sender.ask().unwrap().0, name);
                    }
                }
            };
            answer_is("web.0");
            // As long as it is not withdrawn, it keeps them.
            networks.share(&take(&servers[1..2])).await.unwrap();
            answer_is("web.0");
            networks.withdraw(&servers[0].replica).await.unwrap();
            answer_is("web.1");
            // Removed without further ado.
            networks.share(&take(&servers[2..])).await.unwrap();
            answer_is("web.1");
            networks.remove(&servers[1].replica).await.unwrap();
            answer_is("web.2");
        });
    });
}

#[test]
fn ports_that_a_plugin_publishes_stand_beside_those_that_are_shared_out() {
    on_a_host(|host| {
        let before = host.used();
        let far = Machine::plug_in();
        let networks = host.networks();
        wait(async {
            let mut db = request("db", Network::Pod);
            db.ports = vec![port(5432, 5432, Protocol::Tcp), port(5432, 5432, Protocol::Udp)];
            let db = networks.ensure(&db).await.unwrap();
            serve(db.netns.as_ref().unwrap(), 5432);
            let db_is_there = || {
                inside(&far.netns, || ask(OUTSIDE.parse().unwrap(), 5432)).unwrap();
                ask(LOOPBACK.parse().unwrap(), 5432).unwrap();
            };
            // One replica, published by the plugin.
            let mut first = web(0, http());
            first.shared_ports = false;
            let alone = Server::start(&networks, &first).await;
            assert_eq!(ask_often(OUTSIDE, 4).0.len(), 1);
            db_is_there();
            // And a second one: the first is not made anew for that.
            let shared = web(0, http());
            assert_eq!(networks.ensure(&shared).await.unwrap(), alone.pod);
            assert!(!networks.shares_ports(&alone.replica));
            let second = Server::start(&networks, &web(1, http())).await;
            assert!(networks.shares_ports(&second.replica));
            networks.share(&traffic([&alone, &second])).await.unwrap();
            let ask_everywhere = || {
                [
                    inside(&far.netns, || ask_often(OUTSIDE, 4)).0,
                    inside(second.netns(), || ask_often(GATEWAY, 4)).0,
                    ask_often(OUTSIDE, 4).0,
                    ask_often(LOOPBACK, 4).0,
                ]
            };
            for counts in ask_everywhere() {
                assert_eq!(counts.len(), 2);
            }
            db_is_there();
            networks.withdraw(&alone.replica).await.unwrap();
            for counts in ask_everywhere() {
                assert_eq!(counts.keys().collect::<Vec<_>>(), ["web.1"]);
            }
            // The plugin would still lead there.
            networks.withdraw(&second.replica).await.unwrap();
            inside(&far.netns, || is_refused(OUTSIDE));
            inside(alone.netns(), || is_refused(GATEWAY));
            for to in [OUTSIDE, LOOPBACK] {
                is_refused(to);
            }
            db_is_there();
            // Back to a plugin's port it is another network.
            let namespace = fs::metadata(second.netns()).unwrap();
            let mut one = web(1, http());
            one.shared_ports = false;
            let again = networks.ensure(&one).await.unwrap();
            let anew = fs::metadata(again.netns.unwrap()).unwrap();
            use std::os::unix::fs::MetadataExt;
            assert_ne!(anew.ino(), namespace.ino());
            for name in [&alone.replica, &second.replica, &replica("db", 0)] {
                networks.remove(name).await.unwrap();
            }
            networks.share(&Traffic::default()).await.unwrap();
        });
        far.unplug();
        host.comes_back_to(&before, "all removed");
    });
}

#[test]
fn a_port_may_be_shared_out_on_one_address_of_the_gateway() {
    on_a_host(|host| {
        sh(&format!("ip addr add {OUTSIDE}/32 dev lo; ip addr add 192.0.2.9/32 dev lo"));
        let networks = host.networks();
        wait(async {
            let server = Server::start(&networks, &web(0, http())).await;
            let mut traffic = traffic([&server]);
            for port in &mut traffic.0 {
                port.address = Some(OUTSIDE.parse().unwrap());
            }
            networks.share(&traffic).await.unwrap();
            assert_eq!(ask_once(OUTSIDE, SHARED).unwrap().0, "web.0");
            assert_eq!(inside(server.netns(), || ask_once(OUTSIDE, SHARED)).unwrap().0, "web.0");
            for to in ["192.0.2.9", LOOPBACK, GATEWAY] {
                is_refused(to);
            }
        });
    });
}

#[test]
fn a_gateway_that_forwards_nothing_has_to_let_translated_connections_pass() {
    on_a_host(|host| {
        let far = Machine::plug_in();
        let networks = host.networks();
        wait(async {
            let server = Server::start(&networks, &web(0, http())).await;
            networks.share(&traffic([&server])).await.unwrap();
            let mut db = request("db", Network::Pod);
            db.ports = vec![port(5432, 5432, Protocol::Tcp), port(5432, 5432, Protocol::Udp)];
            let db = networks.ensure(&db).await.unwrap();
            serve(db.netns.as_ref().unwrap(), 5432);
            let both = || {
                inside(&far.netns, || {
                    let shared = ask_once(OUTSIDE, SHARED).is_ok();
                    (shared, ask(OUTSIDE.parse().unwrap(), 5432).is_ok())
                })
            };
            assert_eq!(both(), (true, true));
            sh("iptables -P FORWARD DROP");
            assert_eq!(both(), (false, false), "not as with ports that a plugin publishes");
            // As docs/networking.md says.
            sh("iptables -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT");
            assert_eq!(both(), (true, true));
        });
    });
}

/// A network whose pods have addresses of both families.
const DUAL: &str = r#"{
    "cniVersion": "1.0.0", "name": "dual",
    "plugins": [
        {"type": "bridge", "bridge": "dual0", "isGateway": true, "ipMasq": true,
         "hairpinMode": true, "ipam": {
            "type": "host-local", "dataDir": "DIR/network/ipam",
            "ranges": [[{"subnet": "10.90.0.0/24"}], [{"subnet": "fd90::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
        {"type": "portmap", "capabilities": {"portMappings": true}}
    ]}"#;

#[test]
fn pods_with_an_ipv6_address_are_reached_by_it() {
    on_a_host(|host| {
        let mut config = host.config.clone();
        let list = host.path("dual.conflist");
        fs::write(&list, DUAL.replace("DIR", &host.config.runtime_dir.display().to_string()))
            .unwrap();
        config.cni.conflist = Some(list);
        let far = Machine::plug_in();
        let netns = far.netns.display();
        sh(&format!(
            "ip -6 addr add fd01::1/64 dev outside nodad
             nsenter --net={netns} ip -6 addr add fd01::2/64 dev inside nodad"
        ));
        let networks = Networks::new(&config);
        wait(async {
            let mut servers = Vec::new();
            for index in 0..2 {
                servers.push(Server::start(&networks, &replica_with_both(index)).await);
            }
            networks.share(&traffic(&servers)).await.unwrap();
            let even = BTreeMap::from(["web.0", "web.1"].map(|n| (n.to_owned(), 4)));
            let check = |(counts, seen), expected: &str| {
                assert_eq!((&counts, seen), (&even, expected.to_owned()));
            };
            check(inside(&far.netns, || ask_often("fd01::1", 8)), "fd01::2");
            check(inside(&far.netns, || ask_often(OUTSIDE, 8)), FAR);
            check(ask_often("fd01::1", 8), "fd01::1");
            check(ask_often(LOOPBACK, 8), "10.90.0.1");
            check(inside(servers[0].netns(), || ask_often("fd90::1", 8)), "fd90::1");
            // The kernel lets no connection out of there.
            is_refused("::1");
            let sender = Sender::at(&far.netns, "fd01::1");
            let first = sender.ask().unwrap();
            assert_eq!(first.1, "fd01::2");
            let at = servers.iter().position(|server| server.replica.to_string() == first.0);
            networks.withdraw(&servers[at.unwrap()].replica).await.unwrap();
            assert_ne!(sender.ask().unwrap().0, first.0);
            for server in &servers {
                networks.withdraw(&server.replica).await.unwrap();
            }
            inside(&far.netns, || is_refused("fd01::1"));
            assert_eq!(sh("nft list tables | grep coracle").lines().count(), 2);
            for server in &servers {
                networks.remove(&server.replica).await.unwrap();
            }
            networks.share(&Traffic::default()).await.unwrap();
            assert_eq!(sh("nft list tables | grep coracle || true"), "");
        });
    });
}

#[test]
fn nobody_else_gets_to_what_listens_on_the_gateways_loopback() {
    on_a_host(|host| {
        let far = Machine::plug_in();
        let networks = host.networks();
        wait(async {
            let server = Server::start(&networks, &web(0, http())).await;
            networks.share(&traffic([&server])).await.unwrap();
            let listener = std::net::TcpListener::bind((LOOPBACK, 70)).unwrap();
            // A neighbour that sends what is for 127.0.0.1 over the cable.
            for (netns, via) in [(&*far.netns, OUTSIDE), (server.netns(), GATEWAY)] {
                let netns = netns.display();
                sh(&format!(
                    "nsenter --net={netns} sh -euc 'ip rule add pref 100 lookup local
                         ip rule del pref 0; ip rule add pref 10 to 127.0.0.1 dport 70 lookup 77
                         ip route add 127.0.0.1 via {via} table 77
                         for conf in /proc/sys/net/ipv4/conf/*/; do
                             echo 1 >$conf/route_localnet; echo 0 >$conf/rp_filter
                         done'"
                ));
            }
            listener.set_nonblocking(true).unwrap();
            for netns in [&*far.netns, server.netns()] {
                let sent = || {
                    sh(&format!(
                        "nsenter --net={} ip -s link show | grep -A1 TX: | tr -s ' ' | cut -d' ' -f3",
                        netns.display()
                    ))
                };
                let before = sent();
                inside(netns, || {
                    let to = (LOOPBACK.parse::<std::net::IpAddr>().unwrap(), 70).into();
                    let limit = std::time::Duration::from_millis(300);
                    std::net::TcpStream::connect_timeout(&to, limit).unwrap_err();
                });
                assert_ne!(sent(), before, "nothing was sent");
            }
            assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        });
    });
}

/// A second agent on the same machine, for everything that must be its own.
fn second_agent(host: &Host) -> Networks {
    let mut config = host.config.clone();
    config.runtime_dir = host.path("second");
    config.cni.bridge = "second0".to_owned().try_into().unwrap();
    config.cni.subnet = "10.89.0.0/24".to_owned().try_into().unwrap();
    fs::create_dir_all(&config.runtime_dir).unwrap();
    Networks::new(&config)
}

#[test]
fn two_agents_leave_each_other_alone() {
    on_a_host(|host| {
        let before = host.used();
        let (first, second) = (host.networks(), second_agent(host));
        wait(async {
            let one = Server::start(&first, &web(0, http())).await;
            first.share(&traffic([&one])).await.unwrap();
            let ours = sh("nft list tables | grep coracle");
            let other = Server::start(&second, &web(7, port(80, 9090, Protocol::Tcp))).await;
            let mut theirs = traffic([&other]);
            theirs.0.iter_mut().for_each(|port| port.host = 9090);
            second.share(&theirs).await.unwrap();
            assert_eq!(sh("nft list tables | grep coracle").lines().count(), 2);
            assert_eq!(ask_once(LOOPBACK, SHARED).unwrap().0, "web.0");
            assert_eq!(ask_once(LOOPBACK, 9090).unwrap().0, "web.7");
            // A pod of one agent's reaches those of the other.
            assert_eq!(inside(one.netns(), || ask_once(GATEWAY, 9090)).unwrap().0, "web.7");
            second.remove(&other.replica).await.unwrap();
            second.share(&Traffic::default()).await.unwrap();
            assert_eq!(sh("nft list tables | grep coracle"), ours);
            first.remove(&one.replica).await.unwrap();
            first.share(&Traffic::default()).await.unwrap();
        });
        fs::remove_dir_all(host.path("second")).unwrap();
        host.comes_back_to(&before, "all removed");
    });
}

#[test]
fn an_agent_that_does_not_know_yet_withdraws_nobody() {
    on_a_host(|host| {
        wait(async {
            let networks = host.networks();
            let server = Server::start(&networks, &web(0, http())).await;
            // Nobody has shared anything out.
            host.networks().withdraw(&server.replica).await.unwrap();
            networks.share(&traffic([&server])).await.unwrap();
            let again = host.networks();
            let error = again.withdraw(&server.replica).await.unwrap_err();
            assert!(matches!(error, NetworkError::NotShared { .. }), "{error}");
            assert_eq!(ask_once(LOOPBACK, SHARED).unwrap().0, "web.0");
            // It is known all the same who is to get no more.
            again.share(&traffic([&server])).await.unwrap();
            is_refused(LOOPBACK);
            // It may be told meanwhile.
            networks.share(&traffic([&server])).await.unwrap();
            let again = host.networks();
            let (withdrawing, replica) = (again.clone(), server.replica.clone());
            let withdrawn = tokio::spawn(async move { withdrawing.withdraw(&replica).await });
            tokio::task::yield_now().await;
            again.share(&traffic([&server])).await.unwrap();
            withdrawn.await.unwrap().unwrap();
            is_refused(LOOPBACK);
            // A container of it is started again.
            again.ensure(&web(0, http())).await.unwrap();
            is_refused(LOOPBACK);
            again.share(&traffic([&server])).await.unwrap();
            assert_eq!(ask_once(LOOPBACK, SHARED).unwrap().0, "web.0");
        });
    });
}

/// Puts something else in the place of the program that changes rules.
fn replace_nft(with: &Path) {
    sh(&format!("mount --bind {} $(readlink -f /usr/sbin/nft)", with.display()));
}

#[test]
fn a_program_that_is_missing_or_fails_changes_nothing_and_is_named() {
    on_a_host(|host| {
        wait(async {
            let networks = host.networks();
            let one = Server::start(&networks, &web(0, http())).await;
            let two = Server::start(&networks, &web(1, http())).await;
            networks.share(&traffic([&one])).await.unwrap();
            replace_nft(Path::new("/dev/null"));
            let error = networks.share(&traffic([&two])).await.unwrap_err();
            assert!(error.to_string().contains("nftables"), "{error}");
            assert_eq!(error.retry(), Retry::Rarely);
            assert_eq!(ask_once(LOOPBACK, SHARED).unwrap().0, "web.0");
            let broken = host.path("nft");
            fs::write(&broken, "#!/bin/sh\necho no such thing >&2\nexit 1\n").unwrap();
            sh(&format!("chmod 755 {}", broken.display()));
            replace_nft(&broken);
            let error = networks.share(&traffic([&two])).await.unwrap_err();
            assert!(error.to_string().contains("no such thing"), "{error}");
            assert_eq!(error.retry(), Retry::Backoff);
            // Nothing is removed that connections still go to.
            networks.remove(&one.replica).await.unwrap_err();
            assert_eq!(ask_once(LOOPBACK, SHARED).unwrap().0, "web.0");
            sh("umount /usr/sbin/nft; umount /usr/sbin/nft");
            networks.remove(&one.replica).await.unwrap();
            assert_eq!(ask_once(LOOPBACK, SHARED).unwrap().0, "web.1");
        });
    });
    on_a_host(|host| {
        replace_nft(Path::new("/dev/null"));
        wait(async {
            // Where nothing is shared out, nothing is missing.
            let networks = host.networks();
            networks.share(&Traffic::default()).await.unwrap();
            // And whoever shares nothing is stopped all the same.
            let web = Server::start(&networks, &web(0, http())).await;
            let other = request("other", Network::Pod);
            networks.ensure(&other).await.unwrap();
            networks.share(&traffic([&web])).await.unwrap_err();
            networks.withdraw(&other.replica).await.unwrap();
            networks.remove(&other.replica).await.unwrap();
            networks.withdraw(&web.replica).await.unwrap();
            networks.remove(&web.replica).await.unwrap();
        });
    });
}
