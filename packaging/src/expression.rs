//! SPDX license expressions in the notation of Debian's copyright files (DEP-5).
//!
//! Of alternatives only those licenses are kept that have a text here; where none has one, that is an error, so that a
//! new license cannot slip in.

use crate::Result;

/// A license: its name in SPDX and in DEP-5, and its text.
pub(crate) struct License {
    spdx: &'static str,
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
}

const fn license(spdx: &'static str, name: &'static str, text: &'static str) -> License {
    License { spdx, name, text }
}

const APACHE: &str =
    "On Debian systems the text of this license is in /usr/share/common-licenses/Apache-2.0.";
const CC0: &str =
    "On Debian systems the text of this license is in /usr/share/common-licenses/CC0-1.0.";

/// The licenses of `deny.toml`.
pub(crate) static LICENSES: [License; 7] = [
    license("Apache-2.0", "Apache-2.0", APACHE),
    license(
        "BSD-3-Clause",
        "BSD-3-clause",
        include_str!("../licenses/BSD-3-Clause"),
    ),
    license("CC0-1.0", "CC0-1.0", CC0),
    license("ISC", "ISC", include_str!("../licenses/ISC")),
    license("MIT", "Expat", include_str!("../licenses/MIT")),
    license(
        "Unicode-3.0",
        "Unicode-3.0",
        include_str!("../licenses/Unicode-3.0"),
    ),
    license("Zlib", "Zlib", include_str!("../licenses/Zlib")),
];

/// Alternatives, of which all hold that are left: `(A OR B) AND C` is `[[A, B], [C]]`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Expression(Vec<Vec<&'static str>>);

impl Expression {
    /// Parses conjunctions of alternatives. crates.io still has `A/B` for `A OR B`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut all = Vec::new();
        for alternatives in text.replace('/', " OR ").split(" AND ") {
            let alternatives = alternatives.trim();
            let inner = alternatives
                .strip_prefix('(')
                .and_then(|rest| rest.strip_suffix(')'));
            let inner = inner.unwrap_or(alternatives);
            let known = |name: &str| LICENSES.iter().find(|license| license.spdx == name.trim());
            let mut found: Vec<_> = inner
                .split(" OR ")
                .filter_map(known)
                .map(|license| license.name)
                .collect();
            if found.is_empty() {
                return Err(format!("no text for the license {text}").into());
            }
            found.sort_unstable();
            found.dedup();
            all.push(found);
        }
        all.sort_by_key(|alternatives| alternatives.len());
        all.dedup();
        Ok(Self(all))
    }

    /// The names of its licenses.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().flatten().copied()
    }

    /// In DEP-5 `and` binds tighter than `or`, and a comma weaker than both.
    pub(crate) fn dep5(&self) -> String {
        let mut text = String::new();
        for alternatives in &self.0 {
            if !text.is_empty() {
                text.push_str(if alternatives.len() > 1 {
                    ", and "
                } else {
                    " and "
                });
            }
            text.push_str(&alternatives.join(" or "));
        }
        text
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::{Expression, LICENSES};

    #[test]
    fn expressions_are_written_as_in_dep5() {
        for (spdx, dep5) in [
            ("MIT", "Expat"),
            ("MIT/Apache-2.0", "Apache-2.0 or Expat"),
            ("Apache-2.0 AND ISC", "Apache-2.0 and ISC"),
            (
                "(MIT OR Apache-2.0) AND Unicode-3.0",
                "Unicode-3.0, and Apache-2.0 or Expat",
            ),
            (
                "ISC AND (Apache-2.0 OR ISC OR MIT-0) AND ISC",
                "ISC, and Apache-2.0 or ISC",
            ),
            // Others may be used under the licenses that are known.
            ("Unlicense OR MIT", "Expat"),
            (
                "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
                "Apache-2.0 or Expat",
            ),
        ] {
            assert_eq!(Expression::parse(spdx).unwrap().dep5(), dep5);
        }
    }

    #[test]
    fn licenses_are_those_that_dependencies_may_have() {
        let deny = include_str!("../../deny.toml");
        let (_, allowed) = deny.split_once("\nallow = [").unwrap();
        let (allowed, _) = allowed.split_once("\n]").unwrap();
        let mut allowed: Vec<_> = allowed.split('"').skip(1).step_by(2).collect();
        allowed.sort_unstable();
        assert_eq!(LICENSES.each_ref().map(|license| license.spdx), *allowed);
    }

    #[test]
    fn a_license_without_a_text_is_an_error() {
        for spdx in ["GPL-3.0", "MIT AND GPL-3.0", ""] {
            let error = Expression::parse(spdx).unwrap_err().to_string();
            assert_eq!(error, format!("no text for the license {spdx}"));
        }
    }
}
