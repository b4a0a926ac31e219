//! What is made is taken away again, and what is made already is not made again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use coracle::network::Networks;
use coracle_core::desired::{DefinitionHash, Network, Protocol};

use super::host::{on_a_host, port, replica, request, sh, wait};

#[test]
fn nothing_is_left_but_what_plugins_share() {
    on_a_host(|host| {
        let before = host.state();
        let after = host.used();
        let shared = |line: &&String| {
            let rule = line.contains("tables: ");
            let chain =
                ["CNI-FORWARD", "CNI-ADMIN", "CNI-HOSTPORT-"].iter().any(|c| line.contains(c));
            let builtin =
                rule && [":", "*", "COMMIT"].iter().any(|s| line.contains(&format!(": {s}")));
            let forwarding =
                line.starts_with("ip_forward") || line.starts_with("conf/all/forwarding");
            (rule && chain) || builtin || forwarding || line.ends_with("/network/boot-id")
        };
        let left: Vec<_> =
            after.iter().filter(|line| !before.contains(line)).filter(|l| !shared(l)).collect();
        assert!(left.is_empty(), "{left:#?}");
        assert_eq!(host.used(), after, "a second time something more is left");
    });
}

#[test]
fn the_same_is_made_once_and_something_else_anew() {
    on_a_host(|host| {
        let before = host.used();
        let networks = host.networks();
        wait(async {
            let mut web = request("web", Network::Pod);
            web.ports = vec![port(80, 8080, Protocol::Tcp)];
            let first = networks.ensure(&web).await.unwrap();
            let number = namespace_of(&first);
            assert_eq!(networks.ensure(&web).await.unwrap(), first);
            // An agent that was started anew finds it whole.
            let again = host.networks();
            again.sweep().await;
            assert_eq!(again.list().unwrap()[&web.replica], web.definition);
            assert_eq!(again.ensure(&web).await.unwrap(), first);
            assert_eq!(namespace_of(&first), number);
            web.definition = DefinitionHash::from_label("4567");
            web.kind = Network::None;
            web.ports.clear();
            let other = again.ensure(&web).await.unwrap();
            assert_ne!(namespace_of(&other), number);
            assert_eq!(again.list().unwrap()[&web.replica], web.definition);
            // Taken away by somebody else.
            sh(&format!("umount {}", other.netns.as_ref().unwrap().display()));
            again.ensure(&web).await.unwrap();
            again.remove(&web.replica).await.unwrap();
            again.remove(&web.replica).await.unwrap();
            assert!(again.list().unwrap().is_empty());
        });
        host.comes_back_to(&before, "all removed");
    });
}

fn namespace_of(pod: &coracle::network::PodNetwork) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&fs::metadata(pod.netns.as_ref().unwrap()).unwrap())
}

#[test]
fn what_no_record_names_is_removed_at_start_and_nothing_else() {
    on_a_host(|host| {
        let before = host.used();
        wait(async {
            let networks = host.networks();
            let mut kept = request("kept", Network::Pod);
            kept.ports = vec![port(80, 8081, Protocol::Tcp)];
            networks.ensure(&kept).await.unwrap();
            let with_kept = host.state();
            for name in ["lost", "torn"] {
                let mut lost = request(name, Network::Pod);
                lost.ports = vec![port(80, 8082 + u16::from(name == "torn"), Protocol::Udp)];
                networks.ensure(&lost).await.unwrap();
            }
            fs::remove_file(host.path("network/lost.0.json")).unwrap();
            fs::write(host.path("network/torn.0.json"), "{\"state\":").unwrap();
            // What belongs to others.
            sh("iptables -t nat -N CNI-0123456789abcdef01234567
                iptables -t nat -A POSTROUTING -s 10.4.0.2 -m comment \
                    --comment 'name: \"podman\" id: \"0123\"' -j CNI-0123456789abcdef01234567
                ip link add other type bridge; ip link add port type veth peer name trop
                ip link set port master other");
            let foreign = |lines: Vec<String>| -> Vec<String> {
                lines
                    .into_iter()
                    .filter(|l| {
                        ["0123456789abc", "link: port", "link: trop", "link: other"]
                            .iter()
                            .any(|mark| l.contains(mark))
                    })
                    .collect()
            };
            let theirs = foreign(host.state());
            host.networks().sweep().await;
            assert_eq!(foreign(host.state()), theirs);
            sh("ip link del other; ip link del port
                iptables -t nat -D POSTROUTING -s 10.4.0.2 -m comment \
                    --comment 'name: \"podman\" id: \"0123\"' -j CNI-0123456789abcdef01234567
                iptables -t nat -X CNI-0123456789abcdef01234567");
            host.comes_back_to(&with_kept, "swept");
            let again = host.networks();
            again.sweep().await;
            again.remove(&kept.replica).await.unwrap();
        });
        host.comes_back_to(&before, "all removed");
    });
}

#[test]
fn a_reboot_frees_every_address() {
    let dir = tempfile::tempdir().unwrap();
    // The same directory on two hosts, one after the other, as if it were kept on a disk.
    let keep = dir.path().join("kept");
    on_a_host(|host| {
        wait(async {
            let networks = host.networks();
            networks.sweep().await;
            for name in ["a", "b", "c"] {
                networks.ensure(&request(name, Network::Pod)).await.unwrap();
            }
        });
        assert_eq!(taken(host), 3);
        // The namespaces themselves nobody can keep.
        let (from, to) = (host.config.runtime_dir.display(), keep.display());
        sh(&format!(
            "mkdir {to}; cd {from}; cp -a network pods {to}; mkdir {to}/netns; touch {to}/netns/a.0"
        ));
    });
    on_a_host(|host| {
        sh(&format!("cp -a {}/. {}", keep.display(), host.config.runtime_dir.display()));
        fs::write(host.path("network/boot-id"), "another").unwrap();
        assert_eq!(taken(host), 3);
        wait(async {
            let networks = host.networks();
            networks.sweep().await;
            assert!(networks.list().unwrap().is_empty());
            assert_eq!(taken(host), 0);
            let left = sh(&format!("find {} -type f", host.config.runtime_dir.display()));
            assert_eq!(left.trim(), host.path("network/boot-id").display().to_string());
            let pod = networks.ensure(&request("a", Network::Pod)).await.unwrap();
            assert_eq!(pod.address.unwrap().to_string(), "10.88.0.2");
        });
    });
}

/// Addresses that host-local holds as given.
fn taken(host: &super::host::Host) -> usize {
    let files = sh(&format!("find {} -name '10.*'", host.path("network").display()));
    files.lines().count()
}

#[test]
fn what_cannot_be_removed_is_told_and_the_rest_is_gone() {
    on_a_host(|host| {
        let before = host.used();
        // The plugins as files of the test's own, so that one can vanish.
        let dir = host.path("plugins");
        sh(&format!("mkdir -p {0}; cp /usr/lib/cni/* {0}", dir.display()));
        let mut config = host.config.clone();
        config.cni.plugin_dirs = vec![dir.clone()];
        let networks = Networks::new(&config);
        wait(async {
            let mut web = request("web", Network::Pod);
            web.ports = vec![port(80, 8080, Protocol::Tcp)];
            networks.ensure(&web).await.unwrap();
            fs::rename(dir.join("portmap"), dir.join("gone")).unwrap();
            script(&dir.join("portmap"), "exit 1");
            let error = networks.remove(&web.replica).await.unwrap_err().to_string();
            assert!(error.contains("web.0") && error.contains("portmap"), "{error}");
            assert!(networks.list().unwrap().contains_key(&replica("web", 0)));
            let rest = host.state();
            assert!(
                !rest.iter().any(|line| line.contains("veth") || line.contains("10.88.0.2")),
                "{rest:#?}"
            );
            fs::rename(dir.join("gone"), dir.join("portmap")).unwrap();
            networks.remove(&web.replica).await.unwrap();
        });
        fs::remove_dir_all(dir).unwrap();
        host.comes_back_to(&before, "removed at the second try");
    });
}

#[test]
fn a_pod_is_removed_although_a_plugin_is_no_longer_there() {
    on_a_host(|host| {
        let before = host.used();
        let dir = host.path("plugins");
        sh(&format!("mkdir -p {0}; cp /usr/lib/cni/* {0}", dir.display()));
        let mut config = host.config.clone();
        config.cni.plugin_dirs = vec![dir.clone()];
        let networks = Networks::new(&config);
        let with_plugins = host.state();
        for plugin in ["portmap", "firewall", "bridge", "host-local"] {
            wait(async {
                let mut web = request("web", Network::Pod);
                web.ports = vec![port(80, 8080, Protocol::Tcp)];
                networks.ensure(&web).await.unwrap();
                let (there, gone) = (dir.join(plugin), host.path("gone"));
                fs::rename(&there, &gone).unwrap();
                networks.remove(&web.replica).await.unwrap();
                assert!(networks.list().unwrap().is_empty());
                fs::rename(gone, there).unwrap();
            });
            host.comes_back_to(&with_plugins, &format!("removed without {plugin}"));
        }
        fs::remove_dir_all(dir).unwrap();
        host.comes_back_to(&before, "all removed");
    });
}

/// Writes a plugin of the test's own.
fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_plugin_that_hangs_holds_up_nobody_but_those_who_need_the_sweep() {
    on_a_host(|host| {
        let before = host.used();
        let dir = host.path("plugins");
        sh(&format!("mkdir -p {0}; cp /usr/lib/cni/* {0}", dir.display()));
        let mut config = host.config.clone();
        config.cni.plugin_dirs = vec![dir.clone()];
        wait(async {
            let networks = Networks::new(&config);
            for name in ["a", "b"] {
                networks.ensure(&request(name, Network::Pod)).await.unwrap();
                let record = host.path(&format!("network/{name}.0.json"));
                let text = fs::read_to_string(&record).unwrap();
                let broken = text.replacen("\"ready\"", "\"making\"", 1);
                assert_ne!(broken, text);
                fs::write(&record, broken).unwrap();
            }
            fs::rename(dir.join("portmap"), dir.join("real")).unwrap();
            // Lets itself be asked only when the test says so.
            let text = "cd DIR; touch called-$CNI_CONTAINERID
                for try in $(seq 200); do [ ! -e go ] || exec ./real; sleep 0.1; done; exit 1";
            script(&dir.join("portmap"), &text.replace("DIR", &dir.display().to_string()));
            let again = Networks::new(&config);
            again.begin_sweep();
            assert_eq!(again.list().unwrap().len(), 2);
            let (ensuring, removing) = (again.clone(), again.clone());
            let c = request("c", Network::None);
            let ensured = tokio::spawn(async move { ensuring.ensure(&c).await });
            let removed = tokio::spawn(async move { removing.remove(&replica("b", 0)).await });
            let called = || sh(&format!("find {} -name 'called-*'", dir.display()));
            for _ in 0..100 {
                if called().lines().count() == 2 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert_eq!(called().lines().count(), 2, "one waits for the other");
            assert!(!ensured.is_finished() && !removed.is_finished());
            assert_eq!(again.list().unwrap().len(), 2);
            fs::write(dir.join("go"), "").unwrap();
            ensured.await.unwrap().unwrap();
            removed.await.unwrap().unwrap();
            let left: Vec<_> = again.list().unwrap().into_keys().collect();
            assert_eq!(left, [replica("c", 0)]);
            again.remove(&replica("c", 0)).await.unwrap();
        });
        fs::remove_dir_all(dir).unwrap();
        host.comes_back_to(&before, "all removed");
    });
}

#[test]
fn a_pod_is_removed_although_somebody_emptied_the_packet_filter() {
    on_a_host(|host| {
        let before = host.used();
        let networks = host.networks();
        wait(async {
            let mut web = request("web", Network::Pod);
            web.ports = vec![port(80, 8080, Protocol::Tcp)];
            networks.ensure(&web).await.unwrap();
            sh("iptables -t nat -F; iptables -t nat -X; iptables -F; iptables -X");
            networks.remove(&web.replica).await.unwrap();
        });
        // The plugins make what they share anew.
        host.used();
        host.comes_back_to(&before, "removed");
    });
}
