//! The command line: files, flags, settings, exit codes.

use std::fs;

use crate::command::{Run, verify, verify_in};
use crate::fixture::{CommandFixture, NOW};

fn assert_usage_error(run: &Run, code: i32, message: &str) {
    assert_eq!(run.code, code, "{run:?}");
    assert!(run.stderr.contains(message), "{message}: {run:?}");
    assert_eq!(run.stdout, "", "{run:?}");
}

#[test]
fn wrong_arguments() {
    let fixture = CommandFixture::default();
    let pem = fixture.pem();
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
        assert_usage_error(&verify(arguments), 64, what);
    }
}

#[test]
fn unusable_files() {
    let fixture = CommandFixture::default();
    let pem = fixture.pem();
    let key = fixture.write("key.pem", fixture.peer.key("peer").to_pkcs8_pem().unwrap());
    let large = fixture.write("large", vec![4; (1 << 20) + 1]);
    let empty = fixture.write("empty", "");
    let folder = fixture.path(".");
    for (arguments, what) in [
        (&[fixture.path("missing").as_str()][..], "cannot be read"),
        (&[folder.as_str()], "cannot be read"),
        (&[large.as_str()], "more than 1048576 bytes"),
        (&[empty.as_str()], "neither certificates nor a quote"),
        (&[key.as_str()], "neither certificates nor a quote"),
        (
            &[&pem, "--collateral", &key],
            "no QuoteCollateralV3 in JSON",
        ),
        (
            &[&pem, "--collateral", &fixture.path("missing")],
            "cannot be read",
        ),
        (
            &["127.0.0.1:1", "--client-cert", &key, "--client-key", &key],
            "not a PEM certificate",
        ),
    ] {
        assert_usage_error(&verify(arguments), 66, what);
    }
}

/// The same evidence in each format that a file may have.
#[test]
fn formats_of_a_file() {
    let fixture = CommandFixture::default();
    let certificate = fixture.peer.certificate();
    let quote = certificate.quote().unwrap();
    let hex: String = quote.iter().map(|byte| format!("{byte:02X}\n")).collect();
    for (name, bytes, code) in [
        ("leaf.der", certificate.der().to_vec(), 0),
        ("leaf.pem", certificate.pem().as_bytes().to_vec(), 0),
        ("quote.bin", quote.to_vec(), 2),
        ("quote.hex", hex.into_bytes(), 2),
    ] {
        let mut arguments = vec![fixture.write(name, bytes)];
        arguments.extend(fixture.flags());
        let run = verify(arguments);
        assert_eq!(run.code, code, "{name}: {run:?}");
    }
}

/// A file has precedence over a server of the same name, and `--as` over the first bytes.
#[test]
fn ambiguous_names() {
    let fixture = CommandFixture::default();
    let path = fixture.write("peer:5433", fixture.peer.certificate().chain_pem());
    let mut arguments = vec![path];
    arguments.extend(fixture.flags());
    assert_eq!(verify(&arguments).code, 0);
    arguments.extend(["--as".to_owned(), "quote".to_owned()]);
    let run = verify(&arguments);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.last_line().starts_with("REFUSED: "), "{run:?}");
}

/// The policy is read from the sidecar's file and environment; other settings are ignored.
#[test]
fn settings_of_the_sidecar() {
    let fixture = CommandFixture::default();
    let root = fixture.root_pem();
    let mut arguments = vec![fixture.pem()];
    arguments.extend(fixture.flags());
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
    let toml = fixture.write("sidecar.toml", toml);
    let collateral = fixture.path("collateral.json");
    let at = NOW.to_string();
    let subject = fixture.path("peer.pem");
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
    assert_usage_error(&verify(arguments), 64, "dangerous_tdx_root_ca");
}
