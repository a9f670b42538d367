//! Percent-encoding of values in a PostgreSQL connection URI.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Everything except the unreserved characters. [RFC 3986, 2.3]
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Percent-encodes a value of a connection URI's query.
pub(crate) fn encode_query_value(value: &str) -> String {
    utf8_percent_encode(value, RESERVED).to_string()
}
