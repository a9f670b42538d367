//! The binding of a quote to the key of its certificate, by the quote's report data (RA-TLS).
//!
//! A quote is public. Without this check, which two of three public client libraries omit, an attacker could put
//! a captured quote into another certificate and impersonate the TD that made it. So [`examine`] is the only way
//! from [`UnboundEvidence`] to [`BoundEvidence`], and [`Verifier`](crate::Verifier) takes nothing else. TLS
//! proves that the peer holds the certificate's private key (CertificateVerify).

use sha2::{Digest, Sha512};
use subtle::ConstantTimeEq;

use crate::certificate::Leaf;
use crate::chain::{Chain, fingerprint};
use crate::collateral::CollateralKey;
use crate::denial::Denial;
use crate::event_log::EventLog;
use crate::evidence::{EvidenceFormat, UnboundEvidence};
use crate::policy::Policy;
use crate::quote::TdQuote;
use crate::trace::{Check, CheckObserver, SkipReason, Trace, Values};
use crate::values::Fingerprint;

/// The prefix of the key in the hash. [dstack `QuoteContentType::RaTlsCert`]
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
    /// Checks that the quote's report data, all 64 bytes, is that of `spki`, and so is the report data that the
    /// envelope states, if it does. Takes constant time.
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

/// Evidence whose quote is bound to the key of the leaf of its chain. Not verified: the quote may be
/// forged.
///
/// Made by [`examine`] only.
#[derive(Clone, Debug)]
pub struct BoundEvidence(Examined);

/// A chain that was examined. Under an observer it may have been refused, and the quote may be copied: only
/// [`examine`] makes a [`BoundEvidence`] of it.
#[derive(Clone, Debug)]
pub(crate) struct Examined {
    pub(crate) chain: Chain,
    pub(crate) quote: TdQuote,
    pub(crate) events: EventLog<'static>,
    pub(crate) format: EvidenceFormat,
    pub(crate) not_before: u64,
    pub(crate) not_after: u64,
    /// When the dates of the certificates are compared with: the peer's first contact.
    pub(crate) examined_at: u64,
}

/// The cheap checks: caps, X.509, dates, evidence, binding. Takes tens of microseconds and uses no
/// public-key cryptography, so a shard can run it. Copies the chain, once. `now` is in Unix seconds.
///
/// # Errors
/// Any [`Denial`] up to `unbound_key` in [`Denial::CODES`].
pub fn examine(
    chain: &[impl AsRef<[u8]>],
    now: u64,
    policy: &Policy,
) -> Result<BoundEvidence, Denial> {
    examine_traced(chain, now, policy, &mut Trace::off()).map(BoundEvidence)
}

/// The checks of [`examine`], reported to `trace`.
pub(crate) fn examine_traced<O: CheckObserver>(
    chain: &[impl AsRef<[u8]>],
    now: u64,
    policy: &Policy,
    trace: &mut Trace<O>,
) -> Result<Examined, Denial> {
    let leaf = read_leaf(chain);
    trace.require(Check::Certificate, &leaf, |_| {
        let leaf = chain.first()?.as_ref();
        Some(Values::Certificate {
            leaf,
            fingerprint: fingerprint(leaf),
            chain_len: chain.len(),
        })
    });
    let leaf = leaf.inspect_err(|_| trace.skip_rest(SkipReason::UnreadableCertificate))?;

    let dates = leaf.check_dates(now);
    let dates = dates.and_then(|()| policy.check_age(leaf.not_before(), now));
    trace.check(Check::Dates, dates, || Values::Dates {
        not_before: leaf.not_before(),
        not_after: leaf.not_after(),
        max_age: policy.settings().max_certificate_age,
    })?;

    let evidence = UnboundEvidence::from_extensions(leaf.extensions());
    trace.require(Check::Evidence, &evidence, |evidence| Values::Evidence {
        extensions: Some(leaf.extensions()),
        format: evidence.map(UnboundEvidence::format),
    });
    let evidence = evidence.inspect_err(|_| trace.skip_rest(SkipReason::UnreadableEvidence))?;
    trace.check(Check::Quote, Ok(()), || Values::Quote(evidence.quote()))?;

    let binding = evidence.check_binding(leaf.spki());
    trace.check(Check::Binding, binding, || Values::Binding {
        expected: report_data_for_key(leaf.spki()),
        quoted: evidence.quote().report().report_data(),
        stated: evidence.stated_report_data(),
    })?;
    Ok(Examined {
        quote: evidence.quote,
        events: evidence.events.into_owned(),
        format: evidence.format,
        not_before: leaf.not_before(),
        not_after: leaf.not_after(),
        chain: Chain::copy(chain)?,
        examined_at: now,
    })
}

fn read_leaf(chain: &[impl AsRef<[u8]>]) -> Result<Leaf<'_>, Denial> {
    Chain::check_caps(chain)?;
    Leaf::parse(chain.first().ok_or(Denial::NoCertificate)?.as_ref())
}

impl BoundEvidence {
    pub(crate) fn examined(&self) -> &Examined {
        &self.0
    }

    /// The presented chain.
    #[must_use]
    pub fn chain(&self) -> &Chain {
        &self.0.chain
    }

    /// The leaf's fingerprint.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.0.chain.fingerprint()
    }

    /// The quote.
    #[must_use]
    pub fn quote(&self) -> &TdQuote {
        &self.0.quote
    }

    /// The runtime events.
    #[must_use]
    pub fn events(&self) -> &EventLog<'static> {
        &self.0.events
    }

    /// The format.
    #[must_use]
    pub fn format(&self) -> EvidenceFormat {
        self.0.format
    }

    /// The leaf's notBefore, in unix seconds.
    #[must_use]
    pub fn not_before(&self) -> u64 {
        self.0.not_before
    }

    /// The leaf's notAfter, in unix seconds.
    #[must_use]
    pub fn not_after(&self) -> u64 {
        self.0.not_after
    }

    /// Identifies the collateral for the quote. Parses a certificate, so it must not run on a shard.
    ///
    /// # Errors
    /// As [`TdQuote::collateral_key`].
    pub fn collateral_key(&self) -> Result<CollateralKey, Denial> {
        self.0.quote.collateral_key()
    }
}
