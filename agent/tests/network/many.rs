//! Many pods at once, and how long it takes.

use std::collections::BTreeSet;

use coracle_core::desired::{Network, Protocol};

use super::host::{on_a_host, port, replica, request, sh, wait};

#[test]
fn eight_pods_at_once_get_what_they_need() {
    on_a_host(|host| {
        let before = host.used();
        // As after a reboot: not even the shared chains are there.
        sh("iptables -t nat -F; iptables -t nat -X; iptables -F; iptables -X");
        let networks = host.networks();
        let requests: Vec<_> = (0..8)
            .map(|index| {
                let mut request = request("web", Network::Pod);
                request.replica = replica("web", index);
                request.host_name = format!("web-{index}");
                request.ports = vec![port(80, 8000 + u16::try_from(index).unwrap(), Protocol::Tcp)];
                request
            })
            .collect();
        wait(async {
            let tasks: Vec<_> = requests
                .iter()
                .map(|request| {
                    let (networks, request) = (networks.clone(), request.clone());
                    tokio::spawn(async move { networks.ensure(&request).await.unwrap() })
                })
                .collect();
            let mut addresses = BTreeSet::new();
            for task in tasks {
                addresses.insert(task.await.unwrap().address.unwrap());
            }
            assert_eq!(addresses.len(), 8);
            let rules = sh("iptables-save");
            assert_eq!(rules.matches("-A CNI-FORWARD -s 10.88").count(), 8, "{rules}");
            assert_eq!(rules.matches("-A PREROUTING").count(), 1, "{rules}");
            assert_eq!(rules.matches("-j CNI-FORWARD").count(), 1, "{rules}");
            let tasks: Vec<_> = requests
                .iter()
                .map(|request| {
                    let (networks, replica) = (networks.clone(), request.replica.clone());
                    tokio::spawn(async move { networks.remove(&replica).await.unwrap() })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
        });
        host.comes_back_to(&before, "eight removed at once");
    });
}
