//! How it is called: files, flags, settings, exit codes.

use std::fs;

use crate::command::{Run, verify, verify_in};
use crate::fixture::{Case, NOW};

fn says(run: &Run, code: i32, what: &str) {
    assert_eq!(run.code, code, "{run:?}");
    assert!(run.stderr.contains(what), "{what}: {run:?}");
    assert_eq!(run.stdout, "", "{run:?}");
}

#[test]
fn wrong_calls() {
    let case = Case::default();
    let pem = case.pem();
    for (arguments, what) in [
        (&[][..], "required"),
        (&["--no-such-flag"], "unexpected argument"),
        (&[&pem, "--format", "yaml"], "invalid value"),
        (&[&pem, "--at", "yesterday"], "invalid value"),
        (&[&pem, "--timeout", "0s"], "above zero"),
        (
            &[&pem, "--allowed-mrtd", "12"],
            "an MRTD takes 96 hex digits",
        ),
        (&[&pem, "--pccs", "ftp://x"], "http or https"),
        (&[&pem, "--raw-tls", "--ssl-request"], "cannot be used with"),
        (&[&pem, "--client-cert", &pem], "--client-key"),
        (&["nonsense", "--as", "server"], "HOST:PORT"),
    ] {
        says(&verify(arguments), 64, what);
    }
}

#[test]
fn files_that_are_not_what_they_should_be() {
    let case = Case::default();
    let pem = case.pem();
    let key = case.write("key.pem", case.key().to_pkcs8_pem().unwrap());
    let large = case.write("large", vec![4; (1 << 20) + 1]);
    let empty = case.write("empty", "");
    let folder = case.path(".");
    for (arguments, what) in [
        (&[case.path("missing").as_str()][..], "cannot be read"),
        (&[folder.as_str()], "cannot be read"),
        (&[large.as_str()], "more than 1048576 bytes"),
        (&[empty.as_str()], "neither certificates nor a quote"),
        (&[key.as_str()], "neither certificates nor a quote"),
        (
            &[&pem, "--collateral", &key],
            "no QuoteCollateralV3 in JSON",
        ),
        (
            &[&pem, "--collateral", &case.path("missing")],
            "cannot be read",
        ),
        (
            &["127.0.0.1:1", "--client-cert", &key, "--client-key", &key],
            "not a PEM certificate",
        ),
    ] {
        says(&verify(arguments), 66, what);
    }
}

/// The same evidence in each of the forms that a file may have.
#[test]
fn forms() {
    let case = Case::default();
    let certificate = case.certificate();
    let quote = certificate.quote().unwrap();
    let hex: String = quote.iter().map(|byte| format!("{byte:02X}\n")).collect();
    for (name, bytes, code) in [
        ("leaf.der", certificate.der().to_vec(), 0),
        ("leaf.pem", certificate.pem().as_bytes().to_vec(), 0),
        ("quote.bin", quote.to_vec(), 2),
        ("quote.hex", hex.into_bytes(), 2),
    ] {
        let mut arguments = vec![case.write(name, bytes)];
        arguments.extend(case.flags());
        let run = verify(arguments);
        assert_eq!(run.code, code, "{name}: {run:?}");
    }
}

/// A file wins over a server of the same name, and `--as` over the bytes.
#[test]
fn names_that_could_be_either() {
    let case = Case::default();
    let odd = case.write("peer:5433", case.certificate().chain_pem());
    let mut arguments = vec![odd];
    arguments.extend(case.flags());
    assert_eq!(verify(&arguments).code, 0);
    arguments.extend(["--as".to_owned(), "quote".to_owned()]);
    let run = verify(&arguments);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.last_line().starts_with("REFUSED: "), "{run:?}");
}

/// The policy is the sidecar's: its file and environment count, its secrets do not.
#[test]
fn the_sidecars_own_settings() {
    let case = Case::default();
    let root = case.write("root.pem", case.pki.root_pem());
    let mut arguments = vec![case.pem()];
    arguments.extend(case.flags());
    let other = "12".repeat(20);
    let environment = [("TEESQL_ALLOWED_APP_ID", other.as_str())];
    let run = verify_in(&environment, &arguments);
    assert!(
        run.last_line().starts_with("REFUSED: app_not_allowed"),
        "{run:?}"
    );

    let toml = format!(
        "allowed_app_id = \"{}\"\ndangerous_tdx_root_ca = \"{root}\"\n\
         read_secret_file = \"/there/is/no/such/file\"\nlisten = \"nonsense\"\n",
        "a1".repeat(20)
    );
    let toml = case.write("sidecar.toml", toml);
    let collateral = case.path("collateral.json");
    let at = NOW.to_string();
    let subject = case.path("peer.pem");
    let arguments = [
        &subject,
        "--config",
        &toml,
        "--collateral",
        &collateral,
        "--at",
        &at,
    ];
    let run = verify(arguments);
    assert_eq!((run.code, run.last_line()), (0, "ACCEPTED"), "{run:?}");
    fs::remove_file(&root).unwrap();
    says(&verify(arguments), 64, "dangerous_tdx_root_ca");
}
