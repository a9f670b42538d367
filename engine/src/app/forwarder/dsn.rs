//! Percent-encoding of values in a PostgreSQL connection URI.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// All but what a URI never gives a meaning to. [RFC 3986, 2.3]
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A path as a value in a DSN.
pub(crate) fn encode_query_value(path: &str) -> String {
    utf8_percent_encode(path, RESERVED).to_string()
}
