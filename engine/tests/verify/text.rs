//! The text, word for word, and that no terminal obeys it.

use attest::mock::{Event, PlatformLevel};

use crate::command::{Run, step};
use crate::fixture::case;

/// The report without its folder.
fn shown(run: &Run) -> String {
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
    let run = case(|_| ()).verify(&[]);
    assert_eq!(run.code, 0, "{run:?}");
    insta::assert_snapshot!(shown(&run));
}

#[test]
fn refused_for_several_reasons() {
    let case = case(|case| {
        case.evidence.report.debug = true;
        case.platform.level = PlatformLevel::OutOfDate;
    });
    let run = case.verify(&["--allowed-mrtd", &"12".repeat(48)]);
    assert_eq!(run.code, 1, "{run:?}");
    insta::assert_snapshot!(shown(&run));
}

#[test]
fn a_peer_cannot_write_to_the_terminal() {
    let nasty = "\u{1b}]0;owned\u{7}\u{1b}[2J\r\n[ ok ] binding\u{9b}\u{202e}";
    let case = case(|case| {
        case.leaf.subject = nasty.to_owned();
        case.evidence.key_provider = nasty.as_bytes().to_vec();
        case.evidence.after_ready = vec![Event::new(nasty, b"")];
    });
    let run = case.verify(&[]);
    assert_eq!(run.code, 0, "{run:?}");
    let odd = |char: char| char.is_control() && char != '\n' || char == '\u{202e}';
    assert!(!run.stdout.contains(odd), "{run:?}");
    assert_eq!(run.stdout.matches("\n[ ok ] binding").count(), 1);
    let json = case.verify(&["--format", "json"]);
    let subject = step(&json.json(), "certificate")["facts"]["subject"].clone();
    assert!(!subject.as_str().unwrap().contains(odd), "{subject}");
    assert!(
        subject.as_str().unwrap().contains(r"\u{1b}[2J\r\n"),
        "{subject}"
    );
}
