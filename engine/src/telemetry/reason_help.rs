//! What reason codes mean and what to do about them: the tables of docs/reference/reason-codes.md, read from the page itself.
//!
//! It exists so that the status page and the documentation have one list. `reason-codes.md` beside this file is a symbolic
//! link to the page, which a package of this crate contains as a file.

use std::collections::HashMap;
use std::sync::LazyLock;

/// The page.
const PAGE: &str = include_str!("reason-codes.md");

/// The sections that are not about the logins of a sidecar.
const OF_OTHERS: [&str; 4] = ["Sessions", "Forwarder", "Links", "Verify"];
/// The row of all codes of TLS, in the sections that do not list them.
const ANY_TLS: &str = "tls_…";

/// Where a code occurs. Some have another meaning there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ReasonContext {
    /// A connection to a sidecar that was refused before it was a session.
    Login,
    /// The same of a forwarder: a driver's connection.
    ForwarderLogin,
    /// A session that has ended.
    Session,
    /// A link between members.
    Link,
    /// A forwarder's attempt to reach a server.
    Server,
}

/// What a code means. Text in backticks is code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReasonHelp {
    pub(crate) meaning: String,
    /// Empty if there is nothing to do.
    pub(crate) remedy: String,
}

/// What the page says of a code; `None` if it does not know it.
pub(crate) fn reason_help(code: &str, context: ReasonContext) -> Option<&'static ReasonHelp> {
    static TABLES: LazyLock<Tables<'static>> = LazyLock::new(|| Tables::read(PAGE));
    TABLES.get(code, context)
}

/// For each code its rows, with the heading that they stand under.
struct Tables<'a>(HashMap<&'a str, Vec<(&'a str, ReasonHelp)>>);

impl<'a> Tables<'a> {
    fn read(page: &'a str) -> Self {
        let mut tables = Self(HashMap::new());
        let (mut section, mut columns) = ("", None);
        for line in page.lines() {
            if let Some(heading) = line.strip_prefix("## ") {
                section = heading;
            }
            let Some(row) = line.strip_prefix('|') else {
                columns = None;
                continue;
            };
            let row = row.strip_suffix('|').unwrap_or(row);
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            if cells.first() == Some(&"Code") {
                columns = Some(Columns::of(&cells));
            } else if let Some(columns) = &columns
                && cells.first() != Some(&"---")
            {
                tables.insert(section, &cells, columns);
            }
        }
        tables
    }

    fn insert(&mut self, section: &'a str, cells: &[&'a str], columns: &Columns) {
        let cell = |position: Option<usize>| {
            let cell = position.and_then(|position| cells.get(position));
            cell.map_or_else(String::new, |cell| without_links(cell))
        };
        let help = ReasonHelp {
            meaning: cell(columns.meaning),
            remedy: cell(columns.remedy),
        };
        let codes = cells.first().copied().unwrap_or_default().split(", ");
        for code in codes.map(|code| code.trim_matches('`')) {
            let rows = self.0.entry(code).or_default();
            rows.push((section, help.clone()));
        }
    }

    fn get(&self, code: &str, context: ReasonContext) -> Option<&ReasonHelp> {
        let wanted = match context {
            ReasonContext::Login => self.row(code, |section| !OF_OTHERS.contains(&section)),
            ReasonContext::Session => self.row(code, |section| section == "Sessions"),
            ReasonContext::Link => self.row(code, |section| section == "Links"),
            ReasonContext::ForwarderLogin | ReasonContext::Server => {
                // Its TLS is that with the server.
                let code = match code.starts_with("tls_") {
                    true => ANY_TLS,
                    false => code,
                };
                self.row(code, |section| section == "Forwarder")
            }
        };
        wanted.or_else(|| self.row(code, |_| true))
    }

    /// The first row of a code in one of the sections.
    fn row(&self, code: &str, is_wanted: impl Fn(&str) -> bool) -> Option<&ReasonHelp> {
        let mut rows = self.0.get(code)?.iter();
        let (_, help) = rows.find(|(section, _)| is_wanted(section))?;
        Some(help)
    }
}

/// The positions of the columns of a table.
struct Columns {
    meaning: Option<usize>,
    remedy: Option<usize>,
}

impl Columns {
    fn of(headings: &[&str]) -> Self {
        let position = |wanted: &str| {
            let mut headings = headings.iter();
            headings.position(|heading| heading.starts_with(wanted))
        };
        Self {
            // Also "Meaning and what to do".
            meaning: position("Meaning"),
            remedy: position("What to do"),
        }
    }
}

/// Replaces links by their texts: the page that they lead to is not where this is shown.
fn without_links(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('[') {
        plain.push_str(before);
        let link = after.split_once("](").and_then(|(label, target)| {
            let (_, behind) = target.split_once(')')?;
            Some((label, behind))
        });
        let Some((label, behind)) = link else {
            plain.push('[');
            rest = after;
            continue;
        };
        plain.push_str(label);
        rest = behind;
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::close_reason::REASONS;

    const CONTEXTS: [ReasonContext; 5] = [
        ReasonContext::Login,
        ReasonContext::ForwarderLogin,
        ReasonContext::Session,
        ReasonContext::Link,
        ReasonContext::Server,
    ];

    fn meaning(code: &str, context: ReasonContext) -> &'static str {
        reason_help(code, context).map_or("", |help| help.meaning.as_str())
    }

    #[test]
    fn every_reason_has_a_meaning() {
        let manifest = attest::manifest::ManifestError::CODES.iter();
        let authority = attest::ita::ItaError::CODES.iter();
        let denials = attest::Denial::CODES.iter();
        let verifiers = attest::Denial::VERIFIER_CODES.iter();
        let all = REASONS
            .iter()
            .chain(denials)
            .chain(verifiers)
            .chain(manifest)
            .chain(authority);
        for code in all {
            for context in CONTEXTS {
                assert_ne!(meaning(code, context), "", "{code} {context:?}");
            }
        }
        for context in CONTEXTS {
            assert_eq!(reason_help("no_such_code", context), None);
        }
    }

    #[test]
    fn the_page_has_the_sections_that_contexts_prefer() {
        let tables = Tables::read(PAGE);
        for wanted in OF_OTHERS {
            let mut rows = tables.0.values().flatten();
            assert!(rows.any(|(section, _)| *section == wanted), "{wanted}");
        }
        let rows = &tables.0[ANY_TLS];
        assert!(rows.iter().any(|(section, _)| *section == "Forwarder"));
    }

    #[test]
    fn a_code_has_one_meaning_among_the_logins_of_a_sidecar() {
        let tables = Tables::read(PAGE);
        let mut several: Vec<_> = tables
            .0
            .iter()
            .filter(|(_, rows)| {
                let of_logins = rows
                    .iter()
                    .filter(|(section, _)| !OF_OTHERS.contains(section));
                of_logins.count() > 1
            })
            .map(|(code, _)| *code)
            .collect();
        several.sort_unstable();
        // The first row covers both: see below.
        assert_eq!(several, ["overloaded"]);
    }

    #[test]
    fn a_code_has_the_meaning_of_its_context() {
        let login = meaning("fenced", ReasonContext::Login);
        assert!(login.contains("cluster_leader_wait"), "{login}");
        let session = meaning("fenced", ReasonContext::Session);
        assert!(session.contains("57P01"), "{session}");
        let help = reason_help("server_unreachable", ReasonContext::Server).unwrap();
        assert_eq!(help.remedy, "is the sidecar up, and the port open?");
        let link = meaning("link_draining", ReasonContext::Link);
        assert!(link.contains("shutting down"), "{link}");
        // A sidecar counts both under one code.
        let login = meaning("overloaded", ReasonContext::Login);
        assert!(login.contains("certificates"), "{login}");
        assert!(login.contains("SCRAM key derivations"), "{login}");
    }

    #[test]
    fn a_forwarder_has_other_meanings() {
        for context in [ReasonContext::ForwarderLogin, ReasonContext::Server] {
            let overloaded = meaning("overloaded", context);
            assert!(overloaded.contains("the server's address"), "{overloaded}");
            let tls = meaning("tls_alert_received", context);
            assert_eq!(tls, "TLS with the server failed");
            let timeout = meaning("server_timeout", context);
            assert!(timeout.contains("login_timeout"), "{timeout}");
            // What only a sidecar's section has.
            assert!(meaning("expired", context).contains("by its dates"));
        }
        let tls = meaning("tls_alert_received", ReasonContext::Login);
        assert!(tls.contains("the client refused the server"), "{tls}");
    }

    #[test]
    fn links_become_text() {
        assert_eq!(
            without_links("see [a `b`](c.md#d), [x] or [y](z"),
            "see a `b`, [x] or [y](z"
        );
        let help = reason_help("plaintext_cancel", ReasonContext::Login).unwrap();
        assert!(
            help.meaning.contains("and drivers such as pgjdbc"),
            "{}",
            help.meaning
        );
        assert!(
            help.remedy.contains("`statement_timeout`"),
            "{}",
            help.remedy
        );
    }

    #[test]
    fn several_codes_share_a_row() {
        let page = "## A\n\n| Code | What to do | Meaning |\n| --- | --- | --- |\n| `a`, `b` | do | it |\n\n| `c` | no | table |\n";
        let tables = Tables::read(page);
        for code in ["a", "b"] {
            let help = tables.get(code, ReasonContext::Session).unwrap();
            assert_eq!((help.remedy.as_str(), help.meaning.as_str()), ("do", "it"));
        }
        assert_eq!(tables.get("c", ReasonContext::Login), None);
    }
}
