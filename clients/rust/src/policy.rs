//! What a server has to prove: the settings of the group "Attestation", as a builder.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use engine::embed::Options;

/// What a server has to prove. Each method allows one more value; what is not named is not compared.
///
/// ```
/// let policy = teesql::Policy::new()
///     .app_id("0123456789abcdef0123456789abcdef01234567")
///     .accept_tcb_status("SWHardeningNeeded");
/// ```
#[derive(Clone, Default)]
#[must_use]
pub struct Policy {
    from_environment: bool,
    /// Lists of allowed values, by setting.
    lists: BTreeMap<&'static str, Vec<String>>,
    settings: Vec<(String, String)>,
}

impl fmt::Debug for Policy {
    /// Without the values of settings: `trust_authority_key` is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings: Vec<_> = self.settings.iter().map(|(name, _)| name).collect();
        f.debug_struct("Policy")
            .field("from_environment", &self.from_environment)
            .field("lists", &self.lists)
            .field("settings", &settings)
            .finish()
    }
}

impl Policy {
    /// Any genuine TD whose platform is up to date.
    pub fn new() -> Self {
        Self::default()
    }

    /// The settings of the policy in the environment: `TEESQL_ALLOWED_…`, `TEESQL_POLICY_FILE`, `TEESQL_PCCS` and so on.
    /// In a forwarder its other settings are taken from the environment, too.
    pub fn from_env() -> Self {
        Self {
            from_environment: true,
            ..Self::default()
        }
    }

    /// A policy file (docs/reference/policy-file.md). It must not be combined with allowed values.
    pub fn file(self, path: impl Into<PathBuf>) -> Self {
        self.setting("policy_file", path.into().display().to_string())
    }

    /// An allowed MRTD: 96 hex digits.
    pub fn mrtd(self, hex: impl Into<String>) -> Self {
        self.allow("allowed_mrtd", hex)
    }

    /// An allowed value of RTMR0: 96 hex digits.
    pub fn rtmr0(self, hex: impl Into<String>) -> Self {
        self.allow("allowed_rtmr0", hex)
    }

    /// An allowed value of RTMR1: 96 hex digits.
    pub fn rtmr1(self, hex: impl Into<String>) -> Self {
        self.allow("allowed_rtmr1", hex)
    }

    /// An allowed value of RTMR2: 96 hex digits.
    pub fn rtmr2(self, hex: impl Into<String>) -> Self {
        self.allow("allowed_rtmr2", hex)
    }

    /// An allowed value of RTMR3: 96 hex digits.
    pub fn rtmr3(self, hex: impl Into<String>) -> Self {
        self.allow("allowed_rtmr3", hex)
    }

    /// An allowed app id: 40 hex digits.
    pub fn app_id(self, hex: impl Into<String>) -> Self {
        self.allow("allowed_app_id", hex)
    }

    /// An allowed compose hash: 64 hex digits.
    pub fn compose_hash(self, hex: impl Into<String>) -> Self {
        self.allow("allowed_compose_hash", hex)
    }

    /// An allowed instance id: 40 hex digits.
    pub fn instance_id(self, hex: impl Into<String>) -> Self {
        self.allow("allowed_instance_id", hex)
    }

    /// An allowed OS image hash: 64 hex digits.
    pub fn os_image_hash(self, hex: impl Into<String>) -> Self {
        self.allow("allowed_os_image_hash", hex)
    }

    /// A TCB status that is accepted besides `UpToDate`.
    pub fn accept_tcb_status(self, status: impl Into<String>) -> Self {
        self.allow("accepted_tcb_status", status)
    }

    /// Accepts TDs in debug mode, whose memory the host can read.
    pub fn allow_debug_td(self) -> Self {
        self.setting("allow_debug_td", "true")
    }

    /// Accepts a policy that does not say which application the server is: any TD can then receive the secrets.
    pub fn allow_any_server(self) -> Self {
        self.setting("allow_any_server", "true")
    }

    /// Accepts servers without any evidence, such as a simulator. The connection is open to man-in-the-middle attacks.
    pub fn allow_simulator(self) -> Self {
        self.setting("allow_simulator", "true")
    }

    /// Any setting of the group "Attestation", by its name in the configuration file: `("kms_root", "root.pem")`.
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    fn allow(mut self, setting: &'static str, value: impl Into<String>) -> Self {
        self.lists.entry(setting).or_default().push(value.into());
        self
    }

    /// Sets it for a forwarder or a verification.
    pub(crate) fn apply(&self, options: &mut Options) {
        options.from_environment |= self.from_environment;
        for (name, values) in &self.lists {
            options.set(*name, values.join(","));
        }
        for (name, value) in &self.settings {
            options.set(name, value);
        }
    }

    pub(crate) fn options(&self) -> Options {
        let mut options = Options::default();
        self.apply(&mut options);
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_one_kind_become_a_list() {
        let policy = Policy::new().mrtd("a").app_id("x").mrtd("b");
        let options = policy.setting("pccs", "phala").options();
        let settings = options.settings.iter();
        let settings: Vec<_> = settings
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let expected = [
            ("allowed_app_id", "x"),
            ("allowed_mrtd", "a,b"),
            ("pccs", "phala"),
        ];
        assert_eq!(settings, expected);
        assert!(!options.from_environment);
    }

    #[test]
    fn no_setting_is_shown() {
        let policy = Policy::new()
            .setting("trust_authority_key", "SECRET")
            .mrtd("ab");
        let text = format!("{policy:?}");
        assert!(text.contains("trust_authority_key") && text.contains("ab"));
        assert!(!text.contains("SECRET"), "{text}");
    }
}
