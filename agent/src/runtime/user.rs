//! Who a container runs as: `USER[:GROUP]`, by number or by the image's own names.
//!
//! In: the text, and the image's `/etc/passwd` and `/etc/group` (formats: passwd(5), group(5)).
//! Out: ids. Lines that are not well-formed are passed over, as the C library does.

use super::error::ImageProblem;
use super::native::NOBODY;

pub(super) const PASSWD: &str = "/etc/passwd";
pub(super) const GROUP: &str = "/etc/group";

/// Of users of the gateway that have no group.
const NOGROUP: u32 = 65534;

/// Most supplementary groups that are given.
const GROUPS_LIMIT: usize = 64;

/// Whom a process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ids {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups, sorted, with the primary one.
    pub(super) groups: Vec<u32>,
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

/// Resolves `wanted` (empty for root) against the two files; a file that the image lacks is empty.
/// A number needs no entry. Without `:GROUP` the user's own groups are given, with it only that one.
///
/// # Errors
/// A name that the files do not have.
pub(super) fn resolve(wanted: &str, passwd: &str, group: &str) -> Result<Ids, ImageProblem> {
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    let entry = users(passwd).find(|entry| match number {
        Some(uid) => entry.uid == uid,
        None => entry.name == user,
    });
    let unknown =
        |kind, name: &str, file| Err(ImageProblem::Unknown { kind, name: name.to_owned(), file });
    let (uid, own_gid) = match (&entry, number) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => return unknown("user", user, PASSWD),
    };
    if let Some(name) = wanted_group {
        let by_name = || groups(group).find(|(known, _, _)| *known == name).map(|(_, gid, _)| gid);
        let Some(gid) = name.parse().ok().or_else(by_name) else {
            return unknown("group", name, GROUP);
        };
        return Ok(Ids { uid, gid, groups: vec![gid] });
    }
    let name = entry.map(|entry| entry.name);
    let member = |members: &str| members.split(',').any(|member| Some(member) == name);
    let named = groups(group).filter(|(_, _, members)| member(members)).map(|(_, gid, _)| gid);
    let mut groups: Vec<u32> = [own_gid].into_iter().chain(named.take(GROUPS_LIMIT)).collect();
    groups.sort_unstable();
    groups.dedup();
    Ok(Ids { uid, gid: own_gid, groups })
}

/// Resolves a user of the gateway itself.
///
/// # Errors
/// A name that the gateway does not have, or its files cannot be read.
pub(super) fn of_gateway(wanted: &str) -> Result<Ids, ImageProblem> {
    let read = |file: &'static str| match std::fs::read_to_string(file) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(ImageProblem::File { file, source }),
    };
    let mut ids = resolve(wanted, &read(PASSWD)?, &read(GROUP)?)?;
    // A number that the gateway does not know is not to be in root's group.
    if ids.uid != 0 && ids.gid == 0 && !wanted.contains(':') {
        (ids.gid, ids.groups) = (NOGROUP, vec![NOGROUP]);
    }
    Ok(ids)
}

/// User and group ids of whom a native service runs as, which its runtime directory belongs to.
///
/// # Errors
/// A name that the gateway does not have, or its files cannot be read.
pub fn native_owner(user: Option<&str>) -> Result<(u32, u32), ImageProblem> {
    let ids = of_gateway(user.unwrap_or(NOBODY))?;
    Ok((ids.uid, ids.gid))
}

fn users(passwd: &str) -> impl Iterator<Item = User<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(User { name, uid, gid })
    })
}

/// Name, id and members of each group.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        broken\n\
        keeper:x:1234:4321::/home/keeper:/bin/sh\n\
        web:x:33:33::/:/bin/false\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,keeper\nextra:x:777:keeper\nbad:x:nan:keeper\n\
        web:x:33:\nadm:x:4:notkeeper\n";

    fn check(wanted: &str, uid: u32, gid: u32, groups: &[u32]) {
        let ids = resolve(wanted, PASSWD, GROUP).unwrap();
        assert_eq!(ids, Ids { uid, gid, groups: groups.to_vec() }, "{wanted}");
    }

    #[test]
    fn users_by_name_and_number() {
        check("", 0, 0, &[0, 10]);
        check("root", 0, 0, &[0, 10]);
        check("keeper", 1234, 4321, &[10, 777, 4321]);
        check("1234", 1234, 4321, &[10, 777, 4321]);
        check("1234:", 1234, 4321, &[10, 777, 4321]);
        check("5000", 5000, 0, &[0]);
        check("keeper:web", 1234, 33, &[33]);
        check("keeper:12", 1234, 12, &[12]);
        check("5000:6000", 5000, 6000, &[6000]);
        check(":web", 0, 33, &[33]);
    }

    #[test]
    fn names_that_the_image_lacks_are_refused() {
        let error = resolve("ghost", PASSWD, GROUP).unwrap_err();
        assert!(error.to_string().contains("no user \"ghost\" in /etc/passwd"), "{error}");
        let error = resolve("web:ghosts", PASSWD, GROUP).unwrap_err();
        assert!(error.to_string().contains("no group \"ghosts\" in /etc/group"), "{error}");
        assert!(resolve("-1", PASSWD, GROUP).is_err());
        assert!(resolve("4294967296", PASSWD, GROUP).is_err());
    }

    #[test]
    fn an_image_without_the_files_runs_numbers() {
        assert_eq!(resolve("7", "", "").unwrap(), Ids { uid: 7, gid: 0, groups: vec![0] });
        assert_eq!(resolve("", "", "").unwrap(), Ids { uid: 0, gid: 0, groups: vec![0] });
    }
}
