//! Why a link is not opened: the answers of the accepting member, and the errors of the opening one.

/// Why a member refuses a link. The answer is one byte, after which the member closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkRefusal {
    /// The member has no service of this name, or what was sent is not a request.
    #[error("the member has no service of this name")]
    UnknownService,
    /// The peer is attested, but the member policy does not admit it. Independent of the request,
    /// so that only members learn which services there are.
    #[error("the member policy does not admit this peer")]
    NotAMember,
    /// The service does not accept a connection.
    #[error("the service does not accept connections")]
    ServiceUnreachable,
    /// The limit on links is reached.
    #[error("the member has too many links")]
    TooManyLinks,
    /// The member is shutting down.
    #[error("the member is shutting down")]
    Draining,
    /// The member cannot verify peers yet: it waits for its own evidence, or for collateral.
    #[error("the member cannot verify its peers yet")]
    NotReady,
    /// The request names another member than the one that reads it.
    #[error("the request is for another member")]
    WrongMember,
    /// The name by which the peer calls itself belongs to another VM, or the peer's VM has another
    /// name.
    #[error("the name of the opening member belongs to another VM")]
    MemberConflict,
}

impl LinkRefusal {
    /// All refusals.
    pub const ALL: [Self; 8] = [
        Self::UnknownService,
        Self::NotAMember,
        Self::ServiceUnreachable,
        Self::TooManyLinks,
        Self::Draining,
        Self::NotReady,
        Self::WrongMember,
        Self::MemberConflict,
    ];

    /// Parses an answer; `None` if it is not a refusal of this version.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|refusal| refusal.to_byte() == byte)
    }

    /// The answer on the wire. A byte must never get another meaning.
    #[must_use]
    pub fn to_byte(self) -> u8 {
        match self {
            Self::UnknownService => 1,
            Self::NotAMember => 2,
            Self::ServiceUnreachable => 3,
            Self::TooManyLinks => 4,
            Self::Draining => 5,
            Self::NotReady => 6,
            Self::WrongMember => 7,
            Self::MemberConflict => 8,
        }
    }

    /// Appends the answer. Allowed at any time before the link is accepted, also before the
    /// request has been read. Close the connection once it is sent.
    pub fn encode(self, out: &mut Vec<u8>) {
        out.push(self.to_byte());
    }

    /// The reason code for log and metric, the same on both members: stable, in snake case.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::UnknownService => "link_unknown_service",
            Self::NotAMember => "link_not_a_member",
            Self::ServiceUnreachable => "link_service_unreachable",
            Self::TooManyLinks => "link_too_many",
            Self::Draining => "link_draining",
            Self::NotReady => "link_not_ready",
            Self::WrongMember => "link_wrong_member",
            Self::MemberConflict => "link_member_conflict",
        }
    }
}

/// Why a link that this member requested was not opened. The other member is at fault, or the
/// configuration of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The other member refused it.
    #[error("the link was refused: {0}")]
    Refused(LinkRefusal),
    /// An answer that is not in the list of this version.
    #[error("the link was answered with the unknown byte {byte:#04x}")]
    UnknownAnswer {
        /// The answer.
        byte: u8,
    },
    /// The other member closed the connection before it had answered. Created by the caller, which
    /// owns the connection.
    #[error("the other member closed the connection before it answered")]
    EarlyEof,
}

impl LinkError {
    /// The reason code for log and metric: stable, in snake case.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::UnknownAnswer { .. } => "link_unknown_answer",
            Self::EarlyEof => "link_early_eof",
        }
    }
}
