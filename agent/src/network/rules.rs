//! Rules of the packet filter that a plugin left behind when it was killed, told by the marks that
//! the plugins put on them. In the ordinary case the plugins take back their rules themselves.
//!
//! `bridge` and `portmap` write the id of the pod into comments and, hashed, into names of chains;
//! `firewall` writes the pod's address into its chain.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;

use ring::digest::{SHA512, digest};

use super::process::{self, OUTPUT_LIMIT, TIME_LIMIT, find};
use crate::fault::fault_point;

/// Most that is read of the rules of a gateway, in bytes.
const RULES_LIMIT: usize = 64 * OUTPUT_LIMIT;

/// The chain of the firewall plugin.
const FORWARD: &str = "CNI-FORWARD";

/// Whose rules are to go.
#[derive(Debug, Default)]
pub(super) struct Gone {
    /// Pods of which everything goes: those whose id begins like this and is not in `living`.
    pub(super) prefix: Option<String>,
    /// Pods whose rules stay.
    pub(super) living: BTreeSet<String>,
    /// Chains of their own.
    pub(super) chains: BTreeSet<String>,
    /// Addresses that nobody has.
    pub(super) addresses: BTreeSet<IpAddr>,
}

/// The chains that `bridge` (masquerading) and `portmap` make for one pod.
pub(super) fn chains(network: &str, id: &str) -> [String; 2] {
    const LENGTH: usize = 28;
    let hash = digest(&SHA512, format!("{network}{id}").as_bytes());
    let hex = hash.as_ref().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    });
    ["CNI-", "CNI-DN-"].map(|prefix| format!("{prefix}{hex}")[..LENGTH].to_owned())
}

/// Removes what is gone from the rules of both families.
///
/// # Errors
/// A program is there and fails; what is not there has no rules.
pub(super) async fn remove(gone: &Gone) -> io::Result<()> {
    for family in ["iptables", "ip6tables"] {
        let (Some(save), Some(restore)) =
            (find(&format!("{family}-save")), find(&format!("{family}-restore")))
        else {
            continue;
        };
        let rules = call(&save, &[], Stdio::null()).await?;
        let script = script(&String::from_utf8_lossy(&rules), gone);
        fault_point("rules.read");
        if !script.is_empty() {
            let input = process::input_of(script.as_bytes())?;
            call(&restore, &["--noflush", "--wait"], input).await?;
            fault_point("rules.removed");
        }
    }
    Ok(())
}

async fn call(program: &Path, arguments: &[&str], input: Stdio) -> io::Result<Vec<u8>> {
    let none: [(&str, &str); 0] = [];
    let said = process::run(program, arguments, &none, input, (TIME_LIMIT, RULES_LIMIT)).await?;
    if said.status.success() {
        return Ok(said.out);
    }
    let words = String::from_utf8_lossy(&said.err);
    Err(io::Error::other(format!("{} failed: {}", program.display(), words.trim())))
}

/// What `iptables-restore --noflush` is to do, given what `iptables-save` says; empty if nothing.
fn script(rules: &str, gone: &Gone) -> String {
    let mut script = String::new();
    for table in rules.split("\n*").map(|table| table.trim_start_matches('*')) {
        let name = table.lines().find(|line| !line.starts_with('#') && !line.is_empty());
        // The first part may be comments alone.
        let Some(name) = name.filter(|name| !name.contains(' ')) else { continue };
        let (mut jumps, mut chains) = (String::new(), BTreeSet::new());
        for line in table.lines() {
            if let Some(chain) = line.strip_prefix(':').and_then(|line| line.split(' ').next()) {
                if gone.chains.contains(chain) {
                    chains.insert(chain);
                }
            } else if let Some(rule) = line.strip_prefix("-A ").filter(|rule| gone.has(rule)) {
                writeln!(jumps, "-D {rule}").expect("a string takes everything");
                chains.extend(own_chain(rule));
            }
        }
        if jumps.is_empty() && chains.is_empty() {
            continue;
        }
        writeln!(script, "*{name}").expect("a string takes everything");
        script.push_str(&jumps);
        for action in ["-F", "-X"] {
            for chain in &chains {
                writeln!(script, "{action} {chain}").expect("a string takes everything");
            }
        }
        script.push_str("COMMIT\n");
    }
    script
}

impl Gone {
    /// Whether a rule, without its `-A`, is of what is gone.
    fn has(&self, rule: &str) -> bool {
        if let Some(id) = id_in(rule) {
            let ours = self.prefix.as_ref().is_some_and(|prefix| id.starts_with(prefix));
            return ours && !self.living.contains(id);
        }
        let mut words = rule.split(' ');
        if words.next() == Some(FORWARD) {
            let host = |word: &str| word.split_once('/')?.0.parse::<IpAddr>().ok();
            return words.filter_map(host).any(|address| self.addresses.contains(&address));
        }
        // A jump to a chain of a pod's own, without a comment.
        rule.rsplit_once("-j ").is_some_and(|(_, target)| self.chains.contains(target))
    }
}

/// The pod that a comment names: `name: \"NETWORK\" id: \"ID\"`.
fn id_in(rule: &str) -> Option<&str> {
    let (_, after) = rule.split_once("id: \\\"")?;
    Some(after.split_once("\\\"")?.0)
}

/// The chain of its own that a pod's rule leads to.
fn own_chain(rule: &str) -> Option<&str> {
    let (_, target) = rule.rsplit_once("-j ")?;
    let hash = target.strip_prefix("CNI-DN-").or_else(|| target.strip_prefix("CNI-"))?;
    hash.bytes().all(|b| b.is_ascii_hexdigit()).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = r#"# Generated by iptables-save
*filter
:FORWARD ACCEPT [0:0]
:CNI-FORWARD - [0:0]
-A FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD
-A CNI-FORWARD -d 10.88.0.2/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A CNI-FORWARD -s 10.88.0.2/32 -j ACCEPT
-A CNI-FORWARD -s 10.88.0.3/32 -j ACCEPT
COMMIT
# Completed
# Generated by iptables-save
*nat
:CNI-0a0a0a0a0a0a0a0a0a0a0a0a - [0:0]
:CNI-DN-0a0a0a0a0a0a0a0a0a0a0 - [0:0]
:CNI-DN-ffffffffffffffffffff0 - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
-A POSTROUTING -s 10.88.0.2/32 -m comment --comment "name: \"coracle\" id: \"c.web.0\"" -j CNI-0a0a0a0a0a0a0a0a0a0a0a0a
-A POSTROUTING -s 10.88.0.3/32 -m comment --comment "name: \"coracle\" id: \"c.db.0\"" -j CNI-0b0b0b0b0b0b0b0b0b0b0b0b
-A POSTROUTING -s 10.4.0.3/32 -m comment --comment "name: \"podman\" id: \"123\"" -j CNI-0c0c0c0c0c0c0c0c0c0c0c0c
-A CNI-0a0a0a0a0a0a0a0a0a0a0a0a -d 10.88.0.0/16 -m comment --comment "name: \"coracle\" id: \"c.web.0\"" -j ACCEPT
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"coracle\" id: \"c.web.0\"" -m multiport --dports 80 -j CNI-DN-0a0a0a0a0a0a0a0a0a0a0
COMMIT
"#;

    #[test]
    fn rules_of_the_dead_go_and_all_others_stay() {
        let gone = Gone {
            prefix: Some("c.".into()),
            living: ["c.db.0".to_owned()].into(),
            chains: ["CNI-DN-ffffffffffffffffffff0".to_owned()].into(),
            addresses: ["10.88.0.2".parse().unwrap()].into(),
        };
        let expected = r#"*filter
-D CNI-FORWARD -d 10.88.0.2/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-D CNI-FORWARD -s 10.88.0.2/32 -j ACCEPT
COMMIT
*nat
-D POSTROUTING -s 10.88.0.2/32 -m comment --comment "name: \"coracle\" id: \"c.web.0\"" -j CNI-0a0a0a0a0a0a0a0a0a0a0a0a
-D CNI-0a0a0a0a0a0a0a0a0a0a0a0a -d 10.88.0.0/16 -m comment --comment "name: \"coracle\" id: \"c.web.0\"" -j ACCEPT
-D CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"coracle\" id: \"c.web.0\"" -m multiport --dports 80 -j CNI-DN-0a0a0a0a0a0a0a0a0a0a0
-F CNI-0a0a0a0a0a0a0a0a0a0a0a0a
-F CNI-DN-0a0a0a0a0a0a0a0a0a0a0
-F CNI-DN-ffffffffffffffffffff0
-X CNI-0a0a0a0a0a0a0a0a0a0a0a0a
-X CNI-DN-0a0a0a0a0a0a0a0a0a0a0
-X CNI-DN-ffffffffffffffffffff0
COMMIT
"#;
        assert_eq!(script(RULES, &gone), expected);
    }

    #[test]
    fn nothing_is_done_where_nothing_is_left() {
        let gone = Gone { prefix: Some("other.".into()), ..Gone::default() };
        assert_eq!(script(RULES, &gone), "");
        assert_eq!(script("", &gone), "");
    }
}
