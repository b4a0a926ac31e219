//! Updates while connections are open and new ones come.

use coracle_core::traffic::Traffic;

use super::host::{on_a_host, wait};
use super::peers::{GATEWAY, LOOPBACK, Load, Machine, OUTSIDE, Server, traffic, web};
use super::share::http;
use coracle::network::Networks;

/// Connections from everywhere, a hundred of which stay.
fn load(far: &Machine, server: &Server) -> Load {
    let mut load = Load::default();
    load.long(Some(&far.netns), OUTSIDE, 60);
    load.long(None, LOOPBACK, 20);
    load.long(Some(server.netns()), GATEWAY, 20);
    load.short(Some(&far.netns), OUTSIDE);
    load.short(None, LOOPBACK);
    load.short(None, OUTSIDE);
    load.short(Some(server.netns()), GATEWAY);
    load
}

/// Moves connections from the old replicas to new ones, one by one.
async fn replace(networks: &Networks, load: &Load, old: Vec<Server>, first: u32) -> Vec<Server> {
    let mut all = old;
    for index in first..first + 3 {
        all.push(Server::start(networks, &web(index, http())).await);
        networks.share(&traffic(&all)).await.unwrap();
        load.goes_on(300, 100);
        let old = all.remove(0);
        networks.withdraw(&old.replica).await.unwrap();
        networks.share(&traffic(&all)).await.unwrap();
        // Open connections stay, although no new one comes.
        load.goes_on(300, 100);
        load.leave(&old);
        old.is_left_by_all();
        networks.remove(&old.replica).await.unwrap();
        drop(old);
        load.stay();
        load.goes_on(300, 100);
    }
    all
}

#[test]
fn an_update_and_its_rollback_cost_no_connection() {
    on_a_host(|host| {
        let before = host.used();
        let far = Machine::plug_in();
        let networks = host.networks();
        wait(async {
            let client = Server::start(&networks, &web(99, http())).await;
            let mut servers = Vec::new();
            for index in 0..3 {
                servers.push(Server::start(&networks, &web(index, http())).await);
            }
            networks.share(&traffic(&servers)).await.unwrap();
            let load = load(&far, &client);
            load.goes_on(300, 100);
            servers = replace(&networks, &load, servers, 3).await;
            servers = replace(&networks, &load, servers, 0).await;
            let (answers, connections) = load.end();
            println!("{answers} answers on 100 long connections, {connections} short ones");
            assert!(connections > 2000, "only {connections} short connections");
            servers.push(client);
            for server in servers {
                networks.remove(&server.replica).await.unwrap();
            }
            networks.share(&Traffic::default()).await.unwrap();
        });
        far.unplug();
        host.comes_back_to(&before, "all removed");
    });
}

#[test]
fn an_agent_that_comes_back_goes_on_with_what_is_shared_out() {
    on_a_host(|host| {
        let far = Machine::plug_in();
        let networks = host.networks();
        wait(async {
            networks.sweep().await;
            let client = Server::start(&networks, &web(99, http())).await;
            let mut servers = Vec::new();
            for index in 0..3 {
                servers.push(Server::start(&networks, &web(index, http())).await);
            }
            networks.share(&traffic(&servers)).await.unwrap();
            let load = load(&far, &client);
            load.goes_on(300, 100);
            for _ in 0..5 {
                let again = host.networks();
                again.sweep().await;
                load.goes_on(100, 50);
                again.share(&traffic(&servers)).await.unwrap();
                load.goes_on(100, 50);
            }
            let again = host.networks();
            again.sweep().await;
            again.share(&traffic(&servers)).await.unwrap();
            servers = replace(&again, &load, servers, 3).await;
            load.end();
            drop(servers);
        });
    });
}

#[test]
fn rules_may_change_at_any_moment() {
    on_a_host(|host| {
        let far = Machine::plug_in();
        let networks = host.networks();
        wait(async {
            let mut servers = Vec::new();
            for index in 0..4 {
                servers.push(Server::start(&networks, &web(index, http())).await);
            }
            networks.share(&traffic(&servers)).await.unwrap();
            let mut load = Load::default();
            load.short(Some(&far.netns), OUTSIDE);
            load.short(None, LOOPBACK);
            load.goes_on(0, 100);
            for round in 0..300 {
                // Never the same ones as before.
                networks.share(&traffic(&servers[round % 4..])).await.unwrap();
            }
            load.goes_on(0, 100);
            load.end();
        });
    });
}
