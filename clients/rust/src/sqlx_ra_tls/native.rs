//! How this crate's forwarder verifies for a verifier: by its settings, or by calling it.

use std::fmt;

use zeroize::Zeroizing;

/// The TCB statuses that sqlx-ra-tls accepts.
const ACCEPTED: &str = "UpToDate,SWHardeningNeeded";
/// All that a policy can accept: another verifier has decided.
const ANY: &str = "UpToDate,SWHardeningNeeded,ConfigurationNeeded,ConfigurationAndSWHardeningNeeded,OutOfDate,\
                   OutOfDateConfigurationNeeded,TDRelaunchAdvised,TDRelaunchAdvisedConfigurationNeeded";

/// How this crate's forwarder verifies for a verifier.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub enum Native {
    /// By calling the verifier.
    Custom,
    /// By DCAP, with collateral from this PCCS.
    Dcap(String),
    /// By Intel Trust Authority at this URL, with this API key.
    TrustAuthority(String, Secret),
    /// Only the binding is checked.
    Noop,
}

/// A text that is not shown.
#[doc(hidden)]
#[derive(Clone)]
pub struct Secret(pub(super) Zeroizing<String>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Native {
    /// The settings with which the forwarder verifies.
    pub(super) fn settings(
        &self,
        allowed_mrtds: &[String],
        allow_debug: bool,
    ) -> Vec<(&'static str, String)> {
        let mut settings = vec![
            ("allow_any_server", "true".to_owned()),
            ("allow_unpinned_os", "true".to_owned()),
            ("kms_root", "any".to_owned()),
        ];
        let accepted = match self {
            Self::Dcap(_) | Self::TrustAuthority(..) => ACCEPTED,
            Self::Custom | Self::Noop => ANY,
        };
        settings.push(("accepted_tcb_status", accepted.to_owned()));
        let is_noop = matches!(self, Self::Noop);
        // The verifier applies the options itself, and a debug TD is one of them.
        let debug = allow_debug || is_noop;
        settings.push(("allow_debug_td", debug.to_string()));
        let mrtds = allowed_mrtds.iter().map(|text| normal(text));
        let mrtds: Vec<String> = mrtds.collect();
        if !mrtds.is_empty() && !is_noop {
            settings.push(("allowed_mrtd", mrtds.join(",")));
        }
        match self {
            Self::Dcap(pccs) => settings.push(("pccs", pccs.clone())),
            Self::TrustAuthority(base, key) => {
                settings.push(("verifier", "ita".to_owned()));
                settings.push(("trust_authority", base.clone()));
                settings.push(("trust_authority_key", key.0.to_string()));
            }
            Self::Custom | Self::Noop => {}
        }
        settings
    }
}

/// Hex digits as the settings have them.
fn normal(text: &str) -> String {
    let text = text.trim();
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    digits.unwrap_or(text).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allow_list_may_have_prefixes_and_capitals() {
        assert_eq!(normal(" 0XABcd "), "abcd");
        let allowed = ["0xAB".to_owned(), "cd".to_owned()];
        let settings = Native::Dcap("intel".to_owned()).settings(&allowed, false);
        assert!(settings.contains(&("allowed_mrtd", "ab,cd".to_owned())));
        assert!(settings.contains(&("accepted_tcb_status", ACCEPTED.to_owned())));
        assert!(settings.contains(&("allow_debug_td", "false".to_owned())));
    }

    #[test]
    fn an_api_key_is_not_shown() {
        let key = Secret(Zeroizing::new("KEY".to_owned()));
        let native = Native::TrustAuthority(String::new(), key);
        assert!(!format!("{native:?}").contains("KEY"));
    }
}
