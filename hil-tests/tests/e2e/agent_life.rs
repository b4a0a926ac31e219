//! The agent ends, starts, and meets itself.

use std::time::Duration;

use super::{SOON, gateway_running, pids, sigkill, tasks};

#[test]
fn restarting_the_agent_restarts_nothing() {
    let (mut gateway, before) = gateway_running(&["one", "two", "three"]);
    let tasks_before = tasks(&gateway);
    let ended = gateway.stop_agent().unwrap();
    assert!(ended.success(), "SIGTERM: {ended}");
    gateway.start_agent().unwrap();
    assert_eq!(pids(&mut gateway, 1, &["one", "two", "three"]), before, "after SIGTERM");
    gateway.kill_agent().unwrap();
    gateway.start_agent().unwrap();
    assert_eq!(pids(&mut gateway, 1, &["one", "two", "three"]), before, "after SIGKILL");
    assert_eq!(tasks(&gateway), tasks_before);
}

#[test]
fn what_ended_while_the_agent_was_down_is_started_and_the_rest_left_alone() {
    let (mut gateway, before) = gateway_running(&["one", "two"]);
    gateway.kill_agent().unwrap();
    sigkill(before[0]);
    gateway.start_agent().unwrap();
    gateway.wait_replaced("one", before[0]).unwrap();
    let status = gateway.wait_converged(1).unwrap();
    assert_eq!(status.pid("two"), Some(before[1]));
    assert_eq!(status.replica("one").unwrap().restarts, 1);
}

#[test]
fn a_second_agent_on_the_same_state_or_socket_is_refused_and_the_first_goes_on() {
    let (mut gateway, before) = gateway_running(&["one"]);
    let text = gateway.configuration();
    let path = |path: &std::path::Path| path.display().to_string();
    let (state, socket) = (path(&gateway.state_dir), path(&gateway.socket()));
    let others = [
        ("same-state", text.replace(&socket, &format!("{socket}.other"))),
        ("same-socket", text.replace(&state, &format!("{state}.other"))),
    ];
    for (name, text) in others {
        // A second link would only push the first one out.
        let text = match text.split_once("\n[link]") {
            Some((head, tail)) => match tail.split_once("\n[[") {
                Some((_, rest)) => format!("{head}\n[[{rest}"),
                None => head.to_owned(),
            },
            None => text,
        };
        let config = gateway.place().run().join(format!("{name}.toml"));
        std::fs::write(&config, text).unwrap();
        let command = gateway.agent_command(&config).unwrap();
        let mut second = gateway.place().spawn(name, &command).unwrap();
        let ended = second.wait(Duration::from_secs(20)).unwrap();
        assert_eq!(ended.code(), Some(1), "{name}: {}", second.log());
        let log = second.log().to_lowercase();
        let named = if name == "same-state" { &state } else { &socket };
        assert!(log.contains("another") && log.contains(&named.to_lowercase()), "{name}: {log}");
    }
    gateway.wait("the first", SOON, |status| (status.pid("one") == Some(before[0])).then_some(()))
        .unwrap();
}
