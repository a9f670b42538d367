//! Parses settings, and collects all errors instead of stopping at the first.

use std::net::SocketAddr;
use std::sync::Arc;

use super::layers::Layers;
use super::spec::{Setting, Spec};
use super::{Errors, settings};
use crate::tls::certificate::PemIdentity;

/// Reads a whole configuration with `read`. Returns it with the warnings about the layers.
///
/// `read` must read every setting before it unwraps the first, so that all mistakes are reported.
///
/// # Errors
/// All mistakes together, each with its source.
pub(super) fn read_all<T>(
    layers: &Layers,
    read: impl FnOnce(&mut Reader<'_>) -> Option<T>,
) -> Result<(T, Vec<String>), Errors> {
    let mut reader = Reader::new(layers);
    match read(&mut reader) {
        Some(config) if reader.errors.is_empty() => Ok((config, layers.warnings.clone())),
        _ => Err(Errors(reader.errors)),
    }
}

/// Reads settings and collects what is wrong with them.
pub(super) struct Reader<'a> {
    layers: &'a Layers,
    errors: Vec<String>,
    /// Keys in the order in which they were read.
    #[cfg(test)]
    pub(super) keys: Vec<&'static str>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(layers: &'a Layers) -> Self {
        Self {
            layers,
            errors: layers.errors.clone(),
            #[cfg(test)]
            keys: Vec::new(),
        }
    }

    /// Reads a setting that has a default or is required. `None` if it is missing or invalid; the
    /// error is recorded then.
    pub(super) fn read<T>(&mut self, setting: &'static Setting<T>) -> Option<T> {
        self.read_optional(setting)?.or_else(|| {
            let spec = &setting.spec;
            if !self.layers.is_unreadable(spec) {
                self.errors.push(format!(
                    "{key}: not set: use {}{}, --{} or the TOML key {key}",
                    spec.variable(),
                    if spec.is_secret() { " or …_FILE" } else { "" },
                    spec.flag(),
                    key = spec.key,
                ));
            }
            None
        })
    }

    /// Reads a setting that may be absent: `Some(None)` then, and `None` if it is invalid.
    pub(super) fn read_optional<T>(&mut self, setting: &'static Setting<T>) -> Option<Option<T>> {
        let spec = &setting.spec;
        #[cfg(test)]
        self.keys.push(spec.key);
        let Some((text, source)) = self.layers.text(spec) else {
            return Some(None);
        };
        match (setting.parse)(text) {
            Ok(value) => Some(Some(value)),
            Err(error) => {
                self.errors.push(if spec.is_secret() {
                    format!("{source}: {}: {error}", spec.key)
                } else {
                    format!("{source}: {} = {text:?}: {error}", spec.key)
                });
                None
            }
        }
    }

    /// Records an error about several settings.
    pub(super) fn error<T>(&mut self, text: impl Into<String>) -> Option<T> {
        self.errors.push(text.into());
        None
    }

    /// Records that of two settings that belong together, only `present` is set.
    pub(super) fn missing_counterpart<A, B, T>(
        &mut self,
        present: &'static Setting<A>,
        missing: &'static Setting<B>,
    ) -> Option<T> {
        let (present, missing) = (present.spec.key, missing.spec.key);
        self.error(format!("{missing}: not set, but {present} is"))
    }

    /// Where a setting was set; `None` if it has its default.
    pub(super) fn source(&self, spec: &Spec) -> Option<&'a str> {
        self.layers.source(spec)
    }

    /// The client certificate that the program has set, and no setting.
    pub(super) fn pem_identity(&self) -> Option<Arc<PemIdentity>> {
        self.layers.pem_identity.clone()
    }

    /// Whether the sidecar runs in simulator mode.
    pub(super) fn simulator_mode(&self) -> bool {
        self.layers.simulator_mode()
    }

    /// Where clients connect, for checks of other settings. `None` if it is invalid.
    pub(super) fn listen(&self) -> Option<SocketAddr> {
        let (text, _) = self.layers.text(&settings::LISTEN.spec)?;
        (settings::LISTEN.parse)(text).ok()
    }

    /// Whether clients must be attested. Outside simulator mode, turning this off needs two settings.
    pub(super) fn attestation_required(&mut self) -> Option<bool> {
        let required = self.read(&settings::REQUIRE_CLIENT_ATTESTATION);
        let allowed = self.read(&settings::ALLOW_UNATTESTED_CLIENTS);
        let (required, allowed) = (required?, allowed?);
        if self.simulator_mode() {
            self.check_simulator_mode(required || allowed);
        } else if !required && !allowed {
            self.errors.push(
                "require_client_attestation is false, so that clients need not prove which code \
                 they run: confirm with TEESQL_ALLOW_UNATTESTED_CLIENTS=true"
                    .to_owned(),
            );
        }
        Some(required)
    }

    /// Simulator mode is for a developer's machine: never for a TDX guest, and beyond loopback only if it is confirmed.
    fn check_simulator_mode(&mut self, confirmed: bool) {
        if self.layers.is_tdx_guest {
            self.errors.push(
                "simulator_endpoint (DSTACK_SIMULATOR_ENDPOINT) is set, but this machine is a TDX guest: in simulator \
                 mode clients are not attested, and the sidecar's own certificate proves nothing. Unset it"
                    .to_owned(),
            );
        }
        if let Some(listen) = self.listen().filter(|listen| !listen.ip().is_loopback())
            && !confirmed
        {
            self.errors.push(format!(
                "listen = {listen} in simulator mode: clients from other machines are not attested: confirm with \
                 TEESQL_ALLOW_UNATTESTED_CLIENTS=true, or listen on 127.0.0.1"
            ));
        }
    }
}
