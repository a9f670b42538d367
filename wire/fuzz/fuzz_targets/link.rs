//! Fuzzes the request that opens a link, and its answer: the whole input as the bytes that each of the
//! two members reads, and its parts as the name of a service and the bytes of both directions.
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
use wire::link::{LinkAnswerStep, ServiceName};

fuzz_target!(|data: &[u8]| {
    assert_eq!(
        ServiceName::new(data).is_ok(),
        link_harness::is_service_name(data)
    );
    link_harness::check_link_answer(data);
    if let Ok(Some((service, consumed))) = link_harness::check_link_request(data) {
        let rest = &data[consumed..];
        let (early, reply) = rest.split_at(rest.len() / 2);
        let forwarded = link_harness::check_link(&service, early, reply);
        assert_eq!(forwarded, [early, reply]);
        let opened = link_harness::check_link_answer(&[&[0], rest].concat());
        assert_eq!(opened, LinkAnswerStep::Opened { consumed: 1 });
    }
});
