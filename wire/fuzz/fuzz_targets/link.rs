//! Fuzzes the request that opens a link, and its answer: the whole input as the bytes that each of the
//! two members reads, and its parts as a name and the bytes of both directions.
//!
//! Checks that the decision does not depend on how the input is split and is made within the documented
//! buffer size, only names in the documented syntax are accepted, and all bytes after the frame and the
//! answer are forwarded unchanged.
#![no_main]

// Shared with the tests; no target uses the whole harness.
#[allow(dead_code)]
#[path = "../../tests/protocol/link_harness.rs"]
mod link_harness;

use libfuzzer_sys::fuzz_target;
use wire::link::{BootId, MemberName, ServiceName};

fuzz_target!(|data: &[u8]| {
    assert_eq!(
        ServiceName::new(data).is_ok(),
        link_harness::is_service_name(data)
    );
    assert_eq!(
        MemberName::new(data).is_ok(),
        link_harness::is_member_name(data)
    );
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(boot_id) = text.parse::<BootId>()
    {
        assert_eq!(boot_id.to_string(), text.to_ascii_lowercase());
    }
    link_harness::check_link_answer(data);
    if let Ok(Some((request, consumed))) = link_harness::check_link_request(data) {
        let rest = &data[consumed..];
        let (early, reply) = rest.split_at(rest.len() / 2);
        let forwarded = link_harness::check_link(&request, early, reply);
        assert_eq!(forwarded, [early, reply]);
    }
});
