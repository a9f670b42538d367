//! The user of the process at the other end of a Unix socket (SO_PEERCRED).
//!
//! It exists because a path in the file system does not say which process listens on it: in a
//! directory that several users can write to, any of them could have been first. The kernel records
//! the user when the process calls `listen`, and the process cannot change it.

use std::os::fd::AsFd;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::{Uid, User};

/// The user of the process at the other end of a connected Unix socket; `None` if the kernel does
/// not say.
pub(crate) fn peer_uid(socket: &impl AsFd) -> Option<u32> {
    getsockopt(socket, PeerCredentials)
        .ok()
        .map(|peer| peer.uid())
}

/// The users that a listener on a Unix socket may belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedUids(Vec<u32>);

impl AllowedUids {
    /// Only this user.
    #[must_use]
    pub fn only(uid: u32) -> Self {
        Self(vec![uid])
    }

    /// The user named `name`, if this system has one, the user of this process, and root, which can
    /// become either of them.
    #[must_use]
    pub fn own_or(name: &str) -> Self {
        let mut uids = vec![0, Uid::effective().as_raw()];
        uids.extend(Self::uid_of(name));
        Self(uids)
    }

    /// The id of the user named `name`, if this system has one.
    #[must_use]
    pub fn uid_of(name: &str) -> Option<u32> {
        let user = User::from_name(name).ok().flatten();
        user.map(|user| user.uid.as_raw())
    }

    /// Whether a process of this user is allowed. An unknown user is not.
    #[must_use]
    pub fn allows(&self, uid: Option<u32>) -> bool {
        uid.is_some_and(|uid| self.0.contains(&uid))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn the_listener_belongs_to_this_user() {
        let path = std::env::temp_dir().join(format!("teesql-peer-uid-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let stream = UnixStream::connect(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        drop(listener);
        let uid = peer_uid(&stream);
        assert_eq!(uid, Some(Uid::effective().as_raw()));
        assert!(AllowedUids::own_or("nobody").allows(uid));
        assert!(!AllowedUids::only(12_345).allows(uid));
    }

    #[test]
    fn an_unknown_user_is_not_allowed() {
        assert!(!AllowedUids::own_or("nobody").allows(None));
        assert!(!AllowedUids::only(u32::MAX).allows(None));
    }
}
