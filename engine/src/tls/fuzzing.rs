//! Entry points of the fuzz targets in engine/fuzz.

/// Opens arbitrary bytes, or arbitrary plaintexts that were sealed.
///
/// # Panics
/// If the record layer violates an invariant.
pub fn open_records(bytes: &[u8]) {
    crate::tls::records::arbitrary::open(bytes);
}

/// Runs the bytes as a script against our record layer and against rustls.
///
/// # Panics
/// If the two differ, except in the known deviations.
pub fn record_layer_against_rustls(bytes: &[u8]) {
    crate::tls::session::differential::against_rustls(bytes);
}
