//! Maps errors of dcap-qvl to denials.
//!
//! Errors of dcap-qvl 0.7 are texts (anyhow), not types. The text only selects the code of the refusal; an unknown
//! text is `bad_signature`. Tests cover the texts, so that an update of dcap-qvl cannot change a code unnoticed.
//!
//! It must never turn an error into an acceptance.

use std::fmt::Display;

use crate::collateral::Collateral;
use crate::denial::Denial;
use crate::policy::Policy;
use crate::quote::TdQuote;
use crate::tcb::TcbStatus;

/// The denial for an error of dcap-qvl, by its text with all causes.
pub(super) fn denial(
    error: &impl Display,
    quote: &TdQuote,
    collateral: &Collateral,
    policy: &Policy,
) -> Denial {
    let text = format!("{error:#}");
    let accepted = policy.settings().tcb_statuses;
    let below_all = Denial::TcbBelowAll { accepted };
    let known = [
        (
            "TCB status is invalid: Revoked",
            Denial::Tcb {
                status: TcbStatus::Revoked,
                accepted,
            },
        ),
        ("CertRevoked", Denial::PckRevoked),
        ("CertExpired", Denial::PckNotValid),
        ("CertNotValidYet", Denial::PckNotValid),
        ("CrlExpired", Denial::CollateralExpired),
        ("Fmspc mismatch", Denial::CollateralUnavailable),
        ("No matching TCB level found", below_all.clone()),
        // Of the TDX module, and of the quoting enclave.
        ("is below minimum required", below_all),
        ("No TDX module identity", Denial::TcbNotSupported),
        ("Debug mode is enabled", Denial::DebugTd),
        ("TD profiling is enabled", Denial::DebugTd),
        ("Reserved bits in TD attributes", Denial::TdAttributes),
        ("TD migration is enabled", Denial::TdAttributes),
        ("SERVTD_EXT is enabled", Denial::TdAttributes),
        ("SEPT_VE_DISABLE is not enabled", Denial::TdAttributes),
        ("Invalid MR service TD", Denial::TdAttributes),
        (
            "Unknown QE vendor ID",
            Denial::UnsupportedQuote("its quoting enclave is not Intel's"),
        ),
    ];
    if let Some((_, denial)) = known.into_iter().find(|(part, _)| text.contains(part)) {
        return denial;
    }
    // A CRL of the other PCK CA does not cover this PCK certificate.
    let of_another_ca = text.contains("UnknownRevocationStatus")
        && quote
            .collateral_key()
            .is_ok_and(|key| key != collateral.key());
    if of_another_ca {
        Denial::CollateralUnavailable
    } else {
        Denial::BadSignature
    }
}
