//! Pods find each other.

use std::fs;
use std::os::unix::fs::MetadataExt;

use coracle_core::desired::Network;

use super::host::{names, on_a_host, replica, request, sh, wait};

#[test]
fn pods_find_each_other_by_name_as_they_come_and_go() {
    on_a_host(|host| {
        let networks = host.networks();
        wait(async {
            networks.sweep().await;
            let web = networks.ensure(&request("web", Network::Pod)).await.unwrap();
            let before = fs::metadata(&web.hosts).unwrap().ino();
            assert_eq!(names(&web.hosts)["web"], ["10.88.0.2"]);
            let db = networks.ensure(&request("db", Network::Pod)).await.unwrap();
            let broker = networks.ensure(&request("broker", Network::Host)).await.unwrap();
            assert_eq!((&broker.netns, broker.address), (&None, None));
            for pod in [&web, &db] {
                let names = names(&pod.hosts);
                assert_eq!(names["web"], ["10.88.0.2"]);
                assert_eq!(names["db-0"], ["10.88.0.3"]);
                assert_eq!(names["broker"], ["10.88.0.1"]);
            }
            assert_eq!(names(&broker.hosts)["db"], ["10.88.0.3"]);
            assert_eq!(names(&broker.hosts)["broker-0"], ["127.0.0.1"]);
            // As in a container: the file is mounted, and changes below the mount.
            let resolved = sh(&format!(
                "nsenter --net={} unshare --mount sh -euc '
                     mount --bind {} /etc/hosts; getent ahostsv4 db | head -n 1; getent hosts broker'",
                web.netns.as_ref().unwrap().display(),
                web.hosts.display()
            ));
            assert!(resolved.contains("10.88.0.3") && resolved.contains("10.88.0.1"), "{resolved}");
            networks.remove(&replica("db", 0)).await.unwrap();
            assert!(!names(&web.hosts).contains_key("db"));
            assert_eq!(fs::metadata(&web.hosts).unwrap().ino(), before, "another file");
            assert_eq!(fs::metadata(&web.hosts).unwrap().mode() & 0o777, 0o644);
        });
    });
}

#[test]
fn name_servers_are_those_of_the_configuration() {
    on_a_host(|host| {
        let mut config = host.config.clone();
        config.cni.dns = vec!["192.0.2.53".parse().unwrap()];
        let networks = coracle::network::Networks::new(&config);
        let pod = wait(networks.ensure(&request("web", Network::Pod))).unwrap();
        let text = fs::read_to_string(pod.resolv_conf.unwrap()).unwrap();
        assert_eq!(text, "nameserver 192.0.2.53\n");
    });
}
