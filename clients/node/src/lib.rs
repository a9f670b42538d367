//! The native part of the npm package `teesql`: a Node-API module over the crate `teesql`.
//!
//! Its functions are an interface between this file and the package's JavaScript, which checks the types of all arguments
//! and makes classes and exceptions of the results. They are not public.
//!
//! | File | Contents |
//! | --- | --- |
//! | `executor` | the thread that waits for futures, and callbacks with their results |
//! | `error` | errors as objects |
//! | `environment` | the forwarders of a JavaScript thread, which end with it |
//! | `options` | policies, identities and settings |
//! | `forwarder`, `verification`, `manifest` | the functions |
//! | `verifier` | questions to a verifier in JavaScript |
//! | `log` | events of `tracing` to JavaScript |
//!
//! What it must never do: block a JavaScript thread, keep a process alive that has nothing else to do, or call
//! JavaScript in a way that lets an exception end the process.

#![cfg_attr(
    test,
    allow(
        dead_code,
        reason = "napi-derive exports nothing in a test build, which only clippy makes"
    )
)]
#![allow(
    unreachable_pub,
    missing_docs,
    reason = "functions and objects for JavaScript have to be `pub`; index.d.ts documents what they become there"
)]

mod environment;
mod error;
mod executor;
mod forwarder;
mod log;
mod manifest;
mod options;
mod verification;
mod verifier;
