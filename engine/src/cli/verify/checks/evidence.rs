//! The checks up to the binding: parsing the certificate, the evidence and the quote.

use attest::certificate::{CertificateNames, Extensions};
use attest::evidence::EvidenceFormat;

use super::*;

/// The server's side of the handshake.
pub(super) fn server(presented: &Presented) -> Check {
    let requested = match (presented.requested_certificate, presented.has_identity) {
        (false, _) => "no",
        (true, false) => "yes, and none was shown",
        (true, true) => "yes, and one was shown",
    };
    Check::new("server", Outcome::Passed)
        .with("address", CheckValue::text(presented.address))
        .with("opening", CheckValue::text(presented.opening))
        .with("tls_version", CheckValue::text(&presented.version))
        .with("cipher_suite", CheckValue::text(&presented.cipher_suite))
        .with_some("alpn", presented.alpn.as_ref().map(CheckValue::text))
        .with("asked_for_certificate", CheckValue::text(requested))
}

/// Parses the leaf as [`examine`] does.
pub(super) fn leaf(chain: &[Vec<u8>]) -> Result<Leaf<'_>, Denial> {
    Chain::check_caps(chain)?;
    Leaf::parse(chain.first().ok_or(Denial::NoCertificate)?)
}

pub(super) fn certificate(chain: &[Vec<u8>], leaf: &Result<Leaf<'_>, Denial>) -> Check {
    let mut check = Check::new("certificate", Outcome::of(leaf));
    if leaf.is_err() {
        return check;
    }
    if let Some(Ok(names)) = chain.first().map(|der| CertificateNames::from_der(der)) {
        check = check
            .with("subject", CheckValue::text(names.subject))
            .with("issuer", CheckValue::text(names.issuer))
            .with("serial", CheckValue::hex(names.serial))
            .with("alt_names", CheckValue::texts(names.alt_names));
    }
    let fingerprint = Chain::copy(chain).map(|chain| chain.fingerprint());
    check
        .with_some(
            "fingerprint",
            fingerprint
                .ok()
                .map(|hash| CheckValue::hex(hash.as_bytes())),
        )
        .with("chain_length", CheckValue::count(chain.len()))
}

pub(super) fn dates(leaf: &Leaf<'_>, policy: &Policy, now: u64) -> Check {
    let max_age = policy.settings().max_certificate_age;
    let checked = leaf
        .check_dates(now)
        .and_then(|()| policy.check_age(leaf.not_before(), now));
    Check::new("dates", Outcome::of(&checked))
        .with("not_before", CheckValue::Time(leaf.not_before()))
        .with("not_after", CheckValue::Time(leaf.not_after()))
        .with_some(
            "max_age_seconds",
            max_age.map(|age| CheckValue::Number(age.as_secs())),
        )
}

/// `extensions` are those of the certificate, if there is one.
pub(super) fn evidence(
    extensions: Option<&Extensions<'_>>,
    evidence: &Result<UnboundEvidence<'_>, Denial>,
) -> Check {
    let form = evidence.as_ref().ok().map(|evidence| evidence.format());
    Check::new("evidence", Outcome::of(evidence))
        .with_some(
            "form",
            form.map(EvidenceFormat::as_str).map(CheckValue::text),
        )
        .with_some("extensions", extensions.map(extension_names))
}

fn extension_names(extensions: &Extensions<'_>) -> CheckValue {
    let all = [
        (".8 attestation", extensions.attestation),
        (".1 quote", extensions.quote),
        (".2 event log", extensions.event_log),
    ];
    let present = all.into_iter().filter(|(_, value)| value.is_some());
    CheckValue::texts(present.map(|(name, _)| name))
}

pub(super) fn quote(quote: &TdQuote) -> Check {
    let report = quote.report();
    Check::new("quote", Outcome::Passed)
        .with("version", CheckValue::Number(quote.version().into()))
        .with("tee", CheckValue::text("TDX"))
        .with("report", CheckValue::text(report.kind().as_str()))
        .with("tee_tcb_svn", CheckValue::hex(report.tee_tcb_svn()))
        .with("mr_seam", CheckValue::hex(report.mr_seam()))
        .with("mr_config_id", CheckValue::hex(report.mr_config_id()))
        .with("mr_owner", CheckValue::hex(report.mr_owner()))
        .with("mr_owner_config", CheckValue::hex(report.mr_owner_config()))
        .with("report_data", CheckValue::hex(report.report_data()))
}

/// A quote that is not a TDX quote, or cannot be parsed.
pub(super) fn bad_quote(denial: &Denial, header: Option<QuoteHeader>) -> Check {
    let check = Check::new("quote", Outcome::denied(denial));
    let Some(header) = header else {
        return check;
    };
    let tee = match header.tee_type {
        0x00 => "SGX".to_owned(),
        0x81 => "TDX".to_owned(),
        other => format!("unknown (0x{other:x})"),
    };
    check
        .with("version", CheckValue::Number(header.version.into()))
        .with("tee", CheckValue::text(tee))
}

/// Has values only if the binding fails.
pub(super) fn binding(evidence: &UnboundEvidence<'_>, spki: &[u8]) -> Check {
    let checked = evidence.check_binding(spki);
    let check = Check::new("binding", Outcome::of(&checked));
    if checked.is_ok() {
        return check;
    }
    let expected = attest::binding::report_data_for_key(spki);
    check
        .with("expected", CheckValue::hex(expected))
        .with(
            "quoted",
            CheckValue::hex(evidence.quote().report().report_data()),
        )
        .with_some("stated", evidence.stated_report_data().map(CheckValue::hex))
}
