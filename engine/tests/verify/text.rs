//! The text report as a snapshot, and that it contains no terminal escape sequences.

use attest::mock::{Event, PlatformLevel};

use crate::command::{Run, step};
use crate::fixture::CommandFixture;

/// The report without the paths of files.
fn without_paths(run: &Run) -> String {
    let lines = run.stdout.lines().map(|line| match line {
        line if line.starts_with("certificate ") => {
            let rest = line.split_once(", verified").expect("the first line").1;
            format!("certificate FILE, verified{rest}\n")
        }
        line if line.starts_with("       source") => "       source FILE\n".to_owned(),
        line => format!("{line}\n"),
    });
    lines.collect()
}

#[test]
fn accepted() {
    let run = CommandFixture::default().verify(&[]);
    assert_eq!(run.code, 0, "{run:?}");
    insta::assert_snapshot!(without_paths(&run));
}

#[test]
fn refused_for_several_reasons() {
    let fixture = CommandFixture::with(|peer| {
        peer.evidence.report.debug = true;
        peer.platform.level = PlatformLevel::OutOfDate;
    });
    let run = fixture.verify(&["--allowed-mrtd", &"12".repeat(48)]);
    assert_eq!(run.code, 1, "{run:?}");
    insta::assert_snapshot!(without_paths(&run));
}

#[test]
fn escapes_terminal_sequences_of_a_peer() {
    let hostile = "\u{1b}]0;owned\u{7}\u{1b}[2J\r\n[ ok ] binding\u{9b}\u{202e}";
    let fixture = CommandFixture::with(|peer| {
        peer.leaf.subject = hostile.to_owned();
        peer.evidence.key_provider = hostile.as_bytes().to_vec();
        peer.evidence.after_ready = vec![Event::new(hostile, b"")];
    });
    let run = fixture.verify(&[]);
    assert_eq!(run.code, 0, "{run:?}");
    let forbidden = |char: char| char.is_control() && char != '\n' || char == '\u{202e}';
    assert!(!run.stdout.contains(forbidden), "{run:?}");
    assert_eq!(run.stdout.matches("\n[ ok ] binding").count(), 1);
    let json = fixture.verify(&["--format", "json"]);
    let subject = step(&json.json(), "certificate")["facts"]["subject"].clone();
    assert!(!subject.as_str().unwrap().contains(forbidden), "{subject}");
    assert!(
        subject.as_str().unwrap().contains(r"\u{1b}[2J\r\n"),
        "{subject}"
    );
}
