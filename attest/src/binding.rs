//! The step that two of three public client libraries leave out: whose quote is it?
//!
//! A quote is public. Without this step anybody can put a captured one into a certificate of their own
//! and be taken for the TD that made it. So there is one way from [`UnboundEvidence`] to
//! [`BoundEvidence`], and [`Verifier`](crate::Verifier) takes nothing else. That the peer holds the
//! certificate's private key is TLS' part (CertificateVerify).

use sha2::{Digest, Sha512};
use subtle::ConstantTimeEq;

use crate::certificate::Leaf;
use crate::chain::Chain;
use crate::collateral::CollateralKey;
use crate::denial::Denial;
use crate::event_log::EventLog;
use crate::evidence::{EvidenceFormat, UnboundEvidence};
use crate::policy::Policy;
use crate::quote::TdQuote;
use crate::values::Fingerprint;

/// What is hashed before the key. [dstack `QuoteContentType::RaTlsCert`]
const PREFIX: &[u8] = b"ratls-cert:";

/// `SHA-512("ratls-cert:" || SubjectPublicKeyInfo DER)`: the report data that binds a quote to a key.
#[must_use]
pub fn report_data_for_key(spki: &[u8]) -> [u8; 64] {
    Sha512::new()
        .chain_update(PREFIX)
        .chain_update(spki)
        .finalize()
        .into()
}

impl UnboundEvidence<'_> {
    /// Whether the quote's own report data, all 64 bytes, is that of `spki`; and, where the envelope
    /// states report data beside the quote, that too.
    ///
    /// # Errors
    /// [`Denial::UnboundKey`].
    pub fn check_binding(&self, spki: &[u8]) -> Result<(), Denial> {
        let expected = report_data_for_key(spki);
        let stated = self.stated_report_data.unwrap_or(expected);
        let bound = self.quote.report().report_data().ct_eq(&expected) & stated.ct_eq(&expected);
        if bound.into() {
            Ok(())
        } else {
            Err(Denial::UnboundKey)
        }
    }
}

/// Evidence whose quote is of the key of the leaf of its chain. Not verified: the quote may be forged.
///
/// Made by [`examine`] only.
#[derive(Clone, Debug)]
pub struct BoundEvidence {
    chain: Chain,
    quote: TdQuote,
    events: EventLog<'static>,
    format: EvidenceFormat,
    not_before: u64,
    not_after: u64,
}

/// The cheap part: caps, X.509, dates, evidence, binding. Some tens of microseconds, no public-key
/// cryptography: fit for a shard, inside the handshake or after it. Copies the chain, once.
///
/// # Errors
/// Any [`Denial`] up to `unbound_key` in [`Denial::CODES`].
pub fn examine(
    chain: &[impl AsRef<[u8]>],
    now: u64,
    policy: &Policy,
) -> Result<BoundEvidence, Denial> {
    Chain::check_caps(chain)?;
    let leaf = Leaf::parse(chain.first().ok_or(Denial::NoCertificate)?.as_ref())?;
    leaf.check_dates(now)?;
    policy.check_age(leaf.not_before(), now)?;
    let evidence = UnboundEvidence::from_extensions(leaf.extensions())?;
    evidence.check_binding(leaf.spki())?;
    Ok(BoundEvidence {
        quote: evidence.quote,
        events: evidence.events.into_owned(),
        format: evidence.format,
        not_before: leaf.not_before(),
        not_after: leaf.not_after(),
        chain: Chain::copy(chain)?,
    })
}

impl BoundEvidence {
    /// The presented chain.
    #[must_use]
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The leaf's fingerprint.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.chain.fingerprint()
    }

    /// The quote.
    #[must_use]
    pub fn quote(&self) -> &TdQuote {
        &self.quote
    }

    /// The runtime events.
    #[must_use]
    pub fn events(&self) -> &EventLog<'static> {
        &self.events
    }

    /// The form in which it came.
    #[must_use]
    pub fn format(&self) -> EvidenceFormat {
        self.format
    }

    /// The leaf's notBefore, in unix seconds.
    #[must_use]
    pub fn not_before(&self) -> u64 {
        self.not_before
    }

    /// The leaf's notAfter, in unix seconds.
    #[must_use]
    pub fn not_after(&self) -> u64 {
        self.not_after
    }

    /// Which collateral the quote is judged with. Parses a certificate: not for a shard.
    ///
    /// # Errors
    /// As [`TdQuote::collateral_key`].
    pub fn collateral_key(&self) -> Result<CollateralKey, Denial> {
        self.quote.collateral_key()
    }
}
