//! The configuration file, TOML: read once at start, refused as a whole if anything in it is wrong.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use coracle_core::health::Thresholds;
use coracle_protocol::GatewayId;
use rustls_pki_types::ServerName;
use serde::Deserialize;

/// Where the configuration is looked for if no other place is named.
pub const DEFAULT_PATH: &str = "/etc/coracle/coracle.toml";

/// Everything that is fixed for the life of the process.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which gateway this is. Without it the identity says so.
    #[serde(default)]
    pub gateway: Option<GatewayId>,
    /// Directory for everything that must survive a reboot.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Directory for what must not survive a reboot: network namespaces, what pods find mounted. A
    /// file system in memory.
    #[serde(default = "default_runtime_dir")]
    pub runtime_dir: PathBuf,
    /// Directory of the installed identity (see [`crate::identity`]); `STATE_DIR/identity` by default.
    #[serde(default)]
    pub identity: Option<PathBuf>,
    /// Directory of the identity given in the factory, such as a partition mounted read-only.
    #[serde(default = "default_factory")]
    pub factory: PathBuf,
    /// What orders may ask of this gateway (see [`crate::policy`]).
    #[serde(default = "default_policy")]
    pub policy: PathBuf,
    /// Signed orders to start from when there are none, such as those baked into an OS image.
    #[serde(default)]
    pub factory_orders: Option<PathBuf>,
    /// Whose orders are obeyed. Without it the identity says so.
    #[serde(default)]
    pub trust: Option<TrustConfig>,
    /// The container runtime.
    #[serde(default)]
    pub containerd: ContainerdConfig,
    /// The broker; what is not said here, the identity says. Without either the gateway is run
    /// locally, by `coracle apply`.
    #[serde(default)]
    pub link: Option<LinkTable>,
    /// Network plugins.
    #[serde(default)]
    pub cni: CniConfig,
    /// The local API.
    #[serde(default)]
    pub api: ApiConfig,
    /// What containers say.
    #[serde(default)]
    pub logs: LogsConfig,
    /// What the gateway says of its health.
    #[serde(default)]
    pub health: HealthConfig,
    /// Who judges configurations by their templates.
    #[serde(default)]
    pub templates: TemplatesConfig,
    /// Software that is no image.
    #[serde(default)]
    pub artifacts: ArtifactsConfig,
    /// How the machine is booted anew.
    #[serde(default)]
    pub reboot: RebootConfig,
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

/// How the machine is booted anew, where the policy allows a command to do so.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RebootConfig {
    /// The program that is asked.
    pub program: PathBuf,
    /// What it is told.
    pub arguments: Vec<String>,
}

impl Default for RebootConfig {
    fn default() -> Self {
        Self { program: "/usr/bin/systemctl".into(), arguments: vec!["reboot".into()] }
    }
}

/// Artifacts and the native services that run them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ArtifactsConfig {
    /// Directory of installed software and of the services' runtime directories; `STATE_DIR/native`
    /// by default. It may be a file system of its own.
    pub prefix: Option<PathBuf>,
    /// Where artifacts come from that an order names no repository for; asked in this order.
    pub repositories: Vec<RepositoryConfig>,
    /// Most that one artifact may take.
    pub limits: ArtifactLimits,
}

impl ArtifactsConfig {
    fn check(&self) -> Result<(), &'static str> {
        if self.prefix.as_ref().is_some_and(|prefix| !prefix.is_absolute()) {
            return Err("artifacts.prefix must be an absolute path");
        }
        let ArtifactLimits { zip_mib, unpacked_mib, entries, ratio } = self.limits;
        if [zip_mib, unpacked_mib, entries, ratio].contains(&0) {
            return Err("artifacts.limits must all be at least 1");
        }
        Ok(())
    }
}

/// A repository of artifacts.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositoryConfig {
    /// Its URL, such as `https://repo.example/releases`. Plain HTTP is spoken where it says so.
    pub url: String,
    /// How it is laid out.
    #[serde(default)]
    pub layout: Layout,
    /// File with further certificates to trust, PEM.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

/// How a repository of artifacts is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// `GROUP/NAME/VERSION/NAME-VERSION.zip`, the group's dots as slashes
    /// (<https://maven.apache.org/repository/layout.html>).
    #[default]
    Maven,
    /// All in one directory: `GROUP-NAME-VERSION.zip`.
    Flat,
}

/// Most that one artifact may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ArtifactLimits {
    /// Of the ZIP, in MiB.
    pub zip_mib: u64,
    /// Of all files in it, in MiB.
    pub unpacked_mib: u64,
    /// How many files and directories.
    pub entries: u64,
    /// How many times larger than in the ZIP what is unpacked may be, beyond the first MiB.
    pub ratio: u64,
}

impl Default for ArtifactLimits {
    fn default() -> Self {
        Self { zip_mib: 1024, unpacked_mib: 4096, entries: 100_000, ratio: 200 }
    }
}

/// The network plugins (<https://www.cni.dev/docs/spec/>).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CniConfig {
    /// Directories that may hold them, the first to be looked into first.
    pub plugin_dirs: Vec<PathBuf>,
    /// A network configuration list (`.conflist`) to use instead of the agent's own.
    pub conflist: Option<PathBuf>,
    /// The bridge of the agent's own network.
    pub bridge: BridgeName,
    /// The addresses of the agent's own network; the first one is the gateway's.
    pub subnet: Subnet,
    /// Name servers for pods, instead of the gateway's own.
    pub dns: Vec<IpAddr>,
}

/// Name of a network interface: up to 15 letters, digits, `-`, `_` and dots, not a dot first.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct BridgeName(String);

impl BridgeName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for BridgeName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        let good = (1..=15).contains(&name.len())
            && name.bytes().all(plain)
            && name.as_bytes()[0].is_ascii_alphanumeric();
        if good { Ok(Self(name)) } else { Err(format!("{name:?} is no name for a bridge")) }
    }
}

/// A block of IPv4 addresses with room for the gateway and pods, such as `10.88.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Subnet {
    address: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    /// The gateway's own address in it: the first.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() + 1)
    }
}

impl TryFrom<String> for Subnet {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let refused =
            || format!("{text:?} is no IPv4 network of /8 to /29, such as \"10.88.0.0/16\"");
        let (address, prefix) = text.split_once('/').ok_or_else(refused)?;
        let address: Ipv4Addr = address.parse().map_err(|_| refused())?;
        let prefix: u8 = prefix.parse().map_err(|_| refused())?;
        let whole = (8..=29).contains(&prefix) && address.to_bits() << prefix == 0;
        if whole { Ok(Self { address, prefix }) } else { Err(refused()) }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::parse("").expect("every key may be left out")
    }
}

impl Default for CniConfig {
    fn default() -> Self {
        let usual = ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"];
        Self {
            plugin_dirs: usual.map(PathBuf::from).to_vec(),
            conflist: None,
            bridge: BridgeName("coracle0".into()),
            subnet: Subnet { address: Ipv4Addr::new(10, 88, 0, 0), prefix: 16 },
            dns: Vec::new(),
        }
    }
}

/// `[link]` as written in a file: each key may be left to another file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkTable {
    /// See [`LinkConfig::host`].
    pub host: Option<String>,
    /// See [`LinkConfig::port`]; 8883 by default, 443 for a WebSocket.
    pub port: Option<u16>,
    /// See [`LinkConfig::ca`].
    pub ca: Option<PathBuf>,
    /// See [`LinkConfig::cert`].
    pub cert: Option<PathBuf>,
    /// See [`LinkConfig::key`].
    pub key: Option<PathBuf>,
    /// What the defaults below are made for.
    pub profile: Option<LinkProfile>,
    /// See [`LinkConfig::keep_alive_seconds`]; 300 by default, 1200 for metered links, at least 5.
    pub keep_alive_seconds: Option<u16>,
    /// See [`LinkConfig::session_expiry_seconds`]; 3600 by default.
    pub session_expiry_seconds: Option<u32>,
    /// See [`LinkConfig::will_delay_seconds`]; 60 by default.
    pub will_delay_seconds: Option<u32>,
    /// See [`LinkConfig::reconnect_window_seconds`]; 30 by default.
    pub reconnect_window_seconds: Option<u32>,
    /// See [`LinkConfig::alternatives`]; none by default.
    pub alternatives: Option<Vec<Endpoint>>,
    /// What MQTT is spoken over; TLS by default.
    pub transport: Option<LinkTransport>,
    /// See [`LinkConfig::websocket_path`]; `/mqtt` by default.
    pub websocket_path: Option<String>,
    /// The HTTP proxy on the way, such as `http://proxy.example:3128`.
    pub proxy: Option<ProxyUrl>,
    /// See [`ProxyConfig::credentials`].
    pub proxy_credentials: Option<PathBuf>,
}

/// What kind of network a link's defaults are made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkProfile {
    /// A byte costs next to nothing.
    #[default]
    Standard,
    /// Each byte is paid for.
    Metered,
}

/// What MQTT is spoken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkTransport {
    /// TLS over TCP.
    #[default]
    Tls,
    /// A WebSocket over TLS, for networks that let nothing else out.
    Websocket,
}

impl LinkTable {
    /// These keys, and those of `other` where there is none.
    pub fn or(self, other: Self) -> Self {
        Self {
            host: self.host.or(other.host),
            port: self.port.or(other.port),
            ca: self.ca.or(other.ca),
            cert: self.cert.or(other.cert),
            key: self.key.or(other.key),
            profile: self.profile.or(other.profile),
            keep_alive_seconds: self.keep_alive_seconds.or(other.keep_alive_seconds),
            session_expiry_seconds: self.session_expiry_seconds.or(other.session_expiry_seconds),
            will_delay_seconds: self.will_delay_seconds.or(other.will_delay_seconds),
            alternatives: self.alternatives.or(other.alternatives),
            transport: self.transport.or(other.transport),
            websocket_path: self.websocket_path.or(other.websocket_path),
            proxy: self.proxy.or(other.proxy),
            proxy_credentials: self.proxy_credentials.or(other.proxy_credentials),
            reconnect_window_seconds: self
                .reconnect_window_seconds
                .or(other.reconnect_window_seconds),
        }
    }

    /// What is missing to make it whole.
    pub fn missing(&self) -> Vec<&'static str> {
        let there = [
            ("host", self.host.is_some()),
            ("ca", self.ca.is_some()),
            ("cert", self.cert.is_some()),
            ("key", self.key.is_some()),
        ];
        there.into_iter().filter(|(_, there)| !there).map(|(name, _)| name).collect()
    }

    /// The whole of it; `None` if no host or no file is named for something.
    pub fn complete(self) -> Option<LinkConfig> {
        let keep_alive = match self.profile.unwrap_or_default() {
            LinkProfile::Standard => 300,
            LinkProfile::Metered => 1200,
        };
        let (port, websocket_path) = match self.transport.unwrap_or_default() {
            LinkTransport::Tls => (8883, None),
            LinkTransport::Websocket => {
                (443, Some(self.websocket_path.unwrap_or_else(|| "/mqtt".into())))
            }
        };
        let credentials = self.proxy_credentials;
        Some(LinkConfig {
            host: self.host?,
            port: self.port.unwrap_or(port),
            ca: self.ca?,
            cert: self.cert?,
            key: self.key?,
            keep_alive_seconds: self.keep_alive_seconds.unwrap_or(keep_alive),
            session_expiry_seconds: self.session_expiry_seconds.unwrap_or(3600),
            will_delay_seconds: self.will_delay_seconds.unwrap_or(60),
            reconnect_window_seconds: self.reconnect_window_seconds.unwrap_or(30),
            alternatives: self.alternatives.unwrap_or_default(),
            websocket_path,
            proxy: self.proxy.map(|url| ProxyConfig { endpoint: url.0, credentials }),
        })
    }

    /// Checks the values that are there.
    pub fn check(&self) -> Result<(), &'static str> {
        if matches!(self.keep_alive_seconds, Some(0..5)) {
            return Err("link.keep_alive_seconds must be at least 5");
        }
        let bad_path = |path: &String| {
            !path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_graphic() && b != b'#')
        };
        if self.websocket_path.as_ref().is_some_and(bad_path) {
            return Err("link.websocket_path must be a path such as \"/mqtt\"");
        }
        if self.alternatives.as_ref().is_some_and(|all| all.len() > MAX_ALTERNATIVES) {
            return Err("link.alternatives must be at most 16");
        }
        Ok(())
    }
}

/// Most servers that a broker may send a gateway to.
const MAX_ALTERNATIVES: usize = 16;

/// A host and a port, written `HOST:PORT`; IPv6 addresses in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Endpoint {
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Endpoint {
    /// Reads it; the port may be left out.
    pub fn parse_with(text: &str, port: u16) -> Option<Self> {
        let authority: http::uri::Authority = text.parse().ok()?;
        let bracketed = authority.host();
        let host = bracketed.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = host.unwrap_or(bracketed).to_ascii_lowercase();
        // A port that is no port is none for the parser, and so are a user and a password.
        let rest = text.strip_prefix(bracketed)?;
        let port = if rest.is_empty() { port } else { rest.strip_prefix(':')?.parse().ok()? };
        let named = ServerName::try_from(host.as_str()).is_ok() && port != 0;
        named.then_some(Self { host, port })
    }
}

impl TryFrom<String> for Endpoint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let with_port = text.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        Self::parse_with(&text, 1)
            .filter(|_| with_port)
            .ok_or_else(|| format!("{text:?} is not of the form HOST:PORT"))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Where an HTTP proxy is, written `http://HOST:PORT`. A user and a password have no place in it,
/// because they would be seen where it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ProxyUrl(Endpoint);

impl TryFrom<String> for ProxyUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.contains('@') {
            return Err("link.proxy names a user: they and their password belong in the file \
                        link.proxy_credentials"
                .into());
        }
        let rest = text.strip_prefix("http://").map(|rest| rest.strip_suffix('/').unwrap_or(rest));
        rest.and_then(|rest| Endpoint::try_from(rest.to_owned()).ok())
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no proxy, such as \"http://proxy.example:3128\""))
    }
}

/// An HTTP proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Where it is.
    pub endpoint: Endpoint,
    /// File with `USER:PASSWORD`, if it asks for them. Read at each connection.
    pub credentials: Option<PathBuf>,
}

/// The broker, and how to be known there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkConfig {
    /// Host name or address, as in the broker's certificate.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// File with the certificates of the authorities that vouch for the broker, PEM.
    pub ca: PathBuf,
    /// File with this gateway's certificate chain, PEM.
    pub cert: PathBuf,
    /// File with this gateway's private key, PEM.
    pub key: PathBuf,
    /// Seconds between signs of life on an idle connection.
    pub keep_alive_seconds: u16,
    /// Seconds that the broker keeps the session after the connection is lost.
    pub session_expiry_seconds: u32,
    /// Seconds that the broker waits after the connection is lost before it says that the gateway is
    /// offline.
    pub will_delay_seconds: u32,
    /// Window of the first reconnect delay, in seconds; the delay is drawn evenly from it.
    pub reconnect_window_seconds: u32,
    /// Other servers that the broker may send this gateway to.
    pub alternatives: Vec<Endpoint>,
    /// Where the broker offers MQTT over a WebSocket; none to speak MQTT over TLS directly.
    pub websocket_path: Option<String>,
    /// The HTTP proxy on the way.
    pub proxy: Option<ProxyConfig>,
}

impl LinkConfig {
    /// The broker.
    pub fn broker(&self) -> Endpoint {
        Endpoint { host: self.host.clone(), port: self.port }
    }
}

/// The local API.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApiConfig {
    /// Where its Unix socket is.
    pub socket: PathBuf,
    /// Group whose members may do everything, as root and the agent's own user may.
    pub admin_group: Option<String>,
    /// Group whose members may read.
    pub group: Option<String>,
    /// The same API over TCP, for those that have a certificate.
    pub tls: Option<ApiTlsConfig>,
}

/// The API over TCP with TLS and client certificates.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiTlsConfig {
    /// Address and port to listen on, such as `0.0.0.0:8443`.
    pub listen: SocketAddr,
    /// File with the API's certificate chain, PEM.
    pub certificate: PathBuf,
    /// File with its private key, PEM.
    pub key: PathBuf,
    /// File with the certificates of the authorities that vouch for clients, PEM.
    pub client_ca: PathBuf,
    /// Alternative names in the certificates of those who may do everything.
    #[serde(default)]
    pub change: Vec<CertificateName>,
    /// The same of those who may read.
    #[serde(default)]
    pub read: Vec<CertificateName>,
}

/// A name in a certificate: a DNS name or an IP address.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct CertificateName(ServerName<'static>);

impl CertificateName {
    /// As it is verified.
    pub fn as_name(&self) -> &ServerName<'static> {
        &self.0
    }
}

impl TryFrom<String> for CertificateName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let refused = format!("{name:?} is no DNS name and no IP address");
        ServerName::try_from(name).map(Self).map_err(|_| refused)
    }
}

impl ApiConfig {
    fn check(&self) -> Result<(), &'static str> {
        match &self.tls {
            Some(tls) if tls.change.is_empty() && tls.read.is_empty() => {
                Err("api.tls.change and api.tls.read are empty: nobody could use it")
            }
            _ => Ok(()),
        }
    }
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self { socket: "/run/coracle/api.sock".into(), admin_group: None, group: None, tls: None }
    }
}

/// What containers say, kept on the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogsConfig {
    /// Directory of all containers' logs; `STATE_DIR/logs` by default.
    pub dir: Option<PathBuf>,
    /// KiB at which a container's file is full; at least 16.
    pub file_kib: u32,
    /// Most files of one container; at least 2.
    pub files: u32,
    /// Most MiB of all containers together; at least 1.
    pub total_mib: u32,
    /// The program that writes them.
    pub program: PathBuf,
}

impl Default for LogsConfig {
    fn default() -> Self {
        let program = "/usr/libexec/coracle/coracle-log".into();
        Self { dir: None, file_kib: 1024, files: 4, total_mib: 64, program }
    }
}

impl LogsConfig {
    fn check(&self) -> Result<(), &'static str> {
        if self.file_kib < 16 {
            return Err("logs.file_kib must be at least 16");
        }
        if self.files < 2 {
            return Err(
                "logs.files must be at least 2: the oldest file goes when the newest is full",
            );
        }
        if self.total_mib < 1 || u64::from(self.total_mib) * 1024 < u64::from(self.file_kib) {
            return Err("logs.total_mib must be at least 1, and hold one file of file_kib");
        }
        if !self.program.is_absolute() || self.dir.as_ref().is_some_and(|dir| !dir.is_absolute()) {
            return Err("logs.program and logs.dir must be absolute paths");
        }
        Ok(())
    }
}

/// What the gateway says of its health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthConfig {
    /// Seconds between two pulses, the compact form; 0 for none, else at least 10.
    pub interval_seconds: u32,
    /// Least free space of the state directory's file system, in percent.
    pub disk_free_percent: u8,
    /// Least free inodes there, in percent.
    pub inodes_free_percent: u8,
    /// Least memory that can be had, in percent.
    pub memory_available_percent: u8,
    /// Highest temperature, in degrees Celsius.
    pub temperature_celsius: i32,
}

impl Default for HealthConfig {
    fn default() -> Self {
        let Thresholds {
            disk_free_percent,
            inodes_free_percent,
            memory_available_percent,
            temperature_celsius,
        } = Thresholds::default();
        Self {
            interval_seconds: 300,
            disk_free_percent,
            inodes_free_percent,
            memory_available_percent,
            temperature_celsius,
        }
    }
}

impl HealthConfig {
    /// From where on a number is bad.
    pub fn thresholds(&self) -> Thresholds {
        Thresholds {
            disk_free_percent: self.disk_free_percent,
            inodes_free_percent: self.inodes_free_percent,
            memory_available_percent: self.memory_available_percent,
            temperature_celsius: self.temperature_celsius,
        }
    }

    fn check(&self) -> Result<(), &'static str> {
        if (1..10).contains(&self.interval_seconds) {
            return Err("health.interval_seconds must be 0, for never, or at least 10");
        }
        let percents =
            [self.disk_free_percent, self.inodes_free_percent, self.memory_available_percent];
        // Half as much again is wanted to be good again.
        if percents.iter().any(|percent| *percent > 60) {
            return Err("health: percentages of what is to be free must be at most 60");
        }
        match self.temperature_celsius {
            -40..=200 => Ok(()),
            _ => Err("health.temperature_celsius must be between -40 and 200"),
        }
    }
}

/// Who judges configurations by their templates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TemplatesConfig {
    /// The program that does; see [`crate::config_check::program`] for which one without it.
    pub program: Option<PathBuf>,
}

impl TemplatesConfig {
    fn check(&self) -> Result<(), &'static str> {
        match &self.program {
            Some(program) if !program.is_absolute() => {
                Err("templates.program must be an absolute path")
            }
            _ => Ok(()),
        }
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

fn default_runtime_dir() -> PathBuf {
    "/run/coracle".into()
}

fn default_policy() -> PathBuf {
    crate::policy::DEFAULT_PATH.into()
}

fn default_factory() -> PathBuf {
    "/factory".into()
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

    /// Directory of installed software and of the services' runtime directories.
    pub fn native_prefix(&self) -> PathBuf {
        self.artifacts.prefix.clone().unwrap_or_else(|| self.state_dir.join("native"))
    }

    /// Where an identity is installed.
    pub fn identity_dir(&self) -> PathBuf {
        self.identity.clone().unwrap_or_else(|| self.state_dir.join("identity"))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        if config.trust.as_ref().is_some_and(|trust| trust.keys.is_empty()) {
            return Err("trust.keys is empty: no order could ever be accepted".into());
        }
        if config.gateway.is_some_and(GatewayId::is_nil) {
            return Err("gateway is the nil UUID, which is nobody's".into());
        }
        if config.identity_dir().file_name().is_none() {
            return Err("identity must name a directory of its own".into());
        }
        if let Some(link) = &config.link {
            link.check()?;
        }
        config.api.check()?;
        config.logs.check()?;
        config.health.check()?;
        config.templates.check()?;
        config.artifacts.check()?;
        if !config.reboot.program.is_absolute() {
            return Err("reboot.program must be an absolute path".into());
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
        assert_eq!(config.identity_dir(), Path::new("/var/lib/coracle/identity"));
        assert!(Config::parse("").unwrap().gateway.is_none());
    }

    fn link(lines: &str) -> Result<LinkConfig, String> {
        let files = "ca = \"c\"\ncert = \"c\"\nkey = \"k\"\nhost = \"broker.example\"";
        let config = Config::parse(&format!("[link]\n{files}\n{lines}"))?;
        Ok(config.link.unwrap().complete().unwrap())
    }

    #[test]
    fn a_link_has_defaults_for_each_kind_of_network_and_explicit_keys_win() {
        let plain = link("").unwrap();
        assert_eq!((plain.port, plain.keep_alive_seconds), (8883, 300));
        assert_eq!((plain.session_expiry_seconds, plain.will_delay_seconds), (3600, 60));
        assert_eq!(plain.broker().to_string(), "broker.example:8883");
        assert!(plain.proxy.is_none() && plain.websocket_path.is_none());
        assert_eq!(link("profile = \"metered\"").unwrap().keep_alive_seconds, 1200);
        let explicit = link("profile = \"metered\"\nkeep_alive_seconds = 30").unwrap();
        assert_eq!(explicit.keep_alive_seconds, 30);
        let websocket = link("transport = \"websocket\"").unwrap();
        assert_eq!((websocket.port, websocket.websocket_path.as_deref()), (443, Some("/mqtt")));
        let named =
            link("transport = \"websocket\"\nwebsocket_path = \"/ws?a=b\"\nport = 1").unwrap();
        assert_eq!((named.port, named.websocket_path.as_deref()), (1, Some("/ws?a=b")));
        assert!(link("websocket_path = \"/ws\"").unwrap().websocket_path.is_none());
        let alternatives =
            link("alternatives = [\"B.example:1\", \"[2001:db8::1]:8883\"]").unwrap();
        let alternatives: Vec<_> =
            alternatives.alternatives.iter().map(Endpoint::to_string).collect();
        assert_eq!(alternatives, ["b.example:1", "[2001:db8::1]:8883"]);
        let proxy = link("proxy = \"http://proxy.example:3128\"\nproxy_credentials = \"/f\"");
        let proxy = proxy.unwrap().proxy.unwrap();
        assert_eq!(proxy.endpoint.to_string(), "proxy.example:3128");
        assert_eq!(proxy.credentials.as_deref(), Some(Path::new("/f")));
    }

    #[test]
    fn a_link_that_cannot_be_is_refused_with_its_reason() {
        for (line, reason) in [
            ("profile = \"cheap\"", "unknown variant"),
            ("transport = \"quic\"", "unknown variant"),
            ("keep_alive_seconds = 4", "at least 5"),
            ("websocket_path = \"mqtt\"", "link.websocket_path"),
            ("websocket_path = \"/a b\"", "link.websocket_path"),
            ("alternatives = [\"b.example\"]", "HOST:PORT"),
            ("alternatives = [\"b.example:0\"]", "HOST:PORT"),
            ("alternatives = [\"b.example:x\"]", "HOST:PORT"),
            ("alternatives = [\"a@b.example:1\"]", "HOST:PORT"),
            ("alternatives = [\"::1\"]", "HOST:PORT"),
            ("proxy = \"https://p.example:1\"", "is no proxy"),
            ("proxy = \"p.example:1\"", "is no proxy"),
            ("proxy = \"http://p.example\"", "is no proxy"),
            ("proxy = \"http://u:secret@p.example:1\"", "link.proxy_credentials"),
        ] {
            let error = link(line).unwrap_err();
            assert!(error.contains(reason), "{line}: {error}");
            assert!(reason != "link.proxy_credentials" || error.contains(reason), "{error}");
        }
        let many = vec!["\"b.example:1\""; 17].join(", ");
        assert!(link(&format!("alternatives = [{many}]")).unwrap_err().contains("at most 16"));
    }

    #[test]
    fn a_network_of_our_own_is_a_whole_block_of_addresses() {
        let cni = |line: &str| Config::parse(&format!("[cni]\n{line}")).map(|config| config.cni);
        let small = cni("subnet = \"192.168.7.8/29\"\nbridge = \"pods.0\"").unwrap();
        assert_eq!(small.subnet.gateway().to_string(), "192.168.7.9");
        assert_eq!(small.subnet.to_string(), "192.168.7.8/29");
        assert_eq!(CniConfig::default().subnet.gateway().to_string(), "10.88.0.1");
        for bad in ["10.88.0.0", "10.88.0.1/16", "10.0.0.0/7", "10.0.0.0/30", "fd00::/64", "x/8"] {
            let error = cni(&format!("subnet = {bad:?}")).unwrap_err();
            assert!(error.contains("no IPv4 network"), "{bad}: {error}");
        }
        for bad in ["", "a b", "../x", ".", "a/b", "0123456789abcdef"] {
            let error = cni(&format!("bridge = {bad:?}")).unwrap_err();
            assert!(error.contains("no name for a bridge"), "{bad}: {error}");
        }
        assert_eq!(cni("dns = [\"192.0.2.53\", \"2001:db8::53\"]").unwrap().dns.len(), 2);
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
        for (key, value) in [
            ("file_kib", "15"),
            ("files", "1"),
            ("total_mib", "0"),
            ("program", "\"coracle-log\""),
            ("dir", "\"logs\""),
        ] {
            let error = Config::parse(&format!("[logs]\n{key} = {value}")).unwrap_err();
            assert!(error.contains(&format!("logs.{key}")), "{error}");
        }
        for (key, value) in [
            ("interval_seconds", "9"),
            ("disk_free_percent", "61"),
            ("temperature_celsius", "900"),
            ("interval", "10"),
        ] {
            let error = Config::parse(&format!("[health]\n{key} = {value}")).unwrap_err();
            assert!(error.contains("health") || error.contains("unknown field"), "{error}");
        }
        let never = Config::parse("[health]\ninterval_seconds = 0").unwrap();
        assert_eq!(never.health.interval_seconds, 0);
        let files = "certificate = \"c\"\nkey = \"k\"\nclient_ca = \"a\"\n";
        let tls = |lines: &str| Config::parse(&format!("[api.tls]\n{files}{lines}"));
        let good =
            tls("listen = \"[::]:8443\"\nchange = [\"ops.example\", \"192.0.2.1\"]").unwrap();
        assert_eq!(good.api.tls.unwrap().change.len(), 2);
        for (lines, reason) in [
            ("listen = \"0.0.0.0:8443\"", "nobody could use it"),
            ("listen = \"0.0.0.0\"\nread = [\"a\"]", "invalid socket address"),
            ("listen = \"0.0.0.0:1\"\nread = [\"a b\"]", "\"a b\" is no DNS name"),
        ] {
            let error = tls(lines).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        let error = Config::parse("[templates]\nprogram = \"config-check\"").unwrap_err();
        assert!(error.contains("templates.program"), "{error}");
        let error = Config::parse("[artifacts]\nprefix = \"native\"").unwrap_err();
        assert!(error.contains("artifacts.prefix"), "{error}");
        let error = Config::parse("[reboot]\nprogram = \"reboot\"").unwrap_err();
        assert!(error.contains("reboot.program"), "{error}");
        let error = Config::parse("[artifacts.limits]\nratio = 0").unwrap_err();
        assert!(error.contains("artifacts.limits"), "{error}");
    }
}
