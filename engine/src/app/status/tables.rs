//! The tables of the status page, and its warnings.

use std::collections::{BTreeMap, BTreeSet};

use admin::status::Table;

use super::exposition::{Exposition, Series};

/// The tables of what this process has: a forwarder has no roles, and a sidecar without a cluster no links.
pub(super) fn tables(now: &Exposition<'_>) -> Vec<Table> {
    let all = [roles(now), peers(now), links(now), servers(now)];
    all.into_iter().flatten().collect()
}

fn count(value: f64) -> String {
    format!("{value:.0}")
}

fn text(series: &Series<'_>, label: &str) -> String {
    series.label(label).unwrap_or_default().to_owned()
}

fn roles(now: &Exposition<'_>) -> Option<Table> {
    let connections = "teesql_connections";
    // Only a sidecar has this gauge from its start.
    if !now.has("teesql_mode_info") {
        return None;
    }
    let sessions = now
        .family(connections)
        .filter(|series| series.label("state") == Some("session"));
    let mut rows: Vec<_> = sessions
        .map(|series| vec![text(series, "role"), count(series.value)])
        .collect();
    rows.sort();
    rows.push(vec![
        "logging in".to_owned(),
        count(now.sum(connections, &[("state", "login")])),
    ]);
    rows.push(vec![
        "of these not attested yet".to_owned(),
        count(now.sum("teesql_unattested_connections", &[])),
    ]);
    Some(Table {
        title: "Sessions by role",
        note: "Connections of clients at this moment. `teesql-sidecar sessions` on the machine lists them.",
        columns: vec!["Role", "Sessions"],
        text_columns: 1,
        rows,
    })
}

fn peers(now: &Exposition<'_>) -> Option<Table> {
    let sessions = now.family("teesql_peer_sessions");
    let mut rows: Vec<_> = sessions
        .map(|series| vec![text(series, "peer"), count(series.value)])
        .collect();
    rows.sort();
    (!rows.is_empty()).then(|| Table {
        title: "Sessions by peer",
        note: "By the entries of the policy file that admit their clients.",
        columns: vec!["Peer", "Sessions"],
        text_columns: 1,
        rows,
    })
}

fn links(now: &Exposition<'_>) -> Option<Table> {
    let open = "teesql_links";
    let services: BTreeSet<_> = now
        .family(open)
        .filter_map(|series| series.label("service"))
        .collect();
    let of = |direction, service| {
        let labels = [("direction", direction), ("service", service)];
        count(now.sum(open, &labels))
    };
    let rows: Vec<_> = services
        .into_iter()
        .map(|service| {
            vec![
                service.to_owned(),
                of("accepted", service),
                of("opened", service),
            ]
        })
        .collect();
    (!rows.is_empty()).then(|| Table {
        title: "Links",
        note: "Open links between the members of the cluster.",
        columns: vec!["Service", "Accepted", "Opened"],
        text_columns: 1,
        rows,
    })
}

fn servers(now: &Exposition<'_>) -> Option<Table> {
    let attempts = "teesql_forward_target_attempts_total";
    let mut servers = BTreeMap::<_, (f64, f64)>::new();
    for series in now.family(attempts) {
        let (connected, failed) = servers.entry(text(series, "position")).or_default();
        match series.label("outcome") {
            Some("connected") => *connected += series.value,
            _ => *failed += series.value,
        }
    }
    let rows: Vec<_> = servers
        .into_iter()
        .map(|(position, (connected, failed))| vec![position, count(connected), count(failed)])
        .collect();
    (!rows.is_empty()).then(|| Table {
        title: "Servers",
        note: "Attempts to connect to each server since the start, by its position in `target`. With `cluster`, 1 is the leader.",
        columns: vec!["Server", "Connected", "Failed"],
        text_columns: 1,
        rows,
    })
}

/// Labels and their values.
type Labels = &'static [(&'static str, &'static str)];

/// Gauges that are 1 in a state that a production machine should not be in: the name, labels that the series must have, and a
/// sentence about the state.
const WARNINGS: [(&str, Labels, &str); 13] = [
    (
        "teesql_dangerous_tdx_root",
        &[],
        "Quotes are verified under another root than Intel's (`dangerous_tdx_root_ca`): its owner can forge any quote.",
    ),
    (
        "teesql_debug_td_allowed",
        &[],
        "TDs in debug mode are accepted (`allow_debug_td`): their hosts can read their memory.",
    ),
    (
        "teesql_unpinned_os_allowed",
        &[],
        "Identities are accepted from operating systems that are not pinned (`allow_unpinned_os`): any TD can claim them.",
    ),
    (
        "teesql_any_server_allowed",
        &[],
        "The policy need not say which application the server is (`allow_any_server`).",
    ),
    (
        "teesql_client_auth_password",
        &[],
        "Clients send their secret in cleartext inside TLS (`client_auth = password`).",
    ),
    (
        "teesql_postgres_auth_any",
        &[],
        "Postgres may ask for another authentication than SCRAM (`postgres_auth = any`).",
    ),
    (
        "teesql_stored_role_settings_allowed",
        &[],
        "Settings that are stored in Postgres for a role decide in new sessions (`allow_stored_role_settings`).",
    ),
    (
        "teesql_other_databases_allowed",
        &[],
        "Provisioning leaves other databases open (`allow_other_databases`).",
    ),
    (
        "teesql_audit_failing",
        &[],
        "The audit log cannot be written.",
    ),
    (
        "teesql_manifest_foreign_signer",
        &[],
        "Another key has signed a valid leader manifest of this cluster.",
    ),
    (
        "teesql_cluster_fenced",
        &[],
        "This member of the cluster is fenced: it takes no writes.",
    ),
    (
        "teesql_mode_info",
        &[("mode", "unattested")],
        "Clients are not attested (`allow_unattested_clients`): a cluster secret is sufficient.",
    ),
    (
        "teesql_mode_info",
        &[("mode", "simulator")],
        "This is simulator mode: nothing is attested. For development only.",
    ),
];

/// The sentences about all such states, and about what was lost.
pub(super) fn warnings(now: &Exposition<'_>) -> Vec<String> {
    let mut found: Vec<_> = WARNINGS
        .iter()
        .filter(|(gauge, labels, _)| now.sum(gauge, labels) > 0.0)
        .map(|(_, _, text)| (*text).to_owned())
        .collect();
    for (counter, text) in [
        (
            "teesql_panics_total",
            "caught panics, which are bugs: please report them with the log.",
        ),
        (
            "teesql_audit_lost_total",
            "events have no line in the audit log.",
        ),
    ] {
        let number = now.sum(counter, &[]);
        if number > 0.0 {
            found.push(format!("{number:.0} {text}"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn titles(text: &str) -> Vec<&'static str> {
        let tables = tables(&Exposition::parse(text)).into_iter();
        tables.map(|table| table.title).collect()
    }

    #[test]
    fn each_process_has_the_tables_that_it_has_series_of() {
        let sidecar = "teesql_mode_info{mode=\"production\"} 1\n\
            teesql_connections{state=\"session\",role=\"teesql_readwrite\"} 0\n\
            teesql_connections{state=\"session\",role=\"teesql_read\"} 2\n\
            teesql_connections{state=\"login\",role=\"none\"} 1\n";
        assert_eq!(titles(sidecar), ["Sessions by role"]);
        let tables = tables(&Exposition::parse(sidecar));
        assert_eq!(tables[0].rows[0], ["teesql_read", "2"]);
        assert_eq!(tables[0].rows[2], ["logging in", "1"]);
        let member = format!(
            "{sidecar}teesql_links{{direction=\"opened\",service=\"etcd-peer\"}} 3\n\
             teesql_peer_sessions{{peer=\"orders api\"}} 2\n"
        );
        assert_eq!(
            titles(&member),
            ["Sessions by role", "Sessions by peer", "Links"]
        );
        let forwarder = "teesql_forward_target_attempts_total{position=\"1\",outcome=\"failed\"} 4\n\
            teesql_connections{state=\"session\",role=\"teesql_read\"} 0\n";
        assert_eq!(titles(forwarder), ["Servers"]);
    }

    #[test]
    fn a_warning_is_shown_while_its_gauge_is_set() {
        let text = |value: u8| {
            format!(
                "teesql_debug_td_allowed {value}\nteesql_mode_info{{mode=\"production\"}} 1\n\
                 teesql_mode_info{{mode=\"simulator\"}} {value}\nteesql_panics_total {value}\n"
            )
        };
        assert!(warnings(&Exposition::parse(&text(0))).is_empty());
        let found = warnings(&Exposition::parse(&text(1)));
        let [debug, simulator, panics] = &found[..] else {
            panic!("{found:?}");
        };
        assert!(debug.contains("`allow_debug_td`"));
        assert!(simulator.contains("simulator mode"));
        assert!(panics.starts_with("1 caught panics"));
    }

    #[test]
    fn every_gauge_is_in_the_documentation() {
        let page = include_str!("../../../../docs/reference/metrics.md");
        for (gauge, _, _) in WARNINGS {
            assert!(page.contains(&format!("`{gauge}`")), "{gauge}");
        }
    }
}
