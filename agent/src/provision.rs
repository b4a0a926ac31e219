//! `coracle provision`: installs the identity that was given in the factory.
//!
//! In: a place with an identity. Out: the same files in the identity directory, durable, whole or
//! not at all. Runs at every boot, before the agent: what is installed already stays, unless it
//! cannot be used. Deliberately not here: making keys or asking anybody for certificates.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use coracle_protocol::GatewayId;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};
use nix::unistd::{getegid, geteuid};
use serde::Serialize;

use crate::cli::ProvisionArgs;
use crate::config::Config;
use crate::config_check::{self, check_configs_and_wait};
use crate::execute::chain;
use crate::identity::{FILES, Identity, KEYS, ORDERS, Place, loose_files, read_file};
use crate::intake::{self, InForce};
use crate::link::check_files;
use crate::trust::TrustedKeys;

/// What was done.
#[derive(Debug, Serialize)]
struct Done {
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<GatewayId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<PathBuf>,
    identity: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    /// There was none before.
    Installed,
    /// The one that was there could not be used.
    Repaired,
    /// It took the place of another gateway's.
    Replaced,
    /// There was a good one.
    Kept,
    /// There is none, and no place to take one from.
    Nothing,
}

/// Does it, and gives the line to print.
///
/// # Errors
/// Every reason why the identity is not installed; what was there before is as it was.
pub fn run(args: &ProvisionArgs) -> Result<String> {
    let config = Config::load(&args.config)?;
    let done = provision(&config, args)?;
    Ok(if args.json { serde_json::to_string(&done)? } else { sentence(&done) })
}

fn sentence(done: &Done) -> String {
    let gateway = done.gateway.map(|gateway| gateway.to_string()).unwrap_or_default();
    let from = done.from.as_ref().map(|from| from.display().to_string()).unwrap_or_default();
    let identity = done.identity.display();
    match done.outcome {
        Outcome::Kept => format!("provisioned already as gateway {gateway}"),
        Outcome::Nothing => "not provisioned: there is no identity to install".into(),
        Outcome::Installed => format!("provisioned as gateway {gateway}: {from} -> {identity}"),
        Outcome::Repaired => {
            format!("the identity of gateway {gateway} was unusable: {from} -> {identity}")
        }
        Outcome::Replaced => format!("this is gateway {gateway} now: {from} -> {identity}"),
    }
}

fn provision(config: &Config, args: &ProvisionArgs) -> Result<Done> {
    let dir = config.identity_dir();
    let target = Place::directory(&dir);
    // Whoever comes at the same time waits; without a directory to lock there is nothing to share.
    let _lock = lock(&dir).ok();
    let (installed, troubles) = match Identity::read(&target) {
        Ok(Some(identity)) => (Some(identity.gateway), check(&identity, config, Orders::Ignored)),
        Ok(None) => (None, Vec::new()),
        Err(trouble) => (None, vec![trouble]),
    };
    let was_there = dir.symlink_metadata().is_ok();
    let done = |outcome, gateway, from: Option<&Place>| Done {
        outcome,
        gateway,
        from: from.map(|place| place.dir().to_owned()),
        identity: dir.clone(),
    };
    let usable = installed.is_some() && troubles.is_empty();
    let source = match source(config, args) {
        // What nobody asked for and nobody needs may be in any state.
        Err(_) if usable && args.from.is_empty() => None,
        other => other?,
    };
    let another = source.as_ref().zip(installed).filter(|(source, own)| source.gateway != *own);
    if let Some((source, own)) = another.filter(|_| !args.replace) {
        bail!(
            "this is gateway {own}, and {} is the identity of gateway {}; to make this gateway \
             that one: --replace",
            source.place.dir().display(),
            source.gateway
        );
    }
    let another = another.is_some();
    let asked_for = args.replace && !args.from.is_empty();
    if usable && !another && !asked_for {
        tighten(&target).with_context(|| format!("cannot restrict {}", dir.display()))?;
        return Ok(done(Outcome::Kept, installed, None));
    }
    let Some(source) = source else {
        if troubles.is_empty() {
            return Ok(done(Outcome::Nothing, None, None));
        }
        bail!(
            "the identity in {} cannot be used, and there is no other to take its place: {}",
            dir.display(),
            troubles.join("; ")
        );
    };
    let troubles = check(&source, config, Orders::Judged);
    if !troubles.is_empty() {
        bail!("{} is not installed: {}", source.place.dir().display(), troubles.join("; "));
    }
    install(&source.place, &dir).with_context(|| format!("cannot install {}", dir.display()))?;
    let outcome = match installed {
        Some(_) if another || usable => Outcome::Replaced,
        _ if was_there => Outcome::Repaired,
        _ => Outcome::Installed,
    };
    Ok(done(outcome, Some(source.gateway), Some(&source.place)))
}

/// Holds off every other provisioning of `dir`. On a file of its own: the directory that it lies in
/// is the agent's, which holds a lock on that for as long as it runs.
fn lock(dir: &Path) -> io::Result<Flock<File>> {
    let path = beside(dir, ".coracle-lock");
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(path)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
}

/// The first place with an identity; one that is named must have one.
fn source(config: &Config, args: &ProvisionArgs) -> Result<Option<Identity>> {
    if args.from.is_empty() {
        let places = [Place::credentials(), Some(Place::directory(&config.factory))];
        return first(places.into_iter().flatten());
    }
    match first(args.from.iter().map(Place::directory))? {
        Some(identity) => Ok(Some(identity)),
        None => bail!(
            "there is no gateway.toml in {}",
            args.from.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(" or ")
        ),
    }
}

fn first(places: impl Iterator<Item = Place>) -> Result<Option<Identity>> {
    for place in places {
        if let Some(identity) = Identity::read(&place).map_err(anyhow::Error::msg)? {
            return Ok(Some(identity));
        }
    }
    Ok(None)
}

/// What of the orders beside an identity counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Orders {
    /// They must be good.
    Judged,
    /// Nothing: keys change after the first boot, and the orders of that day remain.
    Ignored,
}

/// Every reason against an identity.
fn check(identity: &Identity, config: &Config, orders: Orders) -> Vec<String> {
    let mut troubles = Vec::new();
    let keys = match &config.trust {
        Some(trust) => TrustedKeys::load(&trust.keys),
        None => TrustedKeys::load(&[identity.place.file(KEYS)]),
    };
    let keys = keys.map_err(|error| troubles.push(chain(&error))).ok();
    let own = config.link.clone().unwrap_or_default();
    if let Some(link) = own.or(identity.link()).complete() {
        if let Err(error) = check_files(&link.ca, &link.cert, &link.key) {
            troubles.push(chain(&error));
        }
    }
    if orders == Orders::Ignored {
        return troubles;
    }
    let orders = identity.place.file(ORDERS);
    match (read_file(&orders), keys) {
        (Err(error), _) if error.kind() == io::ErrorKind::NotFound => {}
        (Err(error), _) => troubles.push(format!("{}: {error}", orders.display())),
        (Ok(_), None) => {}
        (Ok(envelope), Some(keys)) => {
            let nothing = InForce { generation: 0, payload: None };
            let program = config_check::program(&config.templates);
            let judged = intake::open(&envelope, &keys, identity.gateway, nothing, None).and_then(
                |opened| {
                    let found = check_configs_and_wait(&program, &opened.read.config_checks);
                    opened.verdict(found)
                },
            );
            if let Err(refused) = judged {
                for refusal in refused.refusals {
                    troubles.push(format!("{}: {refusal}", orders.display()));
                }
            }
        }
    }
    troubles
}

/// Takes from others what they need not have.
fn tighten(place: &Place) -> io::Result<()> {
    for (path, _) in loose_files(place) {
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.uid() != geteuid().as_raw() {
            chown(&path, Some(geteuid().as_raw()), Some(getegid().as_raw()))?;
        }
        let mode = if metadata.is_dir() { 0o700 } else { 0o600 };
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// A name beside `dir` that nobody else would choose.
fn beside(dir: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(dir.file_name().unwrap_or_default());
    name.push(ending);
    dir.with_file_name(name)
}

/// Removes a directory with the files of an identity and nothing else, or one file.
fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    }
}

/// Whether `dir` holds what is no part of an identity, which would be lost with it.
fn strangers(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let name = entry?.file_name();
        if !FILES.iter().any(|file| name == *file) {
            let message = format!(
                "it holds {}, which is no part of an identity: give the identity a directory of \
                 its own",
                Path::new(&name).display()
            );
            return Err(io::Error::other(message));
        }
    }
    Ok(())
}

/// Copies the files beside `dir`, syncs them, and puts them in its place at one blow.
fn install(from: &Place, dir: &Path) -> io::Result<()> {
    strangers(dir)?;
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    let new = beside(dir, ".coracle-new");
    // What a power cut in the middle left.
    remove(&new)?;
    DirBuilder::new().mode(0o700).create(&new)?;
    for name in FILES {
        let bytes = match read_file(&from.file(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(new.join(name))?;
        file.write_all(&bytes)?;
        file.sync_all()?;
    }
    File::open(&new)?.sync_all()?;
    if dir.symlink_metadata().is_ok() {
        renameat2(AT_FDCWD, &new, AT_FDCWD, dir, RenameFlags::RENAME_EXCHANGE)?;
        File::open(parent)?.sync_all()?;
        remove(&new)?;
    } else {
        fs::rename(&new, dir)?;
    }
    File::open(parent)?.sync_all()
}
