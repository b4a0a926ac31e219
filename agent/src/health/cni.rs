//! What pods with a network of their own need: the plugins that the configured network names
//! (<https://www.cni.dev/plugins/current/>), the `iptables` that some of them call, and the `nft`
//! that shares ports out over replicas.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::{Finding, list};
use crate::config::Config;
use crate::conflist::Conflist;

const NAME: &str = "cni";

/// Where the agent lets plugins look for programs.
const PROGRAM_DIRS: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

const REST: &str = "workloads run all the same, but for those that need a network of their own";

pub(super) fn look(config: &Config) -> Finding {
    look_with(config, &PROGRAM_DIRS.map(Path::new))
}

fn look_with(config: &Config, program_dirs: &[&Path]) -> Finding {
    let network = match Conflist::load(config) {
        Ok(network) => network,
        Err(error) => {
            let cause = std::error::Error::source(&error);
            let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
            return Finding::bad(NAME, "network-invalid", format!("{error}{cause}; {REST}"));
        }
    };
    let dirs = &config.cni.plugin_dirs;
    let there = |name: &String| dirs.iter().any(|dir| is_program(&dir.join(name)));
    let programs = network.programs();
    let missing: Vec<_> = programs.iter().filter(|name| !there(name)).map(String::as_str).collect();
    if !missing.is_empty() {
        let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        let (missing, dirs) = (list(&missing), dirs.join(", "));
        let message = format!("network plugins are missing ({missing}) in {dirs}: {REST}");
        return Finding::bad(NAME, "plugins-missing", message);
    }
    let iptables = || program_dirs.iter().any(|dir| is_program(&dir.join("iptables")));
    if network.needs_iptables() && !iptables() {
        let message = format!("the network plugins call iptables, which is missing: {REST}");
        return Finding::bad(NAME, "iptables-missing", message);
    }
    // Most gateways never need it.
    if !program_dirs.iter().any(|dir| is_program(&dir.join("nft"))) {
        let message = "the network plugins are there; nft (package nftables) is missing, without \
                       which no port is shared out over replicas";
        return Finding::good(NAME, "nft-missing", message);
    }
    Finding::good(NAME, "complete", "the network plugins are there")
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn install(path: &Path) {
        fs::write(path, "").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn plugins_may_be_spread_over_directories_and_must_be_programs() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut config = Config::default();
        config.cni.plugin_dirs = vec![one.path().to_owned(), two.path().to_owned()];
        let look = |config: &Config| look_with(config, &[one.path()]);
        for (at, name) in ["bridge", "firewall", "host-local", "portmap"].into_iter().enumerate() {
            let path = config.cni.plugin_dirs[at % 2].join(name);
            fs::write(&path, "").unwrap();
            let finding = look(&config);
            assert!(!finding.good && finding.message.contains(name), "{finding:?}");
            install(&path);
        }
        assert_eq!(look(&config).reason, "iptables-missing");
        install(&one.path().join("iptables"));
        let finding = look(&config);
        assert!(finding.good && finding.reason == "nft-missing", "{finding:?}");
        install(&one.path().join("nft"));
        assert_eq!(look(&config).reason, "complete");
    }

    #[test]
    fn another_network_needs_other_plugins() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        let path = dir.path().join("pods.conflist");
        config.cni.plugin_dirs = vec![dir.path().to_owned()];
        config.cni.conflist = Some(path.clone());
        assert_eq!(look_with(&config, &[]).reason, "network-invalid");
        let text = r#"{"cniVersion": "1.0.0", "name": "n",
            "plugins": [{"type": "macvlan", "ipam": {"type": "dhcp"}}]}"#;
        fs::write(&path, text).unwrap();
        let finding = look_with(&config, &[]);
        assert!(finding.message.contains("dhcp, macvlan"), "{finding:?}");
        for name in ["dhcp", "macvlan"] {
            install(&dir.path().join(name));
        }
        assert!(look_with(&config, &[]).good);
    }
}
