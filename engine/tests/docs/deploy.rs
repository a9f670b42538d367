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

/// The variables that may come from the environment of the deployment and are no secrets: what a host can do by another
/// value is explained in the file. Of a member's name, the other members refuse a second VM that has it.
const NAMES: [&str; 1] = ["TEESQL_CLUSTER_MEMBER"];

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
            let in_environment = path.contains(".environment.");
            if SECRETS.contains(&name) && in_environment {
                uses_variables = true;
            } else if !(NAMES.contains(&name) && in_environment) {
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
    for name in ["compose.yaml", "cluster/compose.yaml"] {
        assert_eq!(compose_problems(&read(name)), [""; 0], "{name}");
    }
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

/// The sidecar's program with the environment of a service in a compose file.
fn sidecar(file: &str, service: &str) -> (Command, Yaml) {
    sidecar_in(&read(file), service)
}

fn sidecar_in(text: &str, service: &str) -> (Command, Yaml) {
    let documents = YamlLoader::load_from_str(text).unwrap();
    let service = documents[0]["services"][service].clone();
    let environment: BTreeMap<_, _> = service["environment"]
        .as_hash()
        .unwrap()
        .iter()
        .map(|(name, value)| (name.as_str().unwrap(), value.as_str().unwrap()))
        // A variable of the deployment.
        .map(|(name, value)| (name, if value.starts_with("${") { "b" } else { value }))
        .collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_teesql-sidecar"));
    command
        .env_clear()
        .envs(&environment)
        // The volume of the container.
        .env("TEESQL_COLLATERAL_DIR", std::env::temp_dir());
    (command, service)
}

/// `check` accepts the environment of the compose files, and knows each of its settings.
#[test]
fn sidecar_accepts_the_compose_files() {
    for file in ["compose.yaml", "cluster/compose.yaml"] {
        let output = sidecar(file, "sidecar").0.arg("check").output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{file}: {errors}");
        assert!(!errors.contains("unknown setting"), "{file}: {errors}");
    }
}

/// The member's compose file makes the configuration of the programs beside the sidecar, also with the backups that are
/// commented out.
#[test]
fn cluster_config_accepts_the_compose_file() {
    let text = read("cluster/compose.yaml");
    let with_backups = text.replace("      # - --backup", "      - --backup");
    assert_ne!(text, with_backups);
    for (text, expected) in [(text, "ETCD_NAME=b"), (with_backups, "repo1-type=s3")] {
        let printed = cluster_config(&text);
        for expected in ["name: b", "127.0.0.1:15433", expected] {
            assert!(printed.contains(expected), "{expected}: {printed}");
        }
    }
}

/// The policy that is commented out at the end of the member's compose file.
#[test]
fn sidecar_accepts_the_policy_of_the_compose_file() {
    let text = read("cluster/compose.yaml");
    let (_, configs) = text.split_once("\n# configs:\n").unwrap();
    let lines = configs.lines().map(|line| line.trim_start_matches('#'));
    let configs = format!("configs:\n{}", lines.collect::<Vec<_>>().join("\n"));
    let documents = YamlLoader::load_from_str(&configs).unwrap();
    let policy = documents[0]["configs"]["policy"]["content"].as_str();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.toml");
    fs::write(&file, policy.unwrap()).unwrap();
    let mut check = sidecar("cluster/compose.yaml", "sidecar").0;
    for name in ["TEESQL_ALLOWED_APP_ID", "TEESQL_KMS_ROOT"] {
        check.env_remove(name);
    }
    let check = check.arg("check").env("TEESQL_POLICY_FILE", &file);
    let output = check.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
}

/// What the service `config` of a compose file prints, without files.
fn cluster_config(text: &str) -> String {
    let (mut command, service) = sidecar_in(text, "config");
    let arguments = service["command"].as_vec().unwrap().iter();
    let arguments = arguments.map(|argument| argument.as_str().unwrap());
    // Without files nothing is asked of the guest agent.
    let printed = arguments
        .filter(|argument| !argument.starts_with("--owner") && !argument.starts_with("--dir"));
    let output = command.args(printed).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn dockerfile_pins_its_images() {
    for (file, count) in [("Dockerfile", 2), ("cluster/Dockerfile", 1)] {
        let text = read(file);
        let images: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("FROM "))
            .collect();
        assert_eq!(images.len(), count, "{file}");
        for image in images {
            assert!(is_pinned(image.split(' ').next().unwrap()), "{image}");
        }
        assert!(
            !text.contains("\nARG "),
            "{file}: an argument is not in the text"
        );
    }
}

/// A unit takes no settings from places that its text does not name, and secrets from files only.
#[test]
fn systemd_units_have_their_settings_in_their_text() {
    for file in [
        "teesql-sidecar.service",
        "teesql-forward@.service",
        "user/teesql-forward@.service",
    ] {
        let text = read(file);
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        for forbidden in ["EnvironmentFile=", "PassEnvironment="] {
            let found = lines.iter().find(|line| line.starts_with(forbidden));
            assert_eq!(found, None, "{file}");
        }
        let variables = lines
            .iter()
            .filter_map(|line| line.strip_prefix("Environment="));
        for line in variables {
            let (name, value) = line.split_once('=').unwrap();
            assert!(!value.is_empty() && !value.contains('$'), "{file}: {line}");
            let is_secret = SECRETS.contains(&name);
            assert!(!is_secret, "{file}: {line}: visible to every user");
        }
        for line in ["LimitCORE=0", "UMask=0077", "NoNewPrivileges=yes"] {
            assert!(lines.contains(&line), "{file}: {line}");
        }
        // It hides which user listens on Postgres' Unix socket.
        let hides_users = lines.iter().any(|line| line.starts_with("PrivateUsers="));
        assert!(!hides_users, "{file}");
    }
}
