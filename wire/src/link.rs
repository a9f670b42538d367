//! The request that opens a link between two members of a cluster, as sans-I/O state machines of
//! both: length-prefixed names, answered by one status byte, as in SOCKS5.
//!
//! A link is a TLS connection from one member to another that carries one connection to a service
//! of the other member, such as etcd or Postgres. It exists so that services without attestation
//! reach each other over attested connections. The member that opens the link sends
//! [`request_link`]'s frame and reads the answer with [`AwaitAnswer`]; the member that accepts it
//! reads the frame with [`AwaitRequest`]. After the answer [`PendingLink::accept`] the bytes in
//! both directions belong to the service.
//!
//! All members prove the same software, so the request also says which of them opens the link and
//! which one is meant, and each side says in which run of its VM's kernel it is ([`BootId`]). Both
//! bind the other's name to its VM, so that no two VMs have one name.
//!
//! It must never interpret a byte of the service, and never name a port or an address: the
//! accepting member alone decides what a service is. Whether the peer is a member is the caller's
//! check, before the request is read.

mod boot_id;
mod names;
mod refusal;

pub use boot_id::{BOOT_ID_LEN, BootId, BootIdError};
pub use names::{MAX_MEMBER_NAME, MAX_SERVICE_NAME, MemberName, NameError, NameKind, ServiceName};
pub use refusal::{LinkError, LinkRefusal};

/// The ALPN protocol of a link. Its number is the version of the frame and the answer.
pub const LINK_ALPN: &[u8] = b"teesql-link/1";

/// Maximum number of bytes that [`AwaitRequest`] needs: the lengths, the longest names and the boot
/// id.
pub const MAX_LINK_REQUEST: usize = 2 * (1 + MAX_MEMBER_NAME) + 1 + MAX_SERVICE_NAME + BOOT_ID_LEN;

/// Maximum number of bytes that [`AwaitAnswer`] needs: the answer that opens the link. A refusal
/// has one byte.
pub const MAX_LINK_ANSWER: usize = 1 + BOOT_ID_LEN;

/// The first byte of the answer that opens the link. All others are in [`LinkRefusal`].
const ACCEPTED: u8 = 0;

/// What the member that opens a link says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkRequest {
    /// The member that opens the link.
    pub from: MemberName,
    /// The member that it means to reach.
    pub to: MemberName,
    /// The service of that member.
    pub service: ServiceName,
    /// The boot id of the member that opens the link.
    pub boot_id: BootId,
}

impl LinkRequest {
    /// Reads a request from the start of `bytes`, and returns what follows; `None` if it is not
    /// complete.
    fn split(bytes: &[u8]) -> Result<Option<(Self, &[u8])>, NameError> {
        let Some((from, rest)) = MemberName::split_prefixed(bytes)? else {
            return Ok(None);
        };
        let Some((to, rest)) = MemberName::split_prefixed(rest)? else {
            return Ok(None);
        };
        let Some((service, rest)) = ServiceName::split_prefixed(rest)? else {
            return Ok(None);
        };
        let Some((boot_id, rest)) = rest.split_first_chunk() else {
            return Ok(None);
        };
        let request = Self {
            from,
            to,
            service,
            boot_id: BootId::new(*boot_id),
        };
        Ok(Some((request, rest)))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        self.from.encode(out);
        self.to.encode(out);
        self.service.encode(out);
        out.extend_from_slice(self.boot_id.as_bytes());
    }
}

/// The state of the accepting member, which has not read the whole request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct AwaitRequest(());

/// What the accepting member does next.
#[derive(Debug, PartialEq, Eq)]
pub enum LinkRequestStep {
    /// Read more bytes and append them. Nothing was consumed.
    Read(AwaitRequest),
    /// Drop `consumed` bytes, check the request, connect to the service, and answer. Bytes after
    /// these belong to the service: forward them if the link is accepted.
    Requested {
        /// The link, which can be accepted. To refuse it, drop it and send a [`LinkRefusal`].
        link: PendingLink,
        /// Length of the frame in bytes.
        consumed: usize,
    },
    /// Send [`NameError::answer`] and close.
    Refuse(NameError),
}

impl AwaitRequest {
    /// Creates the state of a link on which nothing was read.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Processes all bytes read. Never needs more than [`MAX_LINK_REQUEST`] bytes. An invalid
    /// length or byte is refused as soon as it was read.
    #[must_use]
    pub fn advance(self, bytes: &[u8]) -> LinkRequestStep {
        match LinkRequest::split(bytes) {
            Ok(None) => LinkRequestStep::Read(self),
            Ok(Some((request, rest))) => LinkRequestStep::Requested {
                link: PendingLink(request),
                consumed: bytes.len() - rest.len(),
            },
            Err(error) => LinkRequestStep::Refuse(error),
        }
    }
}

/// A link that was requested and not yet answered.
#[must_use = "the other member waits for an answer"]
#[derive(Debug, PartialEq, Eq)]
pub struct PendingLink(LinkRequest);

impl PendingLink {
    /// What was requested. Whether the names are right is the caller's check.
    #[must_use]
    pub fn request(&self) -> &LinkRequest {
        &self.0
    }

    /// Appends the answer that opens the link. `boot_id` is that of the accepting member. The
    /// service's own bytes follow it.
    pub fn accept(self, boot_id: BootId, out: &mut Vec<u8>) {
        out.push(ACCEPTED);
        out.extend_from_slice(boot_id.as_bytes());
    }
}

/// The state of the member that requested a link and has not read the answer.
#[derive(Debug, PartialEq, Eq)]
pub struct AwaitAnswer(());

/// What the member that requested a link does next.
#[derive(Debug, PartialEq, Eq)]
pub enum LinkAnswerStep {
    /// Read more bytes and append them. Nothing was consumed.
    Read(AwaitAnswer),
    /// Drop `consumed` bytes: the link is open. Bytes after these are the service's.
    Opened {
        /// The boot id of the member that has accepted the link.
        boot_id: BootId,
        /// Length of the answer in bytes.
        consumed: usize,
    },
    /// Close. Ignore any bytes after the answer.
    Refuse(LinkError),
}

/// Appends the request for a link.
///
/// Bytes for the service may follow before the answer, but are lost if the link is refused.
#[must_use]
pub fn request_link(request: &LinkRequest, out: &mut Vec<u8>) -> AwaitAnswer {
    request.encode(out);
    AwaitAnswer(())
}

impl AwaitAnswer {
    /// Processes all bytes read. Never needs more than [`MAX_LINK_ANSWER`] bytes. A refusal is
    /// recognized as soon as its byte was read.
    #[must_use]
    pub fn advance(self, bytes: &[u8]) -> LinkAnswerStep {
        let Some((byte, rest)) = bytes.split_first() else {
            return LinkAnswerStep::Read(self);
        };
        match (*byte, LinkRefusal::from_byte(*byte)) {
            (ACCEPTED, _) => match rest.first_chunk() {
                Some(boot_id) => LinkAnswerStep::Opened {
                    boot_id: BootId::new(*boot_id),
                    consumed: MAX_LINK_ANSWER,
                },
                None => LinkAnswerStep::Read(self),
            },
            (_, Some(refusal)) => LinkAnswerStep::Refuse(LinkError::Refused(refusal)),
            (byte, None) => LinkAnswerStep::Refuse(LinkError::UnknownAnswer { byte }),
        }
    }
}
