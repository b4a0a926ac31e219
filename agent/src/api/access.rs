//! Who may do what. In: the peer's user and group ids, as the kernel tells them. Out: [`Access`].

use std::ffi::CString;
use std::io;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist, getuid};
use tokio::net::unix::UCred;

use super::ApiError;

/// What a peer may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Everything: root and the agent's own user.
    Full,
    /// Reading: members of `api.group`.
    Read,
    /// Nothing.
    None,
}

/// Fixed at start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    own: Uid,
    group: Option<Gid>,
}

impl Rules {
    pub(super) fn new(group: Option<&str>) -> Result<Self, ApiError> {
        let group = group.map(find_group).transpose()?;
        Ok(Self { own: getuid(), group })
    }

    /// Nobody but root and our own user gets in.
    pub(super) fn without_readers() -> Self {
        Self { own: getuid(), group: None }
    }

    /// Whose members may read.
    pub(super) fn group(&self) -> Option<Gid> {
        self.group
    }

    pub(super) fn may_do_everything(&self, uid: u32) -> bool {
        uid == 0 || uid == self.own.as_raw()
    }

    /// Looks up the groups of everybody but root in a thread of its own, because a machine may keep
    /// them where that takes long.
    pub(super) async fn judge(self, peer: UCred) -> Access {
        if self.may_do_everything(peer.uid()) {
            return Access::Full;
        }
        let Some(group) = self.group else { return Access::None };
        if peer.gid() == group.as_raw() {
            return Access::Read;
        }
        let uid = Uid::from_raw(peer.uid());
        match tokio::task::spawn_blocking(move || is_member(uid, group)).await {
            Ok(Ok(true)) => Access::Read,
            Ok(Ok(false)) => Access::None,
            Ok(Err(error)) => {
                tracing::warn!(%uid, %error, "cannot look up the groups of an API user");
                Access::None
            }
            Err(error) => {
                tracing::error!(%error, "the look-up of an API user broke off");
                Access::None
            }
        }
    }
}

fn find_group(name: &str) -> Result<Gid, ApiError> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) => Err(ApiError::UnknownGroup(name.to_owned())),
        Err(error) => Err(ApiError::Group { name: name.to_owned(), source: error.into() }),
    }
}

fn is_member(uid: Uid, group: Gid) -> io::Result<bool> {
    let Some(user) = User::from_uid(uid)? else { return Ok(false) };
    let name = CString::new(user.name).map_err(io::Error::other)?;
    Ok(getgrouplist(&name, user.gid)?.contains(&group))
}
