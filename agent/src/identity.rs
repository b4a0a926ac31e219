//! Who this gateway is: a directory that is given to it in the factory, or installed at the first
//! boot.
//!
//! | file | content |
//! |---|---|
//! | `gateway.toml` | `gateway = "UUID"`, and an optional `[link]` with `host`, `port` and the like |
//! | `ca.pem` | vouches for the broker |
//! | `cert.pem`, `key.pem` | how this gateway is known there |
//! | `orders.pub` | whose orders are obeyed |
//! | `orders.json` | signed orders to start from, if there are any |
//!
//! As credentials of the service manager
//! (<https://systemd.io/CREDENTIALS/>) the same files are named `coracle.gateway.toml` and so on.
//!
//! In: the configuration. Out: a [`Device`], in any case: a gateway that was never provisioned, or
//! whose data partition is gone, still starts, says so, and does what it can.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use coracle_protocol::GatewayId;
use serde::Deserialize;

use crate::config::{Config, LinkConfig, LinkTable};

/// No file of an identity is larger, in bytes.
pub const MAX_FILE_BYTES: u64 = 256 * 1024;

const GATEWAY: &str = "gateway.toml";
/// Whose orders are obeyed.
pub const KEYS: &str = "orders.pub";
/// Signed orders to start from.
pub const ORDERS: &str = "orders.json";
/// The files of the link: authorities, certificate chain, private key.
pub const LINK_FILES: [&str; 3] = ["ca.pem", "cert.pem", "key.pem"];
const PRIVATE_KEY: &str = "key.pem";

/// Every file that an identity may have.
pub const FILES: [&str; 6] = [GATEWAY, "ca.pem", "cert.pem", PRIVATE_KEY, KEYS, ORDERS];

/// Where an identity is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    dir: PathBuf,
    prefix: &'static str,
}

impl Place {
    /// A directory with the files under their own names.
    pub fn directory(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), prefix: "" }
    }

    /// The service manager's credentials of this process, if it has some.
    pub fn credentials() -> Option<Self> {
        let dir = std::env::var_os("CREDENTIALS_DIRECTORY")?;
        Some(Self { dir: dir.into(), prefix: "coracle." })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where one of [`FILES`] is.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{}{name}", self.prefix))
    }
}

/// An identity whose `gateway.toml` could be read.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Where it is.
    pub place: Place,
    /// Which gateway this is.
    pub gateway: GatewayId,
    link: LinkTable,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GatewayFile {
    gateway: GatewayId,
    #[serde(default)]
    link: LinkTable,
}

impl Identity {
    /// The identity at `place`; `None` if there is none.
    ///
    /// # Errors
    /// There is one and it cannot be used; a sentence for people.
    pub fn read(place: &Place) -> Result<Option<Self>, String> {
        let path = place.file(GATEWAY);
        let wrong = |reason: &str| format!("{}: {reason}", path.display());
        let bytes = match read_file(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(wrong(&error.to_string())),
        };
        let text = String::from_utf8(bytes).map_err(|_| wrong("it is not text"))?;
        let file: GatewayFile =
            toml::from_str(&text).map_err(|error| wrong(&describe(&error, &text)))?;
        if file.gateway.is_nil() {
            return Err(wrong("the nil UUID is nobody's id"));
        }
        let LinkTable { ca, cert, key, .. } = &file.link;
        if [ca, cert, key].into_iter().any(Option::is_some) {
            return Err(wrong("ca, cert and key of an identity are the files beside it"));
        }
        file.link.check().map_err(wrong)?;
        Ok(Some(Self { place: place.clone(), gateway: file.gateway, link: file.link }))
    }

    /// What of the link is said here, with the files of this identity.
    pub fn link(&self) -> LinkTable {
        let [ca, cert, key] = LINK_FILES.map(|name| Some(self.place.file(name)));
        LinkTable { ca, cert, key, ..self.link.clone() }
    }
}

/// Opens a file, and nothing that is none: a FIFO would be waited for without end.
fn open_file(path: &Path) -> io::Result<File> {
    let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(file)
}

/// Reads a file of an identity.
///
/// # Errors
/// It cannot be read, or is larger than [`MAX_FILE_BYTES`].
pub fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_file(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let message = format!("it is larger than {MAX_FILE_BYTES} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

/// What the configuration and the identity together say of this gateway.
#[derive(Clone, Debug)]
pub struct Device {
    /// Which gateway this is; nil if nobody says.
    pub gateway: GatewayId,
    /// Files with the keys of those whose orders are obeyed; none if nobody says.
    pub keys: Vec<PathBuf>,
    /// The broker, if one is named.
    pub link: Option<LinkConfig>,
    /// Signed orders to start from.
    pub factory_orders: Option<PathBuf>,
    /// What is right with the identity, or wrong.
    pub state: State,
}

/// What is right with the identity, or wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Whether all is well.
    pub good: bool,
    /// One word, for programs.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// Finds out who this gateway is. What the configuration says itself counts; the rest is taken from
/// the first identity there is: installed, given as credentials, given in the factory.
pub fn find(config: &Config) -> Device {
    let mut troubles = Vec::new();
    let places = places(config);
    let identity = places.iter().find_map(|place| {
        Identity::read(place).unwrap_or_else(|trouble| {
            troubles.push(trouble);
            None
        })
    });
    let file = |name| identity.as_ref().map(|identity| identity.place.file(name));
    let named = match (config.link.clone(), identity.as_ref().map(Identity::link)) {
        (Some(own), Some(given)) => Some(own.or(given)),
        (own, given) => own.or(given),
    };
    let link = named.clone().and_then(LinkTable::complete);
    let no_link = named.filter(|named| link.is_none() && named.host.is_some()).map(|named| {
        let missing = named.missing().join(", ");
        format!("there is no link to a broker: nobody says its {missing}")
    });
    let gateway = config.gateway.or(identity.as_ref().map(|identity| identity.gateway));
    let keys = match &config.trust {
        Some(trust) => trust.keys.clone(),
        None => file(KEYS).into_iter().collect(),
    };
    let factory_orders =
        config.factory_orders.clone().or_else(|| file(ORDERS).filter(|path| path.exists()));
    let state = match (&identity, gateway) {
        (_, None) => not_provisioned(&places, &troubles),
        (identity, Some(gateway)) => {
            judge(identity.as_ref(), gateway, link.as_ref(), troubles, no_link)
        }
    };
    let gateway = gateway.unwrap_or(GatewayId::nil());
    // Nobody could tell whose link it is.
    let link = link.filter(|_| !gateway.is_nil());
    Device { gateway, keys, link, factory_orders, state }
}

/// What is wrong in a TOML text, with the line, and without the text itself.
fn describe(error: &toml::de::Error, text: &str) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    format!("line {}: {}", before.matches('\n').count() + 1, error.message())
}

fn places(config: &Config) -> Vec<Place> {
    let installed = Place::directory(config.identity_dir());
    let factory = Place::directory(&config.factory);
    [Some(installed), Place::credentials(), Some(factory)].into_iter().flatten().collect()
}

fn not_provisioned(places: &[Place], troubles: &[String]) -> State {
    let dirs: Vec<_> = places.iter().map(|place| place.dir().display().to_string()).collect();
    let why = match troubles.is_empty() {
        true => format!("no {GATEWAY} in {}", dirs.join(" or ")),
        false => troubles.join("; "),
    };
    let message = format!(
        "this gateway does not know its own id: {why}; \
         give it an identity with `coracle provision --from DIR`"
    );
    State { good: false, reason: "not-provisioned", message }
}

fn judge(
    identity: Option<&Identity>,
    gateway: GatewayId,
    link: Option<&LinkConfig>,
    mut troubles: Vec<String>,
    no_link: Option<String>,
) -> State {
    let damaged = !troubles.is_empty();
    troubles.extend(no_link);
    let origin = match identity {
        Some(identity) => format!("gateway {gateway}, from {}", identity.place.dir().display()),
        None => format!("gateway {gateway}, from the configuration"),
    };
    if let Some(link) = link {
        for path in [&link.ca, &link.cert, &link.key] {
            if let Err(error) = open_file(path) {
                troubles.push(format!("{}: {error}", path.display()));
            }
        }
    }
    let missing = !damaged && !troubles.is_empty();
    if let Some(identity) = identity {
        troubles.extend(loose_files(&identity.place).into_iter().map(|(_, sentence)| sentence));
    }
    let reason = match (damaged, missing, troubles.is_empty()) {
        (true, ..) => "unusable",
        (_, true, _) => "files-missing",
        (.., false) => "open-to-others",
        _ => "provisioned",
    };
    let good = troubles.is_empty();
    let message = if good { origin } else { format!("{}; {origin}", troubles.join("; ")) };
    State { good, reason, message }
}

/// What of an installed identity others may read or write who should not: paths, each with a
/// sentence. Links are not followed: what they lead to is somebody else's.
pub fn loose_files(place: &Place) -> Vec<(PathBuf, String)> {
    let files = FILES.map(|name| (place.file(name), name == PRIVATE_KEY));
    let all = [(place.dir().to_owned(), false)].into_iter().chain(files);
    let mut loose = Vec::new();
    for (path, is_secret) in all {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_symlink() {
            continue;
        }
        let mode = metadata.permissions().mode() & 0o777;
        let owner = metadata.uid();
        let what = if is_secret && mode & 0o077 != 0 {
            "others may read it"
        } else if mode & 0o022 != 0 {
            "others may write it"
        } else if owner != 0 && owner != nix::unistd::geteuid().as_raw() {
            "it belongs to another user"
        } else {
            continue;
        };
        let sentence = format!("{}: {what} (mode {mode:04o})", path.display());
        loose.push((path, sentence));
    }
    loose
}
