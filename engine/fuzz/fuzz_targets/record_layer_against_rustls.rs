//! Our record layer and rustls after the same handshake: a script of valid and invalid records.
//!
//! Both release the same plaintext, end in the same way and send the same records, except in the
//! known deviations. The format of the input is `Script::from_bytes` in
//! engine/src/tls/session/differential/script.rs.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| engine::tls::fuzzing::record_layer_against_rustls(data));
