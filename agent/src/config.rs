//! The configuration file, TOML: read once at start, refused as a whole if anything in it is wrong.

use std::path::{Path, PathBuf};

use coracle_protocol::GatewayId;
use serde::Deserialize;

/// Where the configuration is looked for if no other place is named.
pub const DEFAULT_PATH: &str = "/etc/coracle/coracle.toml";

/// Everything that is fixed for the life of the process.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which gateway this is.
    pub gateway: GatewayId,
    /// Directory for everything that must survive a reboot.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Signed orders to start from when there are none, such as those baked into an OS image.
    #[serde(default)]
    pub factory_orders: Option<PathBuf>,
    /// Whose orders are obeyed.
    pub trust: TrustConfig,
    /// The container runtime.
    #[serde(default)]
    pub containerd: ContainerdConfig,
    /// The broker. Without it the gateway is run locally, by `coracle apply`.
    #[serde(default)]
    pub link: Option<LinkConfig>,
    /// The local API.
    #[serde(default)]
    pub api: ApiConfig,
    /// Registries that need more than HTTPS with the system's certificates.
    #[serde(default)]
    pub registries: Vec<RegistryConfig>,
}

/// Whose orders are obeyed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustConfig {
    /// Files with Ed25519 public keys, PEM (SubjectPublicKeyInfo). An order needs one good signature.
    pub keys: Vec<PathBuf>,
}

/// The container runtime.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContainerdConfig {
    /// containerd's socket.
    pub address: PathBuf,
    /// containerd namespace of our own.
    pub namespace: String,
    /// Snapshotter for root file systems.
    pub snapshotter: String,
    /// Runtime shim.
    pub runtime: String,
    /// Parent of the workloads' cgroups.
    pub cgroup: String,
}

impl Default for ContainerdConfig {
    fn default() -> Self {
        Self {
            address: "/run/containerd/containerd.sock".into(),
            namespace: "coracle".into(),
            snapshotter: "overlayfs".into(),
            runtime: "io.containerd.runc.v2".into(),
            cgroup: "/coracle".into(),
        }
    }
}

/// The broker, and how to be known there.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkConfig {
    /// Host name or address, as in the broker's certificate.
    pub host: String,
    /// TCP port.
    #[serde(default = "default_mqtt_port")]
    pub port: u16,
    /// File with the certificates of the authorities that vouch for the broker, PEM.
    pub ca: PathBuf,
    /// File with this gateway's certificate chain, PEM.
    pub cert: PathBuf,
    /// File with this gateway's private key, PEM.
    pub key: PathBuf,
    /// Seconds between signs of life on an idle connection.
    #[serde(default = "default_keep_alive")]
    pub keep_alive_seconds: u16,
    /// Seconds that the broker keeps the session after the connection is lost.
    #[serde(default = "default_session_expiry")]
    pub session_expiry_seconds: u32,
    /// Window of the first reconnect delay, in seconds; the delay is drawn evenly from it.
    #[serde(default = "default_reconnect_window")]
    pub reconnect_window_seconds: u32,
}

/// The local API.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApiConfig {
    /// Where its Unix socket is.
    pub socket: PathBuf,
    /// Group whose members may read; root and the agent's own user may do everything.
    pub group: Option<String>,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self { socket: "/run/coracle/api.sock".into(), group: None }
    }
}

/// One registry that needs more than HTTPS with the system's certificates.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryConfig {
    /// `HOST` or `HOST:PORT`, as in image references.
    pub host: String,
    /// Plain HTTP. Content is verified by digest all the same; tags are not.
    #[serde(default)]
    pub plain_http: bool,
    /// File with certificates of the authorities that vouch for it, PEM, beside the system's.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

fn default_state_dir() -> PathBuf {
    "/var/lib/coracle".into()
}

fn default_mqtt_port() -> u16 {
    8883
}

fn default_keep_alive() -> u16 {
    60
}

fn default_session_expiry() -> u32 {
    3600
}

fn default_reconnect_window() -> u32 {
    30
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what is expected.
    #[error("configuration {path} is not valid: {message}")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// What is wrong and where.
        message: String,
    },
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, has an unknown key, or a value is out of range.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.into(), source })?;
        Self::parse(&text).map_err(|message| ConfigError::Invalid { path: path.into(), message })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        if config.trust.keys.is_empty() {
            return Err("trust.keys is empty: no order could ever be accepted".into());
        }
        if let Some(link) = &config.link {
            if link.keep_alive_seconds < 5 {
                return Err("link.keep_alive_seconds must be at least 5".into());
            }
        }
        for registry in &config.registries {
            if registry.plain_http && registry.ca.is_some() {
                return Err(format!(
                    "registry {}: plain_http and ca exclude each other",
                    registry.host
                ));
            }
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        gateway = "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11"
        [trust]
        keys = ["/etc/coracle/orders.pub"]
    "#;

    #[test]
    fn the_smallest_configuration_has_sensible_defaults() {
        let config = Config::parse(GOOD).unwrap();
        assert_eq!(config.containerd.namespace, "coracle");
        assert!(config.link.is_none());
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_refused_with_their_place() {
        let error = Config::parse(&format!("{GOOD}\nkey = 1")).unwrap_err();
        assert!(error.contains("unknown field `key`"), "{error}");
        let error = Config::parse("gateway = \"x\"\n[trust]\nkeys = []").unwrap_err();
        assert!(error.contains("gateway"), "{error}");
        let error =
            Config::parse(&GOOD.replace("[\"/etc/coracle/orders.pub\"]", "[]")).unwrap_err();
        assert!(error.contains("trust.keys"), "{error}");
    }
}
