//! Policy files: what is read, and every mistake with its line.

use std::fs;

use attest::chain::KmsRoot;
use attest::mock::Fixture;
use attest::policy::file::{Context, Mistake, ReadError, parse, print, read, read_text};
use attest::policy::{KmsRootPin, PeerEntry};
use attest::values::{AppId, Mrtd, Rtmr};

use crate::policy_with;

const ROLES: [&str; 3] = ["teesql_read", "teesql_readwrite", "postgres"];

fn parsed(text: &str) -> Result<Vec<PeerEntry>, Vec<Mistake>> {
    let pki = Fixture::default().pki;
    let read_roots = |name: &str| match name {
        "kms.pem" => Ok(KmsRoot::from_pem(pki.kms_pem().as_bytes()).unwrap()),
        _ => Err("cannot be read: no such file".to_owned()),
    };
    parse(
        text,
        &Context {
            roles: &ROLES,
            default_roles: &ROLES[..2],
            default_kms_root: KmsRootPin::Own,
            read_roots: &read_roots,
        },
    )
}

/// The mistakes, one in a line.
fn mistakes(text: &str) -> String {
    let mistakes = parsed(text).unwrap_err();
    assert!(mistakes.is_sorted_by_key(|mistake| mistake.line));
    mistakes
        .iter()
        .map(|mistake| format!("{mistake}\n"))
        .collect()
}

fn os(name: &str, byte: &str) -> String {
    let value = byte.repeat(48);
    format!(
        "[[os]]\nname = \"{name}\"\nmrtd = \"{value}\"\nrtmr1 = \"{value}\"\nrtmr2 = \"{value}\"\n"
    )
}

fn peer(name: &str, keys: &str) -> String {
    format!("[[peer]]\nname = \"{name}\"\n{keys}\n")
}

fn app(byte: &str) -> String {
    format!("app_id = \"{}\"", byte.repeat(20))
}

#[test]
fn a_policy_is_read() {
    let text = format!(
        "{}rtmr0 = [\"{}\", \"{}\"]\nos_image_hash = \"{}\"\nxfam = \"e702060000000000\"\n\
         td_attributes = \"0000001000000000\"\n\n{}{}",
        os("dstack-0.6.0", "11"),
        "20".repeat(48),
        "30".repeat(48),
        "05".repeat(32),
        peer(
            "orders api",
            &format!(
                "{}\ncompose_hash = [\"{}\"]\nos = [\"dstack-0.6.0\"]\nroles = [\"teesql_read\"]\n\
                 databases = [\"orders\"]\nmax_sessions = 50\nsmt = false\npiid = \"{}\"",
                app("a1"),
                "c0".repeat(32),
                "ab".repeat(16)
            )
        ),
        peer(
            "operators",
            &format!(
                "{}\nkms_root = \"kms.pem\"\nroles = \"any\"\ndatabases = \"any\"",
                app("a2")
            )
        ),
    ) + &peer(
        "own",
        &format!("{}\nkms_root = \"own\"\nos = \"any\"", app("a3")),
    );
    let peers = parsed(&text).unwrap();
    let [orders, operators, own] = &peers[..] else {
        panic!("{} peers", peers.len())
    };
    assert_eq!(orders.name.as_deref(), Some("orders api"));
    assert_eq!(orders.app_id, [AppId([0xa1; 20])]);
    let system = &orders.os[0];
    assert_eq!(system.mrtd, [Mrtd([0x11; 48])]);
    assert_eq!(system.rtmr[0], [Rtmr([0x20; 48]), Rtmr([0x30; 48])]);
    assert!(system.is_pinned());
    assert_eq!(orders.kms_root, KmsRootPin::Any);
    assert_eq!(orders.platform.smt, Some(false));
    assert_eq!(orders.grants.roles, Some(vec!["teesql_read".into()]));
    assert_eq!(orders.grants.databases, Some(vec!["orders".into()]));
    assert_eq!(orders.grants.max_sessions, Some(50));
    assert!(matches!(&operators.kms_root, KmsRootPin::Roots(roots) if roots.len() == 1));
    assert_eq!(operators.grants.roles, None, "any role");
    assert_eq!(own.kms_root, KmsRootPin::Own);
    assert!(own.os.is_empty());
    let default = ["teesql_read".into(), "teesql_readwrite".into()];
    assert_eq!(own.grants.roles.as_deref(), Some(&default[..]));
    assert_eq!(own.grants.databases, None);
}

/// An entry without an operating system stands on this machine's own KMS, unless it says otherwise.
#[test]
fn default_of_the_kms_root() {
    let pin = |keys: &str| {
        let text = os("a", "11") + &peer("p", keys);
        parsed(&text).unwrap().remove(0).kms_root
    };
    let a1 = app("a1");
    assert_eq!(pin(&a1), KmsRootPin::Own);
    assert_eq!(pin(&format!("{a1}\nos = 'any'")), KmsRootPin::Own);
    assert_eq!(pin(&format!("{a1}\nos = 'a'")), KmsRootPin::Any);
    assert_eq!(
        pin(&format!("{a1}\nos = 'a'\nkms_root = 'own'")),
        KmsRootPin::Own
    );
    assert_eq!(pin(&format!("{a1}\nkms_root = 'any'")), KmsRootPin::Any);
    assert_eq!(
        pin("app_id = 'any'"),
        KmsRootPin::Any,
        "it compares nothing"
    );
}

#[test]
fn all_mistakes_are_reported_with_their_lines() {
    let text = format!(
        "titel = \"x\"\n\
         [[os]]\nname = \"a\"\nmrtd = \"11\"\nrtmr1 = []\nrtmr3 = \"00\"\n\
         [[peer]]\nname = \"p\"\nappid = \"{app}\"\nos = [\"b\", \"a\", \"a\"]\nroles = [\"admin\", \"\"]\n\
         max_sessions = 0\ndatabases = []\nsmt = \"on\"\nkms_root = [\"own\", \"nothing.pem\"]\n\
         [[peer]]\napp_id = [\n  \"{app}\",\n  \"{app}\",\n  \"any\",\n  7,\n]\nname = \"\"\n",
        app = "a1".repeat(20),
    );
    insta::assert_snapshot!(mistakes(&text));
}

#[test]
fn toml_that_cannot_be_read_is_reported_with_its_line() {
    for (text, line) in [
        ("[[os]]\nname = 'a\n", 2),
        ("[[os]]\nname = 'a'\nname = 'b'\n", 3),
        ("\n\n]]", 3),
    ] {
        let mistakes = parsed(text).unwrap_err();
        assert_eq!(mistakes[0].line, line, "{mistakes:?}");
        assert_eq!(mistakes.len(), 1);
    }
    for text in ["os = 1", "[os]\nname = 'a'", "peer = ['a']"] {
        let mistakes = mistakes(text);
        assert!(mistakes.contains("in double brackets"), "{mistakes}");
    }
}

#[test]
fn a_policy_without_a_peer_is_a_mistake() {
    assert_eq!(
        mistakes(""),
        "1: there is no [[peer]]: a policy without one admits no peer\n"
    );
    assert!(mistakes(&os("a", "11")).contains("there is no [[peer]]"));
}

#[test]
fn entries_that_contradict_each_other_are_mistakes() {
    let both = |first: &str, second: &str| {
        let text = peer("a", first) + &peer("b", second);
        parsed(&text).map_or_else(|_| mistakes(&text), |_| String::new())
    };
    let (a1, a2) = (app("a1"), app("a2"));
    let and = |app: &str, keys: &str| format!("{app}\n{keys}");
    assert_eq!(both(&a1, &a2), "");
    // The same, with the same and with other grants.
    assert!(both(&a1, &a1).starts_with("4: peer \"b\" never matches: peer \"a\" (line 1)"));
    assert!(both(&a1, &and(&a1, "roles = 'any'")).contains("never matches"));
    // A narrow entry after a wide one, and the other way round.
    let narrow = and(&a1, &format!("instance_id = '{}'", "1d".repeat(20)));
    assert!(both(&a1, &narrow).contains("move it up if it is the exception"));
    assert_eq!(both(&narrow, &and(&a1, "roles = 'any'")), "");
    // Both match some peers: which grants do those have?
    let compose = |bytes: [&str; 2]| {
        let [first, second] = bytes.map(|byte| byte.repeat(32));
        format!("compose_hash = ['{first}', '{second}']")
    };
    let first = and(&a1, &compose(["c0", "c1"]));
    let second = and(&a1, &compose(["c1", "c2"]));
    assert_eq!(both(&first, &second), "");
    let contradiction = both(&first, &and(&second, "max_sessions = 1"));
    assert!(
        contradiction.contains("contradicts peer \"a\""),
        "{contradiction}"
    );

    let same_name = peer("a", &a1) + &peer("a", &a2);
    assert!(mistakes(&same_name).contains("line 1 has an entry of this name"));
    let systems = os("x", "11") + &os("x", "12") + &peer("a", &a1);
    assert!(mistakes(&systems).contains("os \"x\": line 1 has an entry of this name"));
    let systems = os("x", "11") + &os("y", "11") + &peer("a", &a1);
    assert!(mistakes(&systems).contains("os \"y\" has the values of os \"x\" (line 1)"));
}

#[test]
fn sizes_are_capped() {
    let many = (0..300)
        .map(|n| peer(&format!("p{n}"), &app("a1")))
        .collect::<String>();
    assert_eq!(mistakes(&many), "1: more than 256 entries of [[peer]]\n");
    let values = (0..300).map(|n| format!("'{n:040x}',")).collect::<String>();
    let text = peer("p", &format!("app_id = [{values}]"));
    assert!(mistakes(&text).contains("more than 256 values"));
    let long = "n".repeat(65);
    assert!(mistakes(&peer(&long, &app("a1"))).contains("1 to 64 bytes"));
}

#[test]
fn files_are_read_once_and_in_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.toml");
    assert!(matches!(read_text(&path), Err(ReadError::Io(_))));
    assert!(matches!(read_text(folder.path()), Err(ReadError::NotAFile)));
    fs::write(&path, "x".repeat(10)).unwrap();
    assert_eq!(read(&path, 10).unwrap().len(), 10);
    assert!(matches!(read(&path, 9), Err(ReadError::TooLarge(9))));
    fs::write(&path, [0xff]).unwrap();
    assert!(matches!(read_text(&path), Err(ReadError::NotText)));
}

/// What is printed for a peer admits this peer, and no changed one.
type Change = fn(&mut Fixture);

#[test]
fn printed_policy_admits_the_peer_and_no_other() {
    let fixture = Fixture::default();
    let peer = fixture.verify().unwrap();
    let text = print(&peer);
    insta::assert_snapshot!(text);
    let peers = parsed(&text).unwrap();
    let outcome = |change: fn(&mut Fixture)| {
        Fixture::with(|f| {
            change(f);
            f.policy = policy_with(|settings| settings.peers = peers.clone());
        })
        .outcome()
    };
    assert_eq!(outcome(|_| {}), "admitted");
    assert_eq!(
        outcome(|f| f.evidence.instance_id = vec![1; 20]),
        "admitted"
    );
    assert!(
        policy_with(|s| s.peers = peers.clone())
            .unpinned()
            .is_empty()
    );
    let changes: [(Change, &str); 7] = [
        (|f| f.evidence.report.mrtd = [1; 48], "mrtd_not_allowed"),
        (|f| f.evidence.report.rtmr[0] = [1; 48], "rtmr_not_allowed"),
        (|f| f.evidence.report.rtmr[1] = [1; 48], "rtmr_not_allowed"),
        (|f| f.evidence.report.rtmr[2] = [1; 48], "rtmr_not_allowed"),
        (|f| f.evidence.app_id = vec![1; 20], "app_not_allowed"),
        (
            |f| f.evidence.compose_hash = vec![1; 32],
            "compose_hash_not_allowed",
        ),
        (
            |f| f.evidence.os_image_hash = vec![1; 32],
            "os_image_hash_not_allowed",
        ),
    ];
    for (change, code) in changes {
        assert_eq!(outcome(change), code);
    }
    let anonymous = Fixture::with(|f| f.evidence.ready = false);
    let text = print(&anonymous.verify().unwrap());
    assert_eq!(parsed(&text).unwrap()[0].rtmr3.len(), 1, "{text}");
}

#[test]
fn a_member_is_a_certain_application_and_no_client() {
    let entry = |keys: &str| peer("b", &format!("os = \"a\"\nmember = true\n{keys}"));
    let read = |keys: &str| parsed(&(os("a", "11") + &entry(keys))).map(|peers| peers[0].clone());
    let member = read(&app("a1")).unwrap();
    assert!(member.member);
    assert_eq!(member.grants.roles, Some(Vec::new()));
    let client_too = read(&(app("a1") + "\nroles = \"teesql_read\"")).unwrap();
    assert_eq!(client_too.grants.roles, Some(vec!["teesql_read".into()]));
    let text = mistakes(&(os("a", "11") + &entry("app_id = \"any\"")));
    assert!(text.contains("member: a member reaches"), "{text}");
    let text = mistakes(&peer("b", &format!("{}\nmember = \"yes\"", app("a1"))));
    assert!(text.contains("member: expected true or false"), "{text}");
}
