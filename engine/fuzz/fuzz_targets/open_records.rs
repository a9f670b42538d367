//! Opening TLS records: bytes from the network, and plaintexts that a peer with the keys sealed.
//!
//! Nothing that was not authenticated is released, nothing is opened after an error, and no more
//! than one record is buffered. The format of the input is described in
//! engine/src/tls/records/arbitrary.rs.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| engine::tls::fuzzing::open_records(data));
