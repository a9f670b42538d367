//! What is known about a link, collected while it is served: for the access log, the audit log and the metrics.

use std::sync::Arc;

use attest::values::InstanceId;
use wire::link::ServiceName;

/// Which side of a link this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LinkDirection {
    /// Another member has opened it.
    Accepted,
    /// This member has opened it for a local connection.
    Opened,
}

impl LinkDirection {
    pub(crate) const ALL: [Self; 2] = [Self::Accepted, Self::Opened];

    /// The value of the label `direction`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Opened => "opened",
        }
    }
}

/// A link, as far as it is known.
#[derive(Clone, Debug)]
pub(crate) struct LinkInfo {
    pub(crate) direction: LinkDirection,
    /// The name of the other member, if `cluster_members` has it: the one that the link is opened to, or once it is bound
    /// to the instance, the one that opens the link.
    pub(crate) member: Option<Arc<str>>,
    /// The instance id that the other member proves.
    pub(crate) instance: Option<InstanceId>,
    /// The service, once it is known that there is one of this name.
    pub(crate) service: Option<ServiceName>,
}

impl LinkInfo {
    /// A link that another member opens.
    pub(crate) fn accepted() -> Self {
        Self {
            direction: LinkDirection::Accepted,
            member: None,
            instance: None,
            service: None,
        }
    }

    /// A link to `service` of `member`.
    pub(crate) fn opened(member: Arc<str>, service: ServiceName) -> Self {
        Self {
            direction: LinkDirection::Opened,
            member: Some(member),
            instance: None,
            service: Some(service),
        }
    }
}
