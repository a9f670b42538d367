//! The names and forms in which the values of a trace appear in the report
//! (docs/reference/verify-report.md).

use std::fmt::Display;

use attest::certificate::{CertificateNames, Extensions};
use attest::chain::KmsRoot;
use attest::collateral::Collateral;
use attest::event_log::{EventLog, Identity};
use attest::policy::{OsEntry, PeerEntry, PlatformClaims, PlatformPins};
use attest::quote::{QuoteHeader, TdQuote, TdReport};
use attest::trace::{self, Values};
use attest::values::Rtmr;

use crate::cli::verify::report::{CheckReport, CheckValue};

/// Maximum number of event names in the report.
const MAX_NAMES: usize = 32;

/// Adds the values of a check to its report.
pub(super) fn add(
    report: CheckReport,
    outcome: trace::Outcome<'_>,
    values: Values<'_>,
) -> CheckReport {
    let passed = outcome == trace::Outcome::Passed;
    match values {
        Values::Certificate {
            leaf,
            fingerprint,
            chain_len,
        } => add_names(report, passed.then_some(leaf))
            .with("fingerprint", CheckValue::hex(fingerprint.as_bytes()))
            .with("chain_length", CheckValue::count(chain_len)),
        Values::Dates {
            not_before,
            not_after,
            max_age,
        } => report
            .with("not_before", CheckValue::Time(not_before))
            .with("not_after", CheckValue::Time(not_after))
            .with_some(
                "max_age_seconds",
                max_age.map(|age| CheckValue::Number(age.as_secs())),
            ),
        Values::Evidence { extensions, format } => {
            let form = match (extensions, format) {
                (None, None) if passed => Some("a bare quote"),
                (_, format) => format.map(|format| format.as_str()),
            };
            report
                .with_some("form", form.map(CheckValue::text))
                .with_some("extensions", extensions.map(extension_names))
        }
        Values::Quote(quote) => add_quote(report, quote),
        Values::UnparsedQuote(header) => add_header(report, header),
        // They are equal.
        Values::Binding { .. } if passed => report,
        Values::Binding {
            expected,
            quoted,
            stated,
        } => report
            .with("expected", CheckValue::hex(expected))
            .with("quoted", CheckValue::hex(quoted))
            .with_some("stated", stated.map(CheckValue::hex)),
        Values::Collateral(collateral) => add_collateral(report, collateral),
        Values::Debug {
            under_debug,
            allowed,
        } => report
            .with("under_debug", CheckValue::Flag(under_debug))
            .with("allowed", CheckValue::Flag(allowed)),
        Values::Signatures { root, dangerous } => {
            let name = match dangerous {
                true => "DANGEROUS: not Intel's",
                false => "Intel's",
            };
            report
                .with("root", CheckValue::text(name))
                .with("root_fingerprint", CheckValue::hex(root.as_bytes()))
        }
        Values::TdAttributes(value) => report.with("value", CheckValue::hex(value)),
        Values::Tcb { status, accepted } => report
            .with_some("status", status.map(CheckValue::text))
            .with("accepted", CheckValue::text(accepted)),
        Values::Advisories { found, refused } => report
            .with_some("found", found.map(CheckValue::texts))
            .with("refused", CheckValue::texts(refused)),
        Values::Mrtd { value, allowed } => add_list(report, Some(value.as_bytes()), allowed),
        Values::Rtmr { value, allowed } => add_list(report, Some(value.as_bytes()), allowed),
        Values::Configuration {
            report: td,
            os,
            entry,
        } => add_configuration(report, td, os, entry),
        Values::Platform {
            mr_seam,
            claims,
            pins,
        } => add_platform(report, mr_seam, claims, pins),
        Values::EventLog {
            events,
            replayed,
            quoted,
            identity,
        } => add_event_log(report, events, replayed, quoted, identity),
        Values::AppId { value, allowed } => {
            add_list(report, value.as_ref().map(|id| id.0.as_slice()), allowed)
        }
        Values::ComposeHash { value, allowed } => add_list(
            report,
            value.as_ref().map(|hash| hash.0.as_slice()),
            allowed,
        ),
        Values::InstanceId { value, allowed } => {
            add_list(report, value.as_ref().map(|id| id.0.as_slice()), allowed)
        }
        Values::OsImageHash { value, allowed } => add_list(
            report,
            value.as_ref().map(|hash| hash.0.as_slice()),
            allowed,
        ),
        Values::KmsRoot { allowed } => report.with(
            "allowed",
            CheckValue::any_of(allowed.iter().map(KmsRoot::fingerprint)),
        ),
    }
}

/// Adds a value, if it is known, and the allow-list that it is compared with.
fn add_list<T: Display>(report: CheckReport, value: Option<&[u8]>, allowed: &[T]) -> CheckReport {
    report
        .with_some("value", value.map(CheckValue::hex))
        .with("allowed", CheckValue::any_of(allowed))
}

/// Adds a value and the list that it is compared with, if there is one.
fn add_pin<T: Display>(
    report: CheckReport,
    [name, allowed_name]: [&'static str; 2],
    value: Option<&[u8]>,
    allowed: &[T],
) -> CheckReport {
    if allowed.is_empty() {
        return report;
    }
    report
        .with_some(name, value.map(CheckValue::hex))
        .with(allowed_name, CheckValue::any_of(allowed))
}

/// Adds XFAM, what the policy pins of the rest, and the entries that the peer is compared with.
fn add_configuration(
    report: CheckReport,
    td: &TdReport,
    os: Option<&OsEntry>,
    entry: &PeerEntry,
) -> CheckReport {
    let (xfam, attributes) = os.map_or((&[][..], &[][..]), |os| (&os.xfam, &os.td_attributes));
    let report = report
        .with_some("peer", entry.name.as_deref().map(CheckValue::text))
        .with_some(
            "os",
            os.and_then(|os| os.name.as_deref()).map(CheckValue::text),
        )
        .with("xfam", CheckValue::hex(td.xfam()))
        .with("allowed_xfam", CheckValue::any_of(xfam));
    let attributes_of_td = td.attributes();
    let names = ["td_attributes", "allowed_td_attributes"];
    let report = add_pin(report, names, Some(&attributes_of_td), attributes);
    let names = ["mr_config_id", "allowed_mr_config_id"];
    let report = add_pin(report, names, Some(td.mr_config_id()), &entry.mr_config_id);
    let names = ["mr_owner", "allowed_mr_owner"];
    let report = add_pin(report, names, Some(td.mr_owner()), &entry.mr_owner);
    let names = ["mr_owner_config", "allowed_mr_owner_config"];
    add_pin(
        report,
        names,
        Some(td.mr_owner_config()),
        &entry.mr_owner_config,
    )
}

/// Adds what the policy pins of the platform.
fn add_platform(
    report: CheckReport,
    mr_seam: &[u8],
    claims: &PlatformClaims,
    pins: &PlatformPins,
) -> CheckReport {
    let names = ["mr_seam", "allowed_mr_seam"];
    let report = add_pin(report, names, Some(mr_seam), &pins.mr_seam);
    let piid = claims.piid.as_ref().map(|piid| piid.as_bytes());
    let mut report = add_pin(report, ["piid", "allowed_piid"], piid, &pins.piid);
    for ([name, required_name], found, required) in [
        (["smt", "required_smt"], claims.smt, pins.smt),
        (
            ["dynamic_platform", "required_dynamic_platform"],
            claims.dynamic_platform,
            pins.dynamic_platform,
        ),
        (
            ["cached_keys", "required_cached_keys"],
            claims.cached_keys,
            pins.cached_keys,
        ),
    ] {
        if let Some(required) = required {
            report = report
                .with_some(name, found.map(CheckValue::Flag))
                .with(required_name, CheckValue::Flag(required));
        }
    }
    report
}

/// Adds the names in `leaf`, a certificate in DER.
fn add_names(report: CheckReport, leaf: Option<&[u8]>) -> CheckReport {
    let Some(Ok(names)) = leaf.map(CertificateNames::from_der) else {
        return report;
    };
    report
        .with("subject", CheckValue::text(names.subject))
        .with("issuer", CheckValue::text(names.issuer))
        .with("serial", CheckValue::hex(names.serial))
        .with("alt_names", CheckValue::texts(names.alt_names))
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

fn add_quote(check: CheckReport, quote: &TdQuote) -> CheckReport {
    let report = quote.report();
    check
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

fn add_header(report: CheckReport, header: QuoteHeader) -> CheckReport {
    let tee = match header.tee_type {
        0x00 => "SGX".to_owned(),
        0x81 => "TDX".to_owned(),
        other => format!("unknown (0x{other:x})"),
    };
    report
        .with("version", CheckValue::Number(header.version.into()))
        .with("tee", CheckValue::text(tee))
}

fn add_collateral(report: CheckReport, collateral: &Collateral) -> CheckReport {
    let (key, number) = (collateral.key(), collateral.tcb_evaluation_number());
    let issued_at = collateral.tcb_info_issued_at();
    report
        .with("fmspc", CheckValue::hex(key.fmspc.0))
        .with("ca", CheckValue::text(key.ca.as_str()))
        .with("tcb_evaluation_number", CheckValue::Number(number.into()))
        .with("tcb_info_issued", CheckValue::Time(issued_at))
        .with("holds_from", CheckValue::Time(collateral.valid_from()))
        .with("next_update", CheckValue::Time(collateral.expires_at()))
}

fn add_event_log(
    report: CheckReport,
    events: &EventLog<'_>,
    replayed: Option<Rtmr>,
    quoted: Rtmr,
    identity: Option<&Identity>,
) -> CheckReport {
    let all = events.events();
    let more = all.len().saturating_sub(MAX_NAMES);
    let names = all.iter().take(MAX_NAMES);
    let names = names.map(|event| event.name().to_owned());
    let names = names.chain((more > 0).then(|| format!("… and {more} more")));
    let instance = identity.and_then(Identity::instance_id);
    let key_provider = identity.and_then(Identity::key_provider);
    report
        .with("events", CheckValue::count(all.len()))
        .with("names", CheckValue::texts(names))
        .with_some(
            "replayed",
            replayed.map(|value| CheckValue::hex(value.as_bytes())),
        )
        .with("quoted", CheckValue::hex(quoted.as_bytes()))
        .with_some(
            "instance_id",
            instance.map(|id| CheckValue::hex(id.as_bytes())),
        )
        .with_some("key_provider", key_provider.map(CheckValue::text))
}
