//! What a link costs in memory. In a process of its own, so that nothing else is measured.

use std::process::Command;
use std::time::Duration;

use coracle::link::{Link, LinkEvent};
use coracle_protocol::GatewayId;
use coracle_testbed::Broker;

use crate::bed::{self, place_and_pki};
use crate::scripted::private_kb;

/// Tells the process of its own what it is.
const ALONE: &str = "CORACLE_LINK_MEMORY";

const LINKS: u64 = 20;

#[test]
fn an_idle_link_costs_less_than_300_kb() {
    if std::env::var_os(ALONE).is_none() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "memory::an_idle_link_costs_less_than_300_kb", "--nocapture"]);
        let output = command.env(ALONE, "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}\n{said}");
        println!("{text}");
        return;
    }
    let (place, pki) = place_and_pki();
    let broker = Broker::start(&place, &pki).unwrap();
    let configs: Vec<_> = (0..=LINKS)
        .map(|_| GatewayId::random())
        .map(|id| (id, bed::config(&pki, id, broker.port())))
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut handles = Vec::new();
        let mut before = 0;
        for (n, (id, config)) in configs.into_iter().enumerate() {
            let (link, handle, mut events) = Link::new(config, id, b"offline".to_vec());
            tokio::spawn(link.run(std::future::pending()));
            handle.set_presence(vec![b'p'; 500]);
            handle.set_reported(vec![b'r'; 2000]);
            let connected = async {
                while !matches!(events.recv().await, Some(LinkEvent::Connected { .. })) {}
            };
            tokio::time::timeout(bed::SOON, connected).await.unwrap();
            tokio::spawn(async move { while events.recv().await.is_some() {} });
            // Until it has published and been idle.
            tokio::time::sleep(Duration::from_millis(300)).await;
            handles.push(handle);
            // The first one brings what all share.
            if n == 0 {
                before = private_kb();
            }
        }
        let after = private_kb();
        let each = after.saturating_sub(before) / LINKS;
        println!("{LINKS} links: {before} kB before, {after} kB after, {each} kB each");
        assert!(each < 300, "{each} kB");
    });
}
