//! How pods find each other and the world: `/etc/hosts` and `/etc/resolv.conf` for each of them.
//!
//! Files instead of a name server: nothing runs, nothing can fail, and every program can read them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use coracle_core::desired::Network;
use coracle_core::name::ReplicaId;

use super::error::NetworkError;
use super::record::{Record, State};
use crate::fault::fault_point;

pub(super) const HOSTS: &str = "hosts";
pub(super) const RESOLV_CONF: &str = "resolv.conf";

const LOCAL: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// Where the gateway's own files are.
#[derive(Clone, Debug)]
pub(super) struct HostFiles {
    pub(super) hosts: PathBuf,
    pub(super) resolv_conf: PathBuf,
    /// Where systemd-resolved writes the servers that it asks itself.
    pub(super) resolved: PathBuf,
}

impl Default for HostFiles {
    fn default() -> Self {
        Self {
            hosts: "/etc/hosts".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            resolved: "/run/systemd/resolve/resolv.conf".into(),
        }
    }
}

/// Content of `/etc/hosts` for each pod.
pub(super) fn hosts(
    records: &BTreeMap<ReplicaId, Record>,
    host: &str,
) -> BTreeMap<ReplicaId, String> {
    let workloads: BTreeSet<_> = records.keys().map(|one| one.workload.as_str()).collect();
    let names_of = |record| names_of(record, &workloads);
    let (mut pods, mut on_host) = (String::new(), Vec::new());
    for record in records.values().filter(|record| record.state != State::Removing) {
        match (record.request.kind, &record.attached) {
            (Network::Host, _) => on_host.push(names_of(record)),
            (_, Some(attached)) if record.state == State::Ready => {
                for address in attached.addresses() {
                    line(&mut pods, address, &names_of(record));
                }
            }
            _ => {}
        }
    }
    // All pods at one gateway see the same.
    let mut seen_from: BTreeMap<IpAddr, String> = BTreeMap::new();
    let mut text_for = |record: &Record| match (record.request.kind, &record.attached) {
        (Network::Host, _) => {
            let mut text = host.to_owned();
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            for names in &on_host {
                line(&mut text, [127, 0, 0, 1].into(), names);
            }
            text + &pods
        }
        (_, Some(attached)) => match attached.gateway() {
            None => format!("{LOCAL}{pods}"),
            Some(gateway) => seen_from
                .entry(gateway)
                .or_insert_with(|| {
                    let mut text = format!("{LOCAL}{pods}");
                    for names in &on_host {
                        line(&mut text, gateway, names);
                    }
                    text
                })
                .clone(),
        },
        (_, None) => {
            let mut text = LOCAL.to_owned();
            // It sees nobody whom it could take for itself.
            let alone = self::names_of(record, &BTreeSet::new());
            line(&mut text, [127, 0, 0, 1].into(), &alone);
            text
        }
    };
    records.iter().map(|(replica, record)| (replica.clone(), text_for(record))).collect()
}

/// The host name first: it is what an address is called. A name that another workload has is that
/// workload's alone, as `web-0` where there are workloads `web` and `web-0`.
fn names_of<'a>(record: &'a Record, workloads: &BTreeSet<&str>) -> Vec<&'a str> {
    let mut names = vec![record.request.host_name.as_str()];
    let more: BTreeSet<_> = record.request.names.iter().map(String::as_str).collect();
    names.extend(more.into_iter().filter(|name| *name != record.request.host_name));
    let own = record.request.replica.workload.as_str();
    names.retain(|name| *name == own || !workloads.contains(name));
    names
}

fn line(text: &mut String, address: IpAddr, names: &[&str]) {
    writeln!(text, "{address}\t{}", names.join(" ")).expect("a string takes everything");
}

/// Content of `/etc/resolv.conf` for a pod; `None` if it has no network to ask through.
pub(super) fn resolv_conf(kind: Network, dns: &[IpAddr], files: &HostFiles) -> Option<String> {
    if kind == Network::None {
        return None;
    }
    // A gateway without one resolves nothing; its pods neither.
    let host = fs::read_to_string(&files.resolv_conf).unwrap_or_default();
    if kind == Network::Host {
        return Some(host);
    }
    if !dns.is_empty() {
        return Some(dns.iter().map(|server| format!("nameserver {server}\n")).collect());
    }
    let servers = |text: &str| text.lines().filter_map(server).collect::<Vec<_>>();
    let found = servers(&host);
    if !found.is_empty() && found.iter().all(IpAddr::is_loopback) {
        if let Ok(real) = fs::read_to_string(&files.resolved) {
            return Some(without_local_servers(&real));
        }
    }
    Some(without_local_servers(&host))
}

/// A server on the gateway's loopback address is another one, or none, in a pod.
fn without_local_servers(text: &str) -> String {
    let keep = |line: &&str| !server(line).is_some_and(|address| address.is_loopback());
    text.lines().filter(keep).map(|line| format!("{line}\n")).collect()
}

/// The address that a line names as a server's.
fn server(line: &str) -> Option<IpAddr> {
    let mut words = line.split_whitespace();
    (words.next() == Some("nameserver")).then_some(())?;
    words.next()?.parse().ok()
}

/// Makes `path` contain `text`. A file that is there stays the same file, because containers have
/// it mounted, and is written in one piece: a reader finds the old or the new, never half.
pub(super) fn put(path: &Path, text: &str) -> Result<(), NetworkError> {
    let failed = |doing| NetworkError::file(doing, path);
    let file = match OpenOptions::new().write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return create(path, text),
        Err(error) => return Err(failed("open")(error)),
    };
    let old = file.metadata().map_err(failed("read"))?.len();
    let mut bytes = text.as_bytes().to_vec();
    // What is left of a longer one is empty lines, until it is cut off.
    bytes.resize(bytes.len().max(usize::try_from(old).unwrap_or(0)), b'\n');
    let written = file.write_at(&bytes, 0).map_err(failed("write"))?;
    if written < bytes.len() {
        file.write_all_at(&bytes[written..], written as u64).map_err(failed("write"))?;
    }
    fault_point("names.written");
    file.set_len(text.len() as u64).map_err(failed("write"))?;
    fault_point("names.cut");
    Ok(())
}

/// For everyone to read, whatever the agent's umask.
fn create(path: &Path, text: &str) -> Result<(), NetworkError> {
    let new = path.with_extension("new");
    let failed = |doing| NetworkError::file(doing, new.clone());
    let file: File = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&new)
        .map_err(failed("create"))?;
    file.set_permissions(fs::Permissions::from_mode(0o644)).map_err(failed("open to others"))?;
    file.write_all_at(text.as_bytes(), 0).map_err(failed("write"))?;
    fault_point("names.new");
    fs::rename(&new, path).map_err(failed("rename"))?;
    fault_point("names.renamed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::testing::{attached, record};
    use super::*;

    fn check(records: &[Record], of: &str, expected: &str) {
        let records: BTreeMap<_, _> =
            records.iter().map(|r| (r.request.replica.clone(), r.clone())).collect();
        let hosts = hosts(&records, "192.0.2.1 gateway");
        let found = hosts.iter().find(|(replica, _)| replica.to_string() == of).unwrap().1;
        assert_eq!(found.strip_prefix(LOCAL).unwrap_or(found), expected, "of {of}");
    }

    #[test]
    fn everybody_finds_everybody_who_can_be_reached() {
        let mut coming = attached("late", 0, "10.88.0.9");
        coming.state = State::Making;
        let mut going = attached("gone", 0, "10.88.0.8");
        going.state = State::Removing;
        let records = [
            attached("web", 0, "10.88.0.2"),
            attached("web", 1, "10.88.0.3"),
            record("broker", 0, Network::Host),
            record("alone", 0, Network::None),
            coming,
            going,
        ];
        let pods = "10.88.0.2\tweb-0 web\n10.88.0.3\tweb-1 web\n";
        check(&records, "web.0", &format!("{pods}10.88.0.1\tbroker-0 broker\n"));
        check(&records, "late.0", &format!("{pods}10.88.0.1\tbroker-0 broker\n"));
        check(&records, "alone.0", "127.0.0.1\talone-0 alone\n");
        let host = format!("192.0.2.1 gateway\n127.0.0.1\tbroker-0 broker\n{pods}");
        check(&records, "broker.0", &host);
    }

    #[test]
    fn a_workloads_name_is_no_other_pods() {
        let mut records = vec![attached("web", 0, "10.88.0.2"), attached("web", 1, "10.88.0.3")];
        records.push(record("web-1", 0, Network::Host));
        let pods = "10.88.0.2\tweb-0 web\n10.88.0.3\tweb\n";
        check(&records, "web.0", &format!("{pods}10.88.0.1\tweb-1-0 web-1\n"));
        records[0] = record("web", 0, Network::None);
        records[2] = record("web-0", 0, Network::None);
        check(&records, "web.0", "127.0.0.1\tweb-0 web\n");
    }

    #[test]
    fn all_addresses_of_a_pod_are_told() {
        let mut both = attached("web", 0, "10.88.0.2");
        let ips = both.attached.as_mut().unwrap().result.as_mut().unwrap();
        ips["ips"].as_array_mut().unwrap().push(serde_json::json!({"address": "fd00::2/64"}));
        check(&[both], "web.0", "10.88.0.2\tweb-0 web\nfd00::2\tweb-0 web\n");
    }

    #[test]
    fn a_pod_asks_servers_that_it_can_reach() {
        let dir = tempfile::tempdir().unwrap();
        let files = HostFiles {
            hosts: dir.path().join("hosts"),
            resolv_conf: dir.path().join("resolv.conf"),
            resolved: dir.path().join("resolved.conf"),
        };
        let of = |kind, dns: &[IpAddr]| resolv_conf(kind, dns, &files);
        assert_eq!(of(Network::Pod, &[]), Some(String::new()));
        let stub = "nameserver 127.0.0.53\nsearch example\n";
        fs::write(&files.resolv_conf, stub).unwrap();
        assert_eq!(of(Network::Host, &[]).unwrap(), stub);
        assert_eq!(of(Network::None, &[]), None);
        assert_eq!(of(Network::Pod, &[]).unwrap(), "search example\n");
        fs::write(&files.resolved, "nameserver 192.0.2.53\n").unwrap();
        assert_eq!(of(Network::Pod, &[]).unwrap(), "nameserver 192.0.2.53\n");
        let both = "nameserver ::1\nnameserver 192.0.2.7\noptions edns0\n";
        fs::write(&files.resolv_conf, both).unwrap();
        assert_eq!(of(Network::Pod, &[]).unwrap(), "nameserver 192.0.2.7\noptions edns0\n");
        let dns = ["2001:db8::1".parse().unwrap()];
        assert_eq!(of(Network::Pod, &dns).unwrap(), "nameserver 2001:db8::1\n");
    }

    #[test]
    fn a_file_stays_the_same_file_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(HOSTS);
        put(&path, "a longer text\n").unwrap();
        let number = fs::metadata(&path).unwrap().ino();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
        for text in ["short\n", "a much longer text than before\n", ""] {
            put(&path, text).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::metadata(&path).unwrap().ino(), number);
        }
    }
}
