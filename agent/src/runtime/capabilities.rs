//! Which capabilities(7) a container has.

use coracle_core::desired::Capabilities;
use coracle_core::policy::DEFAULT_CAPABILITIES;
use serde_json::{Value, json};

/// The capabilities of a container: the default ones without the dropped, and the added.
pub(super) fn all(wanted: &Capabilities) -> Vec<&str> {
    let dropped = |name: &str| wanted.drop.iter().any(|drop| drop == "ALL" || drop == name);
    let mut all: Vec<&str> =
        DEFAULT_CAPABILITIES.into_iter().filter(|name| !dropped(name)).collect();
    for name in &wanted.add {
        if !all.contains(&name.as_str()) {
            all.push(name);
        }
    }
    all
}

/// The `process.capabilities` object. What was asked for by name also holds for a user who is not
/// root: without the last two sets it would be lost when the program is executed.
pub(super) fn sets(wanted: &Capabilities) -> Value {
    let all = all(wanted);
    let mut sets = json!({ "bounding": all, "effective": all, "permitted": all });
    if !wanted.add.is_empty() {
        sets["inheritable"] = json!(wanted.add);
        sets["ambient"] = json!(wanted.add);
    }
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(add: &[&str], drop: &[&str], wanted: &[&str]) {
        let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let capabilities = Capabilities { add: list(add), drop: list(drop) };
        assert_eq!(all(&capabilities), wanted, "add {add:?}, drop {drop:?}");
    }

    #[test]
    fn first_what_is_dropped_then_what_is_added() {
        check(&[], &[], &DEFAULT_CAPABILITIES);
        check(&[], &["ALL"], &[]);
        check(&["CAP_KILL"], &["ALL"], &["CAP_KILL"]);
        check(&["CAP_NET_ADMIN", "CAP_KILL"], &["CAP_CHOWN"], &{
            let mut wanted = DEFAULT_CAPABILITIES[1..].to_vec();
            wanted.push("CAP_NET_ADMIN");
            wanted
        });
    }

    #[test]
    fn only_what_is_asked_for_by_name_is_ambient() {
        assert!(sets(&Capabilities::default())["ambient"].is_null());
        let wanted = Capabilities { add: vec!["CAP_SYS_TIME".into()], drop: vec!["ALL".into()] };
        let made = sets(&wanted);
        for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
            assert_eq!(made[set], json!(["CAP_SYS_TIME"]), "{set}");
        }
    }
}
