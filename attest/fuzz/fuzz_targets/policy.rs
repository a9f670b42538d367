//! A policy file. Parsing is deterministic, every mistake has a line of the file, and a parsed policy has only
//! entries with a name and pinned operating systems.
#![no_main]

use attest::Policy;
use attest::policy::file::{Context, parse};
use attest::policy::{KmsRootPin, Settings};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let context = Context {
        roles: &["teesql_read", "teesql_readwrite", "postgres"],
        default_roles: &["teesql_read"],
        default_kms_root: KmsRootPin::Own,
        read_roots: &|_| Err("no file".to_owned()),
    };
    let parsed = parse(text, &context);
    assert_eq!(parsed, parse(text, &context));
    match parsed {
        Ok(peers) => {
            let policy = Policy::new(Settings {
                peers,
                ..Settings::default()
            });
            assert!(policy.entries().all(|entry| entry.name.is_some()));
            assert!(policy.entries().all(|entry| entry.os.iter().all(|os| os.is_pinned())));
        }
        Err(mistakes) => {
            let lines = text.split('\n').count();
            assert!(!mistakes.is_empty());
            assert!(mistakes.iter().all(|mistake| (1..=lines).contains(&mistake.line)));
        }
    }
});
