//! The steps up to the binding: what can be read.

use attest::certificate::{CertificateNames, Extensions};
use attest::evidence::EvidenceFormat;

use super::*;

/// The server's side of the handshake.
pub(super) fn server(presented: &Presented) -> Step {
    let asked = match (presented.asked_for_certificate, presented.has_identity) {
        (false, _) => "no",
        (true, false) => "yes, and none was shown",
        (true, true) => "yes, and one was shown",
    };
    Step::new("server", State::Ok)
        .with("address", Fact::text(presented.address))
        .with("opening", Fact::text(presented.opening))
        .with("tls_version", Fact::text(&presented.version))
        .with("cipher_suite", Fact::text(&presented.cipher_suite))
        .with_some("alpn", presented.alpn.as_ref().map(Fact::text))
        .with("asked_for_certificate", Fact::text(asked))
}

/// The leaf, as [`examine`] reads it.
pub(super) fn leaf(chain: &[Vec<u8>]) -> Result<Leaf<'_>, Denial> {
    Chain::check_caps(chain)?;
    Leaf::parse(chain.first().ok_or(Denial::NoCertificate)?)
}

pub(super) fn certificate(chain: &[Vec<u8>], leaf: &Result<Leaf<'_>, Denial>) -> Step {
    let mut step = Step::new("certificate", State::of(leaf));
    if leaf.is_err() {
        return step;
    }
    if let Some(Ok(names)) = chain.first().map(|der| CertificateNames::from_der(der)) {
        step = step
            .with("subject", Fact::text(names.subject))
            .with("issuer", Fact::text(names.issuer))
            .with("serial", Fact::hex(names.serial))
            .with("alt_names", Fact::texts(names.alt_names));
    }
    let fingerprint = Chain::copy(chain).map(|chain| chain.fingerprint());
    step.with_some(
        "fingerprint",
        fingerprint.ok().map(|hash| Fact::hex(hash.as_bytes())),
    )
    .with("chain_length", number(chain.len()))
}

pub(super) fn dates(leaf: &Leaf<'_>, policy: &Policy, now: u64) -> Step {
    let max_age = policy.settings().max_certificate_age;
    let checked = leaf
        .check_dates(now)
        .and_then(|()| policy.check_age(leaf.not_before(), now));
    Step::new("dates", State::of(&checked))
        .with("not_before", Fact::Time(leaf.not_before()))
        .with("not_after", Fact::Time(leaf.not_after()))
        .with_some(
            "max_age_seconds",
            max_age.map(|age| Fact::Number(age.as_secs())),
        )
}

/// `extensions` are of the certificate, if there is one.
pub(super) fn evidence(
    extensions: Option<&Extensions<'_>>,
    evidence: &Result<UnboundEvidence<'_>, Denial>,
) -> Step {
    let form = evidence.as_ref().ok().map(|evidence| evidence.format());
    Step::new("evidence", State::of(evidence))
        .with_some("form", form.map(EvidenceFormat::as_str).map(Fact::text))
        .with_some("extensions", extensions.map(found))
}

fn found(extensions: &Extensions<'_>) -> Fact {
    let all = [
        (".8 attestation", extensions.attestation),
        (".1 quote", extensions.quote),
        (".2 event log", extensions.event_log),
    ];
    let found = all.into_iter().filter(|(_, value)| value.is_some());
    Fact::texts(found.map(|(name, _)| name))
}

pub(super) fn quote(quote: &TdQuote) -> Step {
    let report = quote.report();
    Step::new("quote", State::Ok)
        .with("version", Fact::Number(quote.version().into()))
        .with("tee", Fact::text("TDX"))
        .with("report", Fact::text(report.kind().as_str()))
        .with("tee_tcb_svn", Fact::hex(report.tee_tcb_svn()))
        .with("mr_seam", Fact::hex(report.mr_seam()))
        .with("mr_config_id", Fact::hex(report.mr_config_id()))
        .with("mr_owner", Fact::hex(report.mr_owner()))
        .with("mr_owner_config", Fact::hex(report.mr_owner_config()))
        .with("report_data", Fact::hex(report.report_data()))
}

/// A quote that is none of TDX', or cannot be read.
pub(super) fn bad_quote(denial: &Denial, header: Option<QuoteHeader>) -> Step {
    let step = Step::new("quote", State::denied(denial));
    let Some(header) = header else {
        return step;
    };
    let tee = match header.tee_type {
        0x00 => "SGX".to_owned(),
        0x81 => "TDX".to_owned(),
        other => format!("unknown (0x{other:x})"),
    };
    step.with("version", Fact::Number(header.version.into()))
        .with("tee", Fact::text(tee))
}

/// With the values only where they differ.
pub(super) fn binding(evidence: &UnboundEvidence<'_>, spki: &[u8]) -> Step {
    let checked = evidence.check_binding(spki);
    let step = Step::new("binding", State::of(&checked));
    if checked.is_ok() {
        return step;
    }
    let expected = attest::binding::report_data_for_key(spki);
    step.with("expected", Fact::hex(expected))
        .with("quoted", Fact::hex(evidence.quote().report().report_data()))
        .with_some("stated", evidence.stated_report_data().map(Fact::hex))
}

pub(super) fn number(number: usize) -> Fact {
    Fact::Number(u64::try_from(number).unwrap_or(u64::MAX))
}
