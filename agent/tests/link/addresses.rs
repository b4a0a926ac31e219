//! Names are looked up anew for every connection.

use std::fs;
use std::net::TcpListener;

use coracle_protocol::GatewayId;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::bed::{self, Gateway, SOON};
use crate::scripted::{Hostile, NEW_SESSION};

/// A hosts file of this thread's own; the link's threads inherit it.
fn own_hosts(content: &str) -> tempfile::NamedTempFile {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let hosts = tempfile::NamedTempFile::new().unwrap();
    fs::write(hosts.path(), content).unwrap();
    mount(Some(hosts.path()), "/etc/hosts", none, MsFlags::MS_BIND, none).unwrap();
    hosts
}

#[test]
fn a_broker_whose_name_leads_elsewhere_is_found_there() {
    let mut first = Hostile::new();
    // One port at two addresses; another program may have it at the second one.
    let (listener, other) = (0..100)
        .find_map(|_| {
            let listener = TcpListener::bind("127.0.0.2:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            Some((listener, TcpListener::bind(("127.0.0.3", port)).ok()?))
        })
        .unwrap();
    first.listener = listener;
    let port = first.port();
    let mut second = first.another();
    second.listener = other;

    let hosts = own_hosts("127.0.0.2 localhost\n");
    let id = GatewayId::random();
    let gateway = Gateway::start(bed::config(&first.pki, id, port), id);
    let mut peer = first.accept(&NEW_SESSION);
    peer.grant();
    gateway.connected();
    // The old address still answers; nobody is to come to it any more.
    fs::write(hosts.path(), "127.0.0.3 localhost\n").unwrap();
    drop(peer);
    gateway.disconnected(SOON);
    second.accept(&NEW_SESSION).grant();
    gateway.connected();
}

#[test]
fn all_addresses_of_a_name_are_tried() {
    let _hosts = own_hosts("127.0.0.4 localhost\n127.0.0.5 localhost\n");
    let mut broker = Hostile::new();
    for address in ["127.0.0.4:0", "127.0.0.5:0"] {
        broker.listener = TcpListener::bind(address).unwrap();
        let gateway = bed::gateway_of(&broker);
        broker.accept(&NEW_SESSION).grant();
        gateway.connected();
    }
}
