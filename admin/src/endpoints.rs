//! The paths that a process has, for the list at `/` and for the status page.

use crate::source::Source;

/// A path and what it is.
pub(crate) type Endpoint = (&'static str, &'static str);

/// Those of this process. A forwarder makes no quotes, and only a member of a cluster has a role.
pub(crate) fn endpoints(mode: &str, is_member: bool) -> Vec<Endpoint> {
    let mut endpoints = vec![
        ("/health", "liveness of the process"),
        ("/ready", "whether clients may be routed here"),
        ("/metrics", "Prometheus metrics"),
    ];
    if mode != "forward" {
        let what = "TDX quote over the state of Postgres; with ?nonce=<hex> a fresh one";
        endpoints.push(("/attestation", what));
    }
    if is_member {
        let what = "whether this member of a cluster leads it; also /leader, /replica?lag=16MB, /read-only";
        endpoints.push(("/primary", what));
        endpoints.push(("/cluster", "the members of the cluster"));
    }
    endpoints
}

/// The list at `/`.
pub(crate) fn index(source: &dyn Source, has_page: bool) -> String {
    let page = ("/", "with a browser: a page about the state of the process");
    let mut all = endpoints(source.mode(), source.cluster().is_some());
    if has_page {
        all.insert(0, page);
    }
    let lines = all
        .iter()
        .map(|(path, what)| format!("{path:<13} {what}\n"));
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_has_its_own_paths() {
        let paths = |mode, is_member| {
            let all = endpoints(mode, is_member).into_iter();
            all.map(|(path, _)| path).collect::<Vec<_>>()
        };
        let common = ["/health", "/ready", "/metrics"];
        assert_eq!(paths("forward", false), common);
        let sidecar = paths("production", false);
        assert_eq!(sidecar[..3], common);
        assert_eq!(sidecar[3..], ["/attestation"]);
        let member = paths("simulator", true);
        assert_eq!(member[..4], sidecar);
        assert_eq!(member[4..], ["/primary", "/cluster"]);
    }
}
