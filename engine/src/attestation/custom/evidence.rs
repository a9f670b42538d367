//! What an application sees of a server: certificates, quote and claims, as texts.

use attest::certificate::Leaf;
use attest::chain::Chain;
use attest::event_log::Identity;
use attest::evidence::UnboundEvidence;
use attest::quote::TdQuote;
use attest::verify::Appraisal;
use attest::{AttestedPeer, BoundEvidence, Denial};

/// What a server presents: certificates, and a quote that is bound to the key of the first.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Evidence {
    /// The TDX quote.
    pub quote: Vec<u8>,
    /// The certificates in DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// What the quote and its event log say. Of a verifier instead of DCAP they are not verified yet, and there is no TCB
    /// status.
    pub claims: Claims,
}

impl Evidence {
    /// # Errors
    /// None: the chain has been parsed before.
    pub(super) fn of_peer(peer: &AttestedPeer) -> Result<Self, Denial> {
        let certificates = peer.chain().certificates();
        let leaf = certificates.first().ok_or(Denial::NoCertificate)?;
        let leaf = Leaf::parse(leaf)?;
        let evidence = UnboundEvidence::from_extensions(leaf.extensions())?;
        let claims = Claims::of_peer(peer, evidence.quote());
        Ok(Self {
            quote: evidence.quote().as_bytes().to_vec(),
            chain: copy(peer.chain()),
            claims,
        })
    }

    pub(super) fn of_bound(evidence: &BoundEvidence) -> Self {
        let quote = evidence.quote();
        // What the event log does not prove is left out: the policy refuses it afterwards.
        let identity = evidence.events().prove(quote.report().rtmr3());
        Self {
            quote: quote.as_bytes().to_vec(),
            chain: copy(evidence.chain()),
            claims: Claims::of_quote(quote).with_identity(&identity.unwrap_or_default()),
        }
    }
}

fn copy(chain: &Chain) -> Vec<Vec<u8>> {
    let certificates = chain.certificates().iter();
    certificates.map(|der| der.to_vec()).collect()
}

/// What a TDX quote, and an event log if there is one, say. All values are lower-case hex.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claims {
    /// MRTD.
    pub mrtd: String,
    /// RTMR0 to RTMR3.
    pub rtmr: [String; 4],
    /// The report data.
    pub report_data: String,
    /// Whether the TD is in debug mode.
    pub is_debug: bool,
    /// The TCB status, in Intel's spelling; `None` if the quote's signatures were not verified.
    pub tcb_status: Option<String>,
    /// Intel's advisories that the platform is subject to.
    pub advisories: Vec<String>,
    /// The app id, if the event log proves one. The same holds for all that follow.
    pub app_id: Option<String>,
    /// The compose hash.
    pub compose_hash: Option<String>,
    /// The instance id.
    pub instance_id: Option<String>,
    /// The OS image hash.
    pub os_image_hash: Option<String>,
}

impl Claims {
    /// Of a quote alone, verified or not.
    pub(crate) fn of_quote(quote: &TdQuote) -> Self {
        let report = quote.report();
        Self {
            mrtd: report.mrtd().to_string(),
            rtmr: report.rtmrs().map(|rtmr| rtmr.to_string()),
            report_data: hex::encode(report.report_data()),
            is_debug: report.is_under_debug(),
            tcb_status: None,
            advisories: Vec::new(),
            app_id: None,
            compose_hash: None,
            instance_id: None,
            os_image_hash: None,
        }
    }

    pub(crate) fn of_peer(peer: &AttestedPeer, quote: &TdQuote) -> Self {
        Self {
            tcb_status: Some(peer.tcb_status().as_str().to_owned()),
            advisories: peer.advisories().to_vec(),
            ..Self::of_quote(quote)
        }
        .with_identity(peer.identity())
    }

    pub(crate) fn with_appraisal(self, appraisal: &Appraisal) -> Self {
        Self {
            tcb_status: Some(appraisal.tcb_status().as_str().to_owned()),
            advisories: appraisal.advisories().to_vec(),
            ..self
        }
    }

    fn with_identity(self, identity: &Identity) -> Self {
        Self {
            app_id: identity.app_id().map(|id| id.to_string()),
            compose_hash: identity.compose_hash().map(|hash| hash.to_string()),
            instance_id: identity.instance_id().map(|id| id.to_string()),
            os_image_hash: identity.os_image_hash().map(|hash| hash.to_string()),
            ..self
        }
    }
}
