//! The status page: one HTML document with its style and its script in it, and the Content-Security-Policy that lets nothing
//! else run.
//!
//! It is complete without JavaScript. The script only loads it again and replaces its parts.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest as _, Sha256};

use crate::endpoints::endpoints;
use crate::readiness::{Readiness, all_ready};
use crate::role::ClusterStatus;
use crate::source::Source;
use crate::stats::Stats;
use crate::status::Status;
use chart::chart;

mod chart;
mod format;
mod sections;

const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/script.js");
/// How long a page is sent again before another is made. It limits the cost of clients that reload in a loop.
const MAX_AGE: Duration = Duration::from_secs(1);

/// Makes the page, and keeps the last one.
pub(crate) struct StatusPage {
    policy: HeaderValue,
    last: Mutex<Option<(Instant, Bytes)>>,
}

impl StatusPage {
    pub(crate) fn new() -> Self {
        Self {
            policy: policy(),
            last: Mutex::default(),
        }
    }

    /// The Content-Security-Policy of the page.
    pub(crate) fn policy(&self) -> HeaderValue {
        self.policy.clone()
    }

    /// The page; `None` if the source has none.
    pub(crate) fn get(
        &self,
        readiness: &Readiness,
        source: &Arc<dyn Source>,
        stats: &Stats,
    ) -> Option<Bytes> {
        // Only the admin thread takes this lock. After a panic of the source it holds the previous page.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, page)) = &*last
            && made.elapsed() < MAX_AGE
        {
            return Some(page.clone());
        }
        let status = source.status(stats)?;
        let page = page(readiness, source.mode(), source.cluster().as_ref(), &status);
        let page = Bytes::from(page.into_string());
        *last = Some((Instant::now(), page.clone()));
        Some(page)
    }
}

/// Nothing is loaded but the page itself, and nothing runs but its own script.
fn policy() -> HeaderValue {
    let hash = |text: &str| STANDARD.encode(Sha256::digest(text));
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        hash(SCRIPT),
        hash(STYLE)
    );
    // It consists of ASCII.
    HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
}

fn page(
    readiness: &Readiness,
    mode: &str,
    cluster: Option<&ClusterStatus>,
    status: &Status,
) -> Markup {
    let checks = readiness.checks();
    let ready = all_ready(&checks);
    let word = if ready { "Ready" } else { "Not ready" };
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                title { (word) " · " (status.program) }
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                link rel="icon" id="icon" href=(icon(ready));
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (status.program) }
                    p id="state" class=(if ready { "badge ok" } else { "badge bad" }) role="status" { (word) }
                    p class="badge" id="mode" { (mode) }
                    p class="updated" {
                        span id="note" { "As of " time datetime=(status.made_at) { (clock(&status.made_at)) } " UTC" }
                        " "
                        button id="pause" type="button" hidden { "Pause updates" }
                    }
                    noscript { p class="muted" { "Reload the page for newer values." } }
                }
                main id="main" {
                    (sections::readiness(&checks))
                    (sections::warnings(&status.warnings))
                    @if !status.charts.is_empty() {
                        section aria-labelledby="charts" {
                            h2 id="charts" { "Last ten minutes" }
                            div class="charts" { @for one in &status.charts { (chart(one)) } }
                        }
                    }
                    @if let Some(cluster) = cluster { (sections::cluster(cluster)) }
                    // In columns where the window is wide enough.
                    div class="tables" {
                        (sections::tables(&status.tables))
                        (sections::facts(&status.lifetimes, &status.build, status.uptime))
                    }
                    (sections::refusals(&status.refusals))
                }
                footer {
                    nav aria-label="Other paths" {
                        ul { @for (path, what) in endpoints(mode, cluster.is_some()) { li { a href=(path) { (path) } " " span class="muted" { (what) } } } }
                    }
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    }
}

/// The time of day in a text of RFC 3339.
fn clock(made_at: &str) -> &str {
    made_at.get(11..19).unwrap_or(made_at)
}

/// A dot whose colour says whether the process is ready.
fn icon(ready: bool) -> String {
    let colour = if ready { "2da44e" } else { "d1242f" };
    format!(
        "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Ccircle cx='8' cy='8' r='7' \
         fill='%23{colour}'/%3E%3C/svg%3E"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::role::Role;
    use crate::status::{Chart, Fact, Lifetime, Line, Refusal, Table, Unit};

    /// Would run in each of the places where text stands: element, attribute, script and style.
    const HOSTILE: &str = "</title></style></script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&lt;`<b>`\u{0}\u{202e}";

    fn hostile_page() -> String {
        let text = || HOSTILE.to_owned();
        let readiness = Readiness::new();
        readiness.latch("identity", HOSTILE);
        let cluster = ClusterStatus {
            role: Role::Other,
            lag: None,
            document: json!({
                "name": HOSTILE, "member": HOSTILE, "role": HOSTILE, "leader": HOSTILE, "fenced": HOSTILE,
                "pause": true, "errors": [HOSTILE],
                "members": [{ "name": HOSTILE, "role": HOSTILE, "state": [HOSTILE], "lag": { HOSTILE: HOSTILE } }],
            }),
        };
        let status = Status {
            program: text(),
            made_at: text(),
            build: vec![Fact {
                name: "version",
                value: text(),
            }],
            uptime: Some(Duration::MAX),
            warnings: vec![text()],
            lifetimes: vec![Lifetime {
                name: "certificate",
                seconds: Some(f64::NAN),
                warn_below: 1.0,
            }],
            charts: vec![Chart {
                title: "Throughput",
                unit: Unit::Count,
                span: Duration::MAX,
                lines: vec![Line {
                    name: "received",
                    points: vec![
                        Some(f64::NAN),
                        Some(f64::INFINITY),
                        Some(-1.0),
                        Some(f64::MAX),
                    ],
                }],
            }],
            tables: vec![Table {
                title: "Sessions by peer",
                note: "note",
                columns: vec!["Peer", "Sessions"],
                text_columns: 1,
                rows: vec![vec![text(), text()]],
            }],
            refusals: vec![Refusal {
                code: text(),
                what: "login",
                count: u64::MAX,
                last: Some(Duration::MAX),
                meaning: text(),
                remedy: text(),
            }],
        };
        page(&readiness, HOSTILE, Some(&cluster), &status).into_string()
    }

    #[test]
    fn hostile_values_are_text() {
        let page = hostile_page();
        // What the page itself consists of.
        assert_eq!(page.matches("<script>").count(), 1);
        assert_eq!(page.matches("</script>").count(), 1);
        assert_eq!(page.matches("</style>").count(), 1);
        assert_eq!(page.matches("</title>").count(), 1);
        assert!(!page.contains("<img"), "{page}");
        assert!(!page.contains("<b>`"), "{page}");
        assert!(
            page.matches("&lt;script&gt;alert(1)").count() >= 15,
            "{page}"
        );
        let own = page.replace(STYLE, "").replace(SCRIPT, "");
        for attribute in own.split("=\"").skip(1) {
            let value = attribute.split('"').next().unwrap_or_default();
            assert!(!value.contains(['<', '>']), "{value}");
        }
    }

    #[test]
    fn style_and_script_are_those_of_the_policy() {
        let page = hostile_page();
        let between = |start: &str, end: &str| {
            let (_, rest) = page.split_once(start).unwrap();
            rest.split_once(end).unwrap().0.to_owned()
        };
        assert_eq!(between("<style>", "</style>"), STYLE);
        assert_eq!(between("<script>", "</script>"), SCRIPT);
        for text in [STYLE, SCRIPT] {
            assert!(!text.contains("</"), "it would end its element");
        }
        let policy = policy();
        let policy = policy.to_str().unwrap();
        assert!(
            policy.starts_with("default-src 'none'; script-src 'sha256-"),
            "{policy}"
        );
        assert!(!policy.contains("unsafe"), "{policy}");
        // No attribute would be allowed.
        assert!(!page.contains(" style=") && !page.contains(" onclick="));
    }

    #[test]
    fn a_value_does_not_change_the_direction_of_what_is_beside_it() {
        let mut lines = STYLE.lines();
        let rule = lines.find(|line| line.contains("unicode-bidi: isolate"));
        let selectors = rule.and_then(|rule| rule.split_once(" {")).unwrap().0;
        let isolated: Vec<_> = selectors.split(", ").collect();
        // The elements in which values of peers stand.
        for selector in [".reason", "td", "th", "dd", "code"] {
            assert!(isolated.contains(&selector), "{selector}");
        }
        // The attribute `dir` and `bdo` are not used: they would override it.
        assert!(!hostile_page().contains(" dir="));
    }

    #[test]
    fn the_word_says_whether_it_is_ready() {
        let readiness = Readiness::new();
        let latch = readiness.latch("identity", "no certificate yet");
        let render = || page(&readiness, "production", None, &Status::default()).into_string();
        assert!(render().contains("role=\"status\">Not ready<"));
        assert!(render().contains("no certificate yet"));
        latch.set_ready();
        assert!(render().contains("role=\"status\">Ready<"));
        latch.set_ready_despite("it expires soon");
        assert!(render().contains("passes, with a warning"));
    }
}
