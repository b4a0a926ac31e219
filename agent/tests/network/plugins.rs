//! Plugins that are missing, old, slow, or break the specification: all written here, as scripts.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use coracle::config::Config;
use coracle::network::{NetworkError, Networks};
use coracle_core::backoff::Retry;
use coracle_core::desired::{Network, Protocol};

use super::host::{Host, on_a_host, port, request, wait};

/// A configuration whose network has one plugin, `fake`, with this body for ADD.
fn fake(host: &Host, versions: &str, add: &str) -> Config {
    let dir = host.path("fake");
    fs::create_dir_all(&dir).unwrap();
    let script = format!(
        "#!/bin/sh\nread -r input\necho \"$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $input\" >>{0}/calls\n\
         case $CNI_COMMAND in\nVERSION) echo '{{\"cniVersion\": \"1.0.0\", \"supportedVersions\": {versions}}}' ;;\n\
         ADD) {add} ;;\nesac\n",
        dir.display()
    );
    fs::write(dir.join("fake"), script).unwrap();
    fs::set_permissions(dir.join("fake"), fs::Permissions::from_mode(0o755)).unwrap();
    let list = r#"{"cniVersion": "1.0.0", "name": "test", "plugins": [{"type": "fake", "x": 1}]}"#;
    fs::write(dir.join("test.conflist"), list).unwrap();
    let mut config = host.config.clone();
    config.cni.plugin_dirs = vec![dir.clone()];
    config.cni.conflist = Some(dir.join("test.conflist"));
    config
}

const ALL: &str = r#"["0.4.0", "1.0.0"]"#;

fn refusal(host: &Host, config: &Config) -> NetworkError {
    let networks = Networks::new(config);
    let error = wait(networks.ensure(&request("web", Network::Pod))).unwrap_err();
    assert!(networks.list().unwrap().is_empty(), "{error}");
    assert!(!host.path("netns/web.0").exists(), "{error}");
    error
}

#[test]
fn a_plugin_is_called_as_the_specification_says() {
    on_a_host(|host| {
        let result = r#"echo '{"cniVersion": "0.4.0", "ips": [{"address": "192.0.2.9/24"}]}'"#;
        let config = fake(host, r#"["0.4.0"]"#, result);
        let networks = Networks::new(&config);
        let web = request("web", Network::Pod);
        let pod = wait(networks.ensure(&web)).unwrap();
        assert_eq!(pod.address.unwrap().to_string(), "192.0.2.9");
        wait(networks.remove(&web.replica)).unwrap();
        let calls = fs::read_to_string(host.path("fake/calls")).unwrap();
        let calls: Vec<_> = calls.lines().collect();
        assert_eq!(calls.len(), 3, "{calls:?}");
        assert!(calls[0].starts_with("VERSION "), "{calls:?}");
        assert!(calls[1].starts_with("ADD coracle-") && calls[1].contains(".web.0 eth0 {"));
        let input = |call: &str| -> serde_json::Value {
            serde_json::from_str(&call[call.find('{').unwrap()..]).unwrap()
        };
        let added = input(calls[1]);
        assert_eq!((&added["cniVersion"], &added["name"]), (&"0.4.0".into(), &"test".into()));
        assert_eq!((&added["x"], &added["prevResult"]), (&1.into(), &serde_json::Value::Null));
        assert!(calls[2].starts_with("DEL "));
        assert_eq!(input(calls[2])["prevResult"]["ips"][0]["address"], "192.0.2.9/24");
    });
}

#[test]
fn what_a_plugin_says_of_its_failure_is_passed_on() {
    on_a_host(|host| {
        let add = r#"echo '{"code": 11, "msg": "no address", "details": "all taken"}'; exit 1"#;
        let error = refusal(host, &fake(host, ALL, add));
        let text = error.to_string();
        for part in ["fake", "ADD", "web.0", "no address: all taken", "11"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(error.retry(), Retry::Backoff);
        let add = r#"echo '{"code": 7, "msg": "no subnet"}'; exit 1"#;
        assert_eq!(refusal(host, &fake(host, ALL, add)).retry(), Retry::Rarely);
    });
}

#[test]
fn a_plugin_that_breaks_the_specification_is_named() {
    on_a_host(|host| {
        for (add, said) in [
            ("echo hello", "no result"),
            ("echo '[]'", "no result"),
            (":", "no result"),
            ("echo oh >&2; exit 3", "oh"),
            ("kill -9 $$", "signal: 9"),
            ("while :; do echo 0123456789; done", "more than 65536 bytes"),
        ] {
            let error = refusal(host, &fake(host, ALL, add)).to_string();
            assert!(error.contains("fake") && error.contains(said), "{add}: {error}");
        }
    });
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_made() {
    on_a_host(|host| {
        let config = fake(host, r#"["0.2.0"]"#, ":");
        let error = refusal(host, &config);
        assert!(error.to_string().contains("fake 0.2.0"), "{error}");
        assert_eq!(error.retry(), Retry::Rarely);
        let config = fake(host, "7", ":");
        assert!(refusal(host, &config).to_string().contains("which versions"));
        fs::remove_file(host.path("fake/fake")).unwrap();
        let error = refusal(host, &config);
        assert!(error.to_string().contains("fake is not in"), "{error}");
        assert_eq!(error.retry(), Retry::Rarely);
        fs::write(host.path("fake/test.conflist"), "{}").unwrap();
        let error = refusal(host, &config);
        assert!(error.to_string().contains("test.conflist"), "{error}");
        let mut web = request("web", Network::Pod);
        web.ports = vec![port(80, 8080, Protocol::Tcp)];
        let config = fake(host, ALL, "echo '{}'");
        let error = wait(Networks::new(&config).ensure(&web)).unwrap_err();
        assert!(error.to_string().contains("portMappings"), "{error}");
        assert!(!host.path("network/web.0.json").exists());
    });
}

#[test]
fn a_host_port_that_is_wrong_leaves_nothing_behind() {
    on_a_host(|host| {
        let before = host.used();
        let mut web = request("web", Network::Pod);
        web.ports = vec![port(80, 0, Protocol::Tcp)];
        let error = wait(host.networks().ensure(&web)).unwrap_err();
        assert!(error.to_string().contains("portmap"), "{error}");
        host.comes_back_to(&before, "after the failure");
    });
}
