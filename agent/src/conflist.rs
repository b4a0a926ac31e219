//! The network that pods are attached to: a network configuration list of CNI, the agent's own or
//! the one that the configuration names
//! (<https://www.cni.dev/docs/spec/#section-1-network-configuration-format>).
//!
//! In: the configuration. Out: a checked list. Nothing is called here.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::config::Config;

/// Longest list, in bytes.
const MAX_BYTES: u64 = 256 * 1024;

/// Versions of the specification that we speak, oldest first.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A network and the plugins that attach to it, in their order.
#[derive(Clone, Debug, PartialEq)]
pub struct Conflist {
    /// The network's name.
    pub name: String,
    /// The versions of the specification that it may be read by; not empty, from [`VERSIONS`], oldest
    /// first.
    pub versions: Vec<&'static str>,
    /// Each plugin's own configuration; `type` is the name of its program.
    pub plugins: Vec<Map<String, Value>>,
}

/// The list cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConflistError {
    /// The file cannot be read.
    #[error("cannot read the network configuration {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what the specification says, or more than can be done.
    #[error("network configuration {path} is not valid: {message}")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

impl Conflist {
    /// The list that is configured, read anew.
    ///
    /// # Errors
    /// There is a file and it cannot be used.
    pub fn load(config: &Config) -> Result<Self, ConflistError> {
        let Some(path) = &config.cni.conflist else { return Ok(Self::own(config)) };
        let text =
            read(path).map_err(|source| ConflistError::Read { path: path.into(), source })?;
        Self::parse(&text).map_err(|message| ConflistError::Invalid { path: path.into(), message })
    }

    /// A bridge with addresses from `cni.subnet`, masquerading, and published ports. Its addresses
    /// are written down in the runtime directory, so that none stays taken after a reboot.
    pub fn own(config: &Config) -> Self {
        let list = json!({
            "cniVersion": "1.0.0",
            "name": "coracle",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": config.cni.bridge.as_str(),
                    "isGateway": true,
                    "ipMasq": true,
                    "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": config.runtime_dir.join("network/ipam"),
                        "ranges": [[{ "subnet": config.cni.subnet.to_string() }]],
                        "routes": [{ "dst": "0.0.0.0/0" }],
                    },
                },
                { "type": "portmap", "capabilities": { "portMappings": true } },
                { "type": "firewall" },
            ],
        });
        Self::parse(&list.to_string()).expect("the agent's own list is valid")
    }

    /// Checks a list.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let list: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let name = list["name"].as_str().ok_or("name is missing")?;
        if !is_plain_name(name) {
            return Err(format!(
                "name {name:?} must be letters, digits, dots, hyphens and underscores, the first \
                 a letter or a digit"
            ));
        }
        let versions = versions(&list)?;
        let plugins = list["plugins"].as_array().ok_or("plugins is missing")?;
        if plugins.is_empty() {
            return Err("plugins is empty".into());
        }
        let plugins = plugins.iter().enumerate().map(|(at, plugin)| {
            let plugin = plugin.as_object().ok_or_else(|| format!("plugins[{at}] is no object"))?;
            let kinds = [plugin.get("type"), plugin.get("ipam").and_then(|ipam| ipam.get("type"))];
            if kinds[0].is_none() {
                return Err(format!("plugins[{at}].type is missing"));
            }
            // What is looked for in the directories of plugins must not lead out of them.
            match kinds.into_iter().flatten().find(|kind| !kind.as_str().is_some_and(is_plain_name))
            {
                Some(kind) => Err(format!("plugins[{at}]: {kind} is no name of a plugin")),
                None => Ok(plugin.clone()),
            }
        });
        Ok(Self { name: name.into(), versions, plugins: plugins.collect::<Result<_, _>>()? })
    }

    /// Names of the programs that the list calls, also those that its plugins call for addresses.
    pub fn programs(&self) -> BTreeSet<String> {
        let ipam = |plugin: &Map<String, Value>| {
            Some(plugin.get("ipam")?.get("type")?.as_str()?.to_owned())
        };
        self.plugins
            .iter()
            .flat_map(|plugin| [Some(kind(plugin).to_owned()), ipam(plugin)])
            .flatten()
            .collect()
    }

    /// Whether plugins of this list call `iptables`, as far as is known of them.
    pub fn needs_iptables(&self) -> bool {
        self.plugins.iter().any(|plugin| match kind(plugin) {
            "portmap" => plugin.get("backend").is_none_or(|backend| backend == "iptables"),
            "firewall" => plugin.get("backend").is_none_or(|backend| backend == "iptables"),
            "bridge" | "ptp" => {
                plugin.get("ipMasq").is_some_and(|masquerade| masquerade == true)
                    && plugin.get("ipMasqBackend").is_none_or(|backend| backend == "iptables")
            }
            _ => false,
        })
    }
}

/// The name of a plugin's program.
pub fn kind(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// `cniVersions` of specification 1.1, or everything that we speak up to `cniVersion`: what was
/// added since to the parts we use, plugins of older versions do not need.
fn versions(list: &Value) -> Result<Vec<&'static str>, String> {
    let newest = list.get("cniVersion").and_then(Value::as_str).ok_or("cniVersion is missing")?;
    let number = |text: &str| -> Option<Vec<u32>> {
        text.split('.').map(|part| part.parse().ok()).collect()
    };
    let limit = number(newest).ok_or_else(|| format!("cniVersion {newest:?} is no version"))?;
    let listed = list.get("cniVersions").and_then(Value::as_array);
    let may = |version: &&str| match listed {
        Some(listed) => *version == newest || listed.iter().any(|one| one == version),
        None => number(version).is_some_and(|number| number <= limit),
    };
    let versions: Vec<_> = VERSIONS.into_iter().filter(may).collect();
    if versions.is_empty() {
        return Err(format!("it is of version {newest}; this agent knows {}", VERSIONS.join(", ")));
    }
    Ok(versions)
}

/// As the specification has it for names of networks; never `.` or `..`.
fn is_plain_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    name.len() <= 64
        && name.bytes().all(plain)
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let length = File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if length as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("it is larger than {MAX_BYTES} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_list_needs_four_plugins_and_iptables() {
        let own = Conflist::own(&Config::default());
        let programs: Vec<_> = own.programs().into_iter().collect();
        assert_eq!(programs, ["bridge", "firewall", "host-local", "portmap"]);
        assert!(own.needs_iptables());
        assert_eq!(own.versions.last(), Some(&"1.0.0"));
        assert_eq!(own.plugins[0]["ipam"]["dataDir"], "/run/coracle/network/ipam");
    }

    #[test]
    fn a_list_says_which_versions_it_may_be_read_by() {
        let versions = |head: &str| {
            let text = format!(r#"{{{head}, "name": "n", "plugins": [{{"type": "ptp"}}]}}"#);
            Conflist::parse(&text).map(|list| list.versions)
        };
        assert_eq!(versions(r#""cniVersion": "0.4.0""#).unwrap(), ["0.3.0", "0.3.1", "0.4.0"]);
        assert_eq!(versions(r#""cniVersion": "2.0.0""#).unwrap(), VERSIONS);
        let listed = r#""cniVersion": "1.1.0", "cniVersions": ["0.4.0", "9.0.0"]"#;
        assert_eq!(versions(listed).unwrap(), ["0.4.0", "1.1.0"]);
        assert!(versions(r#""cniVersion": "0.2.0""#).unwrap_err().contains("0.2.0"));
        assert!(versions(r#""cniVersion": "new""#).unwrap_err().contains("no version"));
    }

    #[test]
    fn lists_that_cannot_be_used_are_refused_with_the_reason() {
        let cases = [
            ("[]", "name is missing"),
            (r#"{"name": "a/b"}"#, "a/b"),
            (r#"{"name": "n"}"#, "cniVersion is missing"),
            (r#"{"name": "n", "cniVersion": "1.0.0"}"#, "plugins is missing"),
            (r#"{"name": "n", "cniVersion": "1.0.0", "plugins": []}"#, "plugins is empty"),
            (r#"{"name": "n", "cniVersion": "1.0.0", "plugins": [1]}"#, "plugins[0] is no object"),
            (r#"{"name": "n", "cniVersion": "1.0.0", "plugins": [{}]}"#, "plugins[0].type"),
            (
                r#"{"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "../../bin/sh"}]}"#,
                "no name of a plugin",
            ),
            (
                r#"{"name": "n", "cniVersion": "1.0.0",
                    "plugins": [{"type": "ptp", "ipam": {"type": ".."}}]}"#,
                "no name of a plugin",
            ),
        ];
        for (text, reason) in cases {
            let error = Conflist::parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let mut config = Config::default();
        config.cni.conflist = Some("/nowhere/pods.conflist".into());
        let error = Conflist::load(&config).unwrap_err();
        assert!(error.to_string().contains("/nowhere/pods.conflist"), "{error}");
    }
}
