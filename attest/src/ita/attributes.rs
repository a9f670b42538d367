//! Checks of a TD's attributes that dcap-qvl makes and Trust Authority's default policy does not.
//!
//! The memory of a migratable TD can be moved to another platform by a migration TD that has not been
//! measured here. Without SEPT_VE_DISABLE the host can inject exceptions. The rules are those of dcap-qvl's
//! own check, which is not public, applied to dcap-qvl's parse of the quote.

use dcap_qvl::quote::{Quote, Report, TDAttributes};

use crate::denial::Denial;
use crate::quote::TdQuote;

/// Refuses reserved bits, migration, service TDs, and TDs without SEPT_VE_DISABLE.
pub(crate) fn check(quote: &TdQuote) -> Result<(), Denial> {
    let unread = Denial::UnsupportedQuote("its report cannot be read");
    let parsed = Quote::parse(quote.as_bytes()).map_err(|_| unread.clone())?;
    let (attributes, service_td) = match &parsed.report {
        Report::TD10(report) => (report.td_attributes, [0; 48]),
        Report::TD15(report) => (report.base.td_attributes, report.mr_service_td),
        Report::TD15Ex(report) => (report.base.base.td_attributes, report.base.mr_service_td),
        Report::SgxEnclave(_) => return Err(Denial::NotTdx),
    };
    let attributes = TDAttributes::parse(attributes).map_err(|_| unread)?;
    let refused = attributes.reserved != 0
        || attributes.sec.migratable
        || attributes.sec.servtd_ext
        || !attributes.sec.sept_ve_disable
        || service_td != [0; 48];
    match refused {
        true => Err(Denial::TdAttributes),
        false => Ok(()),
    }
}

#[cfg(all(test, feature = "mock"))]
mod tests {
    use super::*;
    use crate::mock::{Pki, Platform, PlatformOptions, TdReport};

    /// Offset of TDATTRIBUTES in a quote of version 4: after the header, TEE_TCB_SVN, MRSEAM, MRSIGNERSEAM
    /// and SEAMATTRIBUTES.
    const ATTRIBUTES: usize = 48 + 16 + 48 + 48 + 8;

    #[test]
    fn each_attribute_bit_is_accepted_or_refused() {
        let pki = Pki::new(&[7; 32]).unwrap();
        let platform = Platform::new(&pki, &PlatformOptions::default()).unwrap();
        let quote = platform.quote(&TdReport::default()).unwrap();
        let refused = |bit: usize| {
            let mut bytes = quote.clone();
            bytes[ATTRIBUTES + bit / 8] ^= 1u8 << (bit % 8);
            check(&TdQuote::parse(&bytes).unwrap()) == Err(Denial::TdAttributes)
        };
        assert_eq!(check(&TdQuote::parse(&quote).unwrap()), Ok(()));
        let allowed: Vec<usize> = (0..64).filter(|bit| !refused(*bit)).collect();
        // The policy decides about debug and profiling (bits 0, 4 to 6). The other bits (ICSSD to LASS, PKS and
        // KL, TPA and PERFMON) weaken nothing.
        assert_eq!(
            allowed,
            [0, 4, 5, 6, 16, 18, 19, 20, 21, 22, 27, 30, 31, 62, 63]
        );
    }
}
