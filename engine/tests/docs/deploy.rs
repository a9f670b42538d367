//! Checks the files in `docs/deploy`: what decides who is let in must be in the text that is measured, not in variables,
//! which a host can replace.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use yaml_rust2::{Yaml, YamlLoader};

/// The variables that may come from the environment of the deployment. They are secrets, and need a launch token.
const SECRETS: [&str; 3] = [
    "TEESQL_LAUNCH_TOKEN",
    "TEESQL_READ_SECRET",
    "TEESQL_READWRITE_SECRET",
];

fn read(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/deploy");
    fs::read_to_string(folder.join(name)).unwrap()
}

/// Every scalar of `yaml` with its path.
fn scalars(path: &str, yaml: &Yaml, found: &mut Vec<(String, String)>) {
    match yaml {
        Yaml::Hash(entries) => {
            for (key, value) in entries {
                scalars(&format!("{path}.{}", key.as_str().unwrap()), value, found);
            }
        }
        Yaml::Array(values) => {
            for value in values {
                scalars(path, value, found);
            }
        }
        Yaml::String(text) | Yaml::Real(text) => found.push((path.to_owned(), text.clone())),
        Yaml::Integer(number) => found.push((path.to_owned(), number.to_string())),
        Yaml::Boolean(value) => found.push((path.to_owned(), value.to_string())),
        Yaml::Null => found.push((path.to_owned(), String::new())),
        Yaml::Alias(_) | Yaml::BadValue => panic!("{path}: not resolved"),
    }
}

fn is_pinned(image: &str) -> bool {
    let digest = image.split_once("@sha256:").map(|(_, digest)| digest);
    digest.is_some_and(|digest| {
        digest.len() == 64 && digest.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
    })
}

/// Whether a key names a file or a variable of the host, whose content is not in the text. [Compose specification]
fn is_elsewhere(path: &str) -> bool {
    let keys: Vec<_> = path.split('.').skip(1).collect();
    match keys[..] {
        // A string, a list of strings, or a list of maps with `path`.
        [
            "services",
            _,
            "env_file" | "build" | "extends" | "label_file",
            ..,
        ] => true,
        // The content of a secret or configuration: only `content` is in the text.
        [
            "secrets" | "configs",
            _,
            "file" | "environment" | "external",
            ..,
        ] => true,
        ["include", ..] => true,
        _ => false,
    }
}

/// What a host could choose in a compose file, one line each.
fn compose_problems(text: &str) -> Vec<String> {
    let documents = YamlLoader::load_from_str(text).unwrap();
    let mut all = Vec::new();
    scalars("", &documents[0], &mut all);
    let mut problems = Vec::new();
    let mut uses_variables = false;
    for (path, value) in &all {
        let name = path.rsplit('.').next().unwrap();
        // `$$` is a literal dollar sign.
        if value.replace("$$", "").contains('$') {
            if SECRETS.contains(&name) && path.contains(".environment.") {
                uses_variables = true;
            } else {
                problems.push(format!("{path} = {value}: a variable"));
            }
        }
        if name == "image" && !is_pinned(value) {
            problems.push(format!("{path} = {value}: no digest"));
        }
        if is_elsewhere(path) {
            problems.push(format!("{path} = {value}: not in the text"));
        }
        // A variable without a value is taken from the environment.
        if path.contains(".environment.") && value.is_empty() {
            problems.push(format!("{path}: no value"));
        }
    }
    let is_digest = |(path, value): &(String, String)| {
        path.ends_with(".environment.TEESQL_LAUNCH_TOKEN_SHA256") && value.len() == 64
    };
    if uses_variables && !all.iter().any(is_digest) {
        problems.push("secrets in variables without a launch token".to_owned());
    }
    for (path, value) in all
        .iter()
        .filter(|(path, _)| path.starts_with(".services.") && path.ends_with(".environment"))
    {
        problems.push(format!(
            "{path}: {value}: a list, whose entries may lack values"
        ));
    }
    problems
}

#[test]
fn compose_file_has_nothing_that_a_host_can_choose() {
    assert_eq!(compose_problems(&read("compose.yaml")), [""; 0]);
}

/// The compose file with the secrets that are commented out instead of the derived ones.
#[test]
fn secrets_in_variables_need_the_launch_token() {
    let text = read("compose.yaml");
    let digest = format!("TEESQL_LAUNCH_TOKEN_SHA256: {}", "0a".repeat(32));
    let with = text
        .replace(
            "      # TEESQL_LAUNCH_TOKEN_SHA256: <the output of: printf %s \"$TOKEN\" | sha256sum>",
            &format!("      {digest}"),
        )
        .replace("      # TEESQL_", "      TEESQL_");
    assert!(with.contains("      TEESQL_READ_SECRET: ${") && with.contains(&digest));
    assert_eq!(compose_problems(&with), [""; 0]);
    let without = with.replace(&digest, "OTHER: x");
    assert_eq!(
        compose_problems(&without),
        ["secrets in variables without a launch token"]
    );
}

#[test]
fn each_kind_of_choice_is_found() {
    let text = "\
services:
  a:
    image: ${IMAGE:?x}
    command: [serve, \"--kms-root=$ROOT\"]
    env_file: x
    environment:
      TEESQL_ALLOWED_APP_ID: ${APP:-}
      TEESQL_KMS_ROOT:
      LITERAL: a$$b
  b:
    image: postgres:17
    environment: [TEESQL_POLICY]
    env_file:
      - path: y
        required: false
    build: .
    extends: { file: other.yaml, service: a }
    secrets: [password]
secrets:
  password: { environment: PASSWORD }
  key: { file: ./key }
  old: { external: true }
configs:
  policy: { file: ./policy.toml }
  literal: { content: text }
include: [other.yaml]
";
    assert_eq!(
        compose_problems(text),
        [
            ".services.a.image = ${IMAGE:?x}: a variable",
            ".services.a.image = ${IMAGE:?x}: no digest",
            ".services.a.command = --kms-root=$ROOT: a variable",
            ".services.a.env_file = x: not in the text",
            ".services.a.environment.TEESQL_ALLOWED_APP_ID = ${APP:-}: a variable",
            ".services.a.environment.TEESQL_KMS_ROOT: no value",
            ".services.b.image = postgres:17: no digest",
            ".services.b.env_file.path = y: not in the text",
            ".services.b.env_file.required = false: not in the text",
            ".services.b.build = .: not in the text",
            ".services.b.extends.file = other.yaml: not in the text",
            ".services.b.extends.service = a: not in the text",
            ".secrets.password.environment = PASSWORD: not in the text",
            ".secrets.key.file = ./key: not in the text",
            ".secrets.old.external = true: not in the text",
            ".configs.policy.file = ./policy.toml: not in the text",
            ".include = other.yaml: not in the text",
            ".services.b.environment: TEESQL_POLICY: a list, whose entries may lack values",
        ]
    );
}

/// `check` accepts the environment of the compose file, and knows each of its settings.
#[test]
fn sidecar_accepts_the_compose_file() {
    let documents = YamlLoader::load_from_str(&read("compose.yaml")).unwrap();
    let environment = documents[0]["services"]["sidecar"]["environment"].as_hash();
    let environment: BTreeMap<_, _> = environment
        .unwrap()
        .iter()
        .map(|(name, value)| (name.as_str().unwrap(), value.as_str().unwrap()))
        .collect();
    let folder = std::env::temp_dir();
    let output = Command::new(env!("CARGO_BIN_EXE_teesql-sidecar"))
        .arg("check")
        .env_clear()
        .envs(&environment)
        // The volume of the container.
        .env("TEESQL_COLLATERAL_DIR", folder)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    assert!(!errors.contains("unknown setting"), "{errors}");
}

#[test]
fn dockerfile_pins_its_images() {
    let text = read("Dockerfile");
    let images: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("FROM "))
        .collect();
    assert_eq!(images.len(), 2);
    for image in images {
        assert!(is_pinned(image.split(' ').next().unwrap()), "{image}");
    }
    assert!(!text.contains("\nARG "), "an argument is not in the text");
}

/// The unit takes no settings from places that its text does not name, and secrets from files only.
#[test]
fn systemd_unit_has_its_settings_in_its_text() {
    let text = read("teesql-sidecar.service");
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for forbidden in ["EnvironmentFile=", "PassEnvironment="] {
        assert!(
            !lines.iter().any(|line| line.starts_with(forbidden)),
            "{forbidden}"
        );
    }
    for line in lines
        .iter()
        .filter_map(|line| line.strip_prefix("Environment="))
    {
        let (name, value) = line.split_once('=').unwrap();
        assert!(!value.is_empty() && !value.contains('$'), "{line}");
        assert!(!SECRETS.contains(&name), "{line}: visible to every user");
    }
    for line in ["LimitCORE=0", "UMask=0077", "NoNewPrivileges=yes"] {
        assert!(lines.contains(&line), "{line}");
    }
    // It hides which user listens on Postgres' Unix socket.
    assert!(!lines.iter().any(|line| line.starts_with("PrivateUsers=")));
}
