//! The child of a fork has none of the threads: it gets typed errors, and can start another forwarder.

#![allow(unsafe_code, reason = "fork")]

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use teesql::{ErrorKind, Forwarder};

use crate::harness::{SOON, builder, user};

pub(crate) fn trials() -> Vec<Trial> {
    vec![Trial::test("fork_after_start", || {
        fork_after_start();
        Ok(())
    })]
}

/// The exit code is that of the first check that fails.
fn child(forwarder: Forwarder) -> i32 {
    let forked =
        |error: teesql::Error| (error.kind(), error.code()) == (ErrorKind::Forked, "forked");
    let checks = [
        forwarder.dsn().is_err_and(forked),
        forwarder.host_and_port().is_err_and(forked),
        forwarder.rewrite("postgres://a@b/c").is_err_and(forked),
        forwarder.stop_blocking().is_err_and(forked),
        forwarder.last_failure().is_none(),
    ];
    if let Some(failed) = checks.iter().position(|passed| !passed) {
        return 10 + i32::try_from(failed).unwrap();
    }
    forwarder.terminate();
    drop(forwarder);
    let Ok(own) = builder().start_blocking() else {
        return 20;
    };
    let Ok(dsn) = own.dsn() else { return 21 };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let connected = runtime.unwrap().block_on(async {
        let client = crate::harness::connect_by(&dsn.parse().unwrap()).await;
        user(&client.unwrap()).await
    });
    if connected != "teesql_readwrite" {
        return 22;
    }
    match own.stop_blocking() {
        Ok(()) => 0,
        Err(_) => 23,
    }
}

fn fork_after_start() {
    let forwarder = builder().start_blocking().unwrap();
    // SAFETY: the child runs code that allocates, which glibc allows after the fork of a process with threads.
    let parent = match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| child(forwarder)));
            // Nothing of the parent's test may run here.
            // SAFETY: it ends the process.
            unsafe { nix::libc::_exit(code.unwrap_or(99)) }
        }
        ForkResult::Parent { child } => child,
    };
    let deadline = Instant::now() + SOON;
    let status = loop {
        match waitpid(parent, Some(WaitPidFlag::WNOHANG)).unwrap() {
            WaitStatus::StillAlive if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            WaitStatus::StillAlive => {
                kill(parent, Signal::SIGKILL).unwrap();
                waitpid(parent, None).unwrap();
                panic!("the child hangs");
            }
            status => break status,
        }
    };
    assert_eq!(status, WaitStatus::Exited(parent, 0));
    // The parent goes on.
    let dsn = forwarder.dsn().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(async {
        let client = crate::harness::connect_by(&dsn.parse().unwrap()).await;
        assert_eq!(user(&client.unwrap()).await, "teesql_readwrite");
    });
    forwarder.stop_blocking().unwrap();
}
