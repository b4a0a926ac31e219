//! Who may do what. In: the peer's user and group ids, as the kernel tells them. Out: [`Rights`].

use std::ffi::CString;
use std::io;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist, getuid};
use tokio::net::unix::UCred;

use super::ApiError;
use crate::config::ApiConfig;

/// What a peer may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Everything.
    Full,
    /// Reading.
    Read,
    /// Nothing.
    None,
}

/// What a peer may do, and what is said of who may do more: each goes on with "may".
#[derive(Clone, Copy, Debug)]
pub(super) struct Rights {
    pub(super) access: Access,
    pub(super) changers: &'static str,
    pub(super) readers: &'static str,
}

/// Fixed at start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    own: Uid,
    /// Whose members may do everything.
    admins: Option<Gid>,
    /// Whose members may read.
    readers: Option<Gid>,
}

impl Rules {
    pub(super) fn new(config: &ApiConfig) -> Result<Self, ApiError> {
        let admins = find_group("api.admin_group", config.admin_group.as_deref())?;
        let readers = find_group("api.group", config.group.as_deref())?;
        Ok(Self { own: getuid(), admins, readers })
    }

    /// Nobody but root and our own user gets in.
    pub(super) fn without_groups() -> Self {
        Self { own: getuid(), admins: None, readers: None }
    }

    /// Who the socket is open to.
    pub(super) fn fence(&self) -> Fence {
        match (self.admins, self.readers) {
            (None, None) => Fence::OwnUser,
            (Some(group), None) | (None, Some(group)) => Fence::Group(group),
            (Some(one), Some(other)) if one == other => Fence::Group(one),
            (Some(_), Some(_)) => Fence::Open,
        }
    }

    /// Root and our own user, as can be told without looking up anything.
    pub(super) fn may_do_everything(&self, uid: u32) -> bool {
        uid == 0 || uid == self.own.as_raw()
    }

    /// Looks up the groups of everybody but root in a thread of its own, because a machine may keep
    /// them where that takes long.
    pub(super) async fn judge(self, peer: UCred) -> Rights {
        self.rights(self.access(peer).await)
    }

    async fn access(self, peer: UCred) -> Access {
        if self.may_do_everything(peer.uid()) {
            return Access::Full;
        }
        let by_group = |is_in: &dyn Fn(Gid) -> bool| {
            if self.admins.is_some_and(is_in) {
                Access::Full
            } else if self.readers.is_some_and(is_in) {
                Access::Read
            } else {
                Access::None
            }
        };
        let own = Gid::from_raw(peer.gid());
        let access = by_group(&|group| group == own);
        // Another of its groups may give more.
        if access == Access::Full || (self.admins.is_none() && access != Access::None) {
            return access;
        }
        if self.admins.is_none() && self.readers.is_none() {
            return Access::None;
        }
        let uid = Uid::from_raw(peer.uid());
        match tokio::task::spawn_blocking(move || groups_of(uid)).await {
            Ok(Ok(groups)) => by_group(&|group| group == own || groups.contains(&group)),
            Ok(Err(error)) => {
                tracing::warn!(%uid, %error, "cannot look up the groups of an API user");
                access
            }
            Err(error) => {
                tracing::error!(%error, "the look-up of an API user broke off");
                access
            }
        }
    }

    fn rights(self, access: Access) -> Rights {
        let (changers, readers) = if self.admins.is_some() {
            (
                "only root, the agent's own user and members of api.admin_group",
                "only root, the agent's own user and members of api.admin_group and api.group",
            )
        } else {
            (
                "only root and the agent's own user",
                "only root, the agent's own user and members of api.group",
            )
        };
        Rights { access, changers, readers }
    }
}

/// Who gets past the mode of the socket in the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fence {
    /// Root and our own user.
    OwnUser,
    /// Members of this group as well.
    Group(Gid),
    /// Everybody: a file has one group only, and two are to be let in. What one may do is judged
    /// for each connection all the same.
    Open,
}

fn find_group(setting: &'static str, name: Option<&str>) -> Result<Option<Gid>, ApiError> {
    let Some(name) = name else { return Ok(None) };
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(Some(group.gid)),
        Ok(None) => Err(ApiError::UnknownGroup { setting, name: name.to_owned() }),
        Err(error) => Err(ApiError::Group { name: name.to_owned(), source: error.into() }),
    }
}

fn groups_of(uid: Uid) -> io::Result<Vec<Gid>> {
    let Some(user) = User::from_uid(uid)? else { return Ok(Vec::new()) };
    let name = CString::new(user.name).map_err(io::Error::other)?;
    Ok(getgrouplist(&name, user.gid)?)
}
