//! Tests of the plan, without a server.

use std::sync::LazyLock;

use super::desired::Requirement;
use super::state::{
    AutomaticLimits, Creator, CurrentState, Object, ObjectKind, OpenDatabase, RestrictedRoutine,
    RoleState, Scope,
};
use super::{
    ConnectionLimit, DesiredState, ManagedRole, ProvisionOptions, ReplicationState, differences,
    steps,
};
use wire::scram::{Password, Verifier};

static DESIRED: LazyLock<DesiredState> = LazyLock::new(|| DesiredState {
    database: "led\"ger".to_owned(),
    options: ProvisionOptions {
        read_connections: ConnectionLimit::Auto,
        readwrite_connections: ConnectionLimit::At(40),
        allow_other_databases: false,
    },
    read: (Password::new("reader's"), [1; 16]),
    readwrite: (Password::new("writer's"), [2; 16]),
    replication: None,
});

/// The same in a cluster.
static IN_A_CLUSTER: LazyLock<DesiredState> = LazyLock::new(|| DesiredState {
    database: DESIRED.database.clone(),
    options: DESIRED.options,
    read: DESIRED.read.clone(),
    readwrite: DESIRED.readwrite.clone(),
    replication: Some(ReplicationState {
        replicator: (Password::new("replicator's"), [3; 16]),
        rewind: (Password::new("rewind's"), [4; 16]),
    }),
});

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

fn object(scope: Scope, name: &str, read: &[&str], readwrite: &[&str]) -> Object {
    Object {
        scope,
        name: name.to_owned(),
        read: texts(read),
        readwrite: texts(readwrite),
        read_columns: Vec::new(),
        public_creates: false,
    }
}

fn role(role: ManagedRole) -> RoleState {
    RoleState {
        exists: true,
        can_login: true,
        verifier: IN_A_CLUSTER.verifier(role).map(|v| v.to_text()),
        replication: role == ManagedRole::Replicator,
        connection_limit: match role {
            ManagedRole::Read => 72,
            ManagedRole::ReadWrite => 40,
            ManagedRole::Replicator => 10,
            ManagedRole::Rewind => 16,
        },
        ..RoleState::default()
    }
}

/// A state without differences: two tables, a sequence and a function.
fn converged() -> CurrentState {
    let all = ["DELETE", "INSERT", "SELECT", "UPDATE"];
    let sequence = ["SELECT", "USAGE"];
    let future = |creator, kind, readwrite| {
        object(
            Scope::DefaultPrivileges(creator, kind),
            "future objects",
            &["SELECT"],
            readwrite,
        )
    };
    CurrentState {
        read: role(ManagedRole::Read),
        readwrite: role(ManagedRole::ReadWrite),
        replicator: role(ManagedRole::Replicator),
        rewind: role(ManagedRole::Rewind),
        rewind_lacks: Vec::new(),
        objects: vec![
            object(
                Scope::Database,
                "database ledger",
                &["CONNECT"],
                &["CONNECT"],
            ),
            object(
                Scope::Schema,
                "schema public",
                &["USAGE"],
                &["CREATE", "USAGE"],
            ),
            object(Scope::Table, "public.a", &["SELECT"], &all),
            object(Scope::Table, "public.b", &["SELECT"], &all),
            object(Scope::Sequence, "public.s", &["SELECT"], &sequence),
            object(Scope::Routine, "public.f()", &["EXECUTE"], &["EXECUTE"]),
            future(Creator::Superuser, ObjectKind::Tables, &all),
            future(Creator::Superuser, ObjectKind::Sequences, &sequence),
            future(Creator::ReadWrite, ObjectKind::Tables, &[]),
            future(Creator::ReadWrite, ObjectKind::Sequences, &[]),
        ],
        open_databases: Vec::new(),
        restricted_routines: vec![RestrictedRoutine {
            name: "lo_create(oid)".to_owned(),
            public: false,
            reader: false,
            writer: true,
        }],
        automatic_limits: AutomaticLimits {
            read: 72,
            readwrite: 92,
            replicator: 10,
            rewind: 16,
        },
    }
}

fn found(state: &CurrentState) -> Vec<String> {
    differences(steps(state, &DESIRED))
}

/// The differences after one change to the converged state.
fn after(change: impl FnOnce(&mut CurrentState)) -> Vec<String> {
    let mut state = converged();
    change(&mut state);
    found(&state)
}

fn requirements(state: &CurrentState) -> Vec<Requirement> {
    steps(state, &DESIRED)
        .iter()
        .map(|step| step.requirement)
        .collect()
}

#[test]
fn a_converged_state_has_no_steps() {
    assert_eq!(found(&converged()), [""; 0]);
}

#[test]
fn the_replication_roles_are_set_up_in_a_cluster_only() {
    let mut state = converged();
    assert_eq!(differences(steps(&state, &IN_A_CLUSTER)), [""; 0]);
    state.replicator.replication = false;
    state.replicator.superuser = true;
    state.rewind.replication = true;
    state.rewind.connection_limit = -1;
    state.rewind_lacks = texts(&["CONNECT on database postgres", "EXECUTE on pg_ls_dir(text)"]);
    let expected = [
        "replicator: is SUPERUSER",
        "replicator: lacks REPLICATION",
        "rewind: has REPLICATION",
        "rewind: connection limit is none instead of 16",
        "rewind: lacks CONNECT on database postgres, EXECUTE on pg_ls_dir(text)",
    ];
    assert_eq!(differences(steps(&state, &IN_A_CLUSTER)), expected);
    assert_eq!(found(&state), [""; 0]);
    assert!(!DESIRED.script().contains("replicator"));
}

#[test]
fn each_difference_is_reported_separately() {
    let role = |change: fn(&mut RoleState)| after(|state| change(&mut state.read));
    assert_eq!(
        role(|r| r.can_login = false),
        ["teesql_read: may not log in"]
    );
    assert_eq!(role(|r| r.superuser = true), ["teesql_read: is SUPERUSER"]);
    assert_eq!(role(|r| r.createdb = true), ["teesql_read: has CREATEDB"]);
    assert_eq!(
        role(|r| r.createrole = true),
        ["teesql_read: has CREATEROLE"]
    );
    assert_eq!(
        role(|r| r.replication = true),
        ["teesql_read: has REPLICATION"]
    );
    assert_eq!(role(|r| r.bypassrls = true), ["teesql_read: has BYPASSRLS"]);
    let expires = ["teesql_read: has a password that expires"];
    assert_eq!(role(|r| r.expires = true), expires);
    assert_eq!(
        role(|r| r.verifier = None),
        ["teesql_read: has no password"]
    );
    assert_eq!(
        role(|r| r.memberships = texts(&["pg_read_all_data", "x"])),
        ["teesql_read: is a member of pg_read_all_data, x"]
    );
}

#[test]
fn a_password_is_reset_only_when_its_verifier_does_not_match() {
    let stored = |text: String| after(|state| state.readwrite.verifier = Some(text.into()));
    let other_salt = Verifier::new(&Password::new("writer's"), &[9; 16]).to_text();
    assert_eq!(stored(other_salt.to_string()), [""; 0]);
    let other = Verifier::new(&Password::new("other"), &[9; 16]).to_text();
    assert_eq!(
        stored(other.to_string()),
        ["teesql_readwrite: has another password"]
    );
    assert_eq!(
        stored("md5aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".to_owned()),
        ["teesql_readwrite: has a password that is not stored as SCRAM-SHA-256"]
    );
}

#[test]
fn teesql_read_must_have_exactly_the_required_privileges() {
    let table = |change: fn(&mut Object)| after(|state| change(&mut state.objects[2]));
    assert_eq!(
        table(|o| o.read = texts(&["SELECT", "TRIGGER"])),
        ["teesql_read: has TRIGGER on public.a"]
    );
    // A privilege on a column may be forbidden, and never satisfies a requirement.
    assert_eq!(
        table(|o| o.read_columns = texts(&["INSERT", "SELECT"])),
        ["teesql_read: has INSERT on public.a"]
    );
    assert_eq!(
        table(|o| (o.read, o.read_columns) = (Vec::new(), texts(&["SELECT"]))),
        ["teesql_read: lacks SELECT on public.a"]
    );
    assert_eq!(
        after(|state| state.objects[4].read.push("USAGE".to_owned())),
        ["teesql_read: has USAGE on public.s"]
    );
    assert_eq!(
        after(|state| state.objects[1].read.push("CREATE".to_owned())),
        ["teesql_read: has CREATE on schema public"]
    );
}

#[test]
fn teesql_readwrite_may_have_more_privileges_in_public_only() {
    let more = |index: usize, privilege: &str| {
        after(|state| state.objects[index].readwrite.push(privilege.to_owned()))
    };
    assert_eq!(more(2, "TRUNCATE"), [""; 0]);
    assert_eq!(more(0, "TEMPORARY"), [""; 0]);
    assert_eq!(
        more(0, "CREATE"),
        ["teesql_readwrite: has CREATE on database ledger"]
    );
}

#[test]
fn stored_settings_are_differences() {
    let found = after(|state| state.read.settings = texts(&["DateStyle", "x in database y"]));
    let expected = ["teesql_read: has a stored setting of DateStyle, x in database y"];
    assert_eq!(found, expected);
}

#[test]
fn connection_limits_must_match() {
    let found = after(|state| {
        (
            state.read.connection_limit,
            state.readwrite.connection_limit,
        ) = (-1, 41);
    });
    let expected = [
        "teesql_read: connection limit is none instead of 72",
        "teesql_readwrite: connection limit is 41 instead of 40",
    ];
    assert_eq!(found, expected);
    // A server with more slots.
    let found = after(|state| state.automatic_limits.read = 100);
    assert_eq!(
        found,
        ["teesql_read: connection limit is 72 instead of 100"]
    );
}

#[test]
fn other_databases_must_be_closed_to_public() {
    let open = |name: &str, public: &[&str]| OpenDatabase {
        name: name.to_owned(),
        public: texts(public),
    };
    let mut state = converged();
    state.open_databases = vec![
        open("postgres", &["CONNECT", "TEMPORARY"]),
        open("template1", &["CONNECT"]),
    ];
    let expected = [
        "PUBLIC has CONNECT on database postgres, template1",
        "PUBLIC has TEMPORARY on database postgres",
    ];
    assert_eq!(found(&state), expected);
    let options = ProvisionOptions {
        allow_other_databases: true,
        ..DESIRED.options
    };
    let allowing = DesiredState {
        database: "d".to_owned(),
        options,
        read: DESIRED.read.clone(),
        readwrite: DESIRED.readwrite.clone(),
        replication: None,
    };
    assert_eq!(differences(steps(&state, &allowing)), [""; 0]);
    assert!(!allowing.script().contains("REVOKE CONNECT"));
}

#[test]
fn restricted_routines_are_for_writers_only() {
    let routine = |change: fn(&mut RestrictedRoutine)| {
        after(|state| change(&mut state.restricted_routines[0]))
    };
    assert_eq!(
        routine(|r| r.public = true),
        ["PUBLIC has EXECUTE on lo_create(oid)"]
    );
    assert_eq!(
        routine(|r| r.reader = true),
        ["teesql_read: has EXECUTE on lo_create(oid)"]
    );
    assert_eq!(
        routine(|r| r.writer = false),
        ["teesql_readwrite: lacks EXECUTE on lo_create(oid)"]
    );
}

#[test]
fn many_objects_make_one_short_line() {
    let state = CurrentState {
        objects: (0..1000)
            .map(|n| {
                object(
                    Scope::Table,
                    &format!("public.t{n}"),
                    &["SELECT"],
                    &["SELECT"],
                )
            })
            .chain(converged().objects)
            .collect(),
        ..converged()
    };
    assert_eq!(
        found(&state)[0],
        "teesql_readwrite: lacks INSERT on public.t0, public.t1, public.t2, public.t3, \
         public.t4 and 995 more"
    );
}

#[test]
fn a_missing_schema_is_created_before_privileges_are_granted() {
    let mut state = converged();
    state.objects.retain(|object| object.scope != Scope::Schema);
    assert_eq!(found(&state), ["schema public does not exist"]);
    state.objects[1].read.clear();
    let expected = [
        Requirement::Schema,
        Requirement::Privileges(ManagedRole::Read, Scope::Table),
    ];
    assert_eq!(requirements(&state), expected);
}

#[test]
fn public_must_not_have_create() {
    let found = after(|state| state.objects[1].public_creates = true);
    assert_eq!(found, ["PUBLIC has CREATE on schema public"]);
}

#[test]
fn statements_quote_names_and_contain_verifiers_only() {
    let script = IN_A_CLUSTER.script();
    assert!(script.contains("GRANT CONNECT ON DATABASE \"led\"\"ger\" TO teesql_read;"));
    assert!(script.contains("SET LOCAL teesql.database = 'led\"ger';"));
    assert!(!script.contains("reader's") && !script.contains("writer's"));
    assert!(!script.contains("replicator's") && !script.contains("rewind's"));
    for role in ManagedRole::CLIENTS
        .into_iter()
        .chain(ManagedRole::REPLICATION)
    {
        let verifier = IN_A_CLUSTER.verifier(role).unwrap().to_text();
        assert_eq!(script.matches(verifier.as_str()).count(), 1);
    }
    for requirement in Requirement::all(&IN_A_CLUSTER) {
        assert!(
            script.contains(requirement.sql(&IN_A_CLUSTER).as_str()),
            "{requirement:?}"
        );
    }
}

#[test]
fn only_the_read_role_loses_extra_privileges() {
    let sql = |role, scope| {
        Requirement::Privileges(role, scope)
            .sql(&DESIRED)
            .to_string()
    };
    assert_eq!(
        sql(ManagedRole::Read, Scope::Table),
        "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM teesql_read CASCADE;\n\
         GRANT SELECT ON ALL TABLES IN SCHEMA public TO teesql_read;\n"
    );
    assert_eq!(
        sql(ManagedRole::ReadWrite, Scope::Table),
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO \
         teesql_readwrite;\n"
    );
    assert_eq!(
        sql(
            ManagedRole::Read,
            Scope::DefaultPrivileges(Creator::ReadWrite, ObjectKind::Sequences)
        ),
        "ALTER DEFAULT PRIVILEGES FOR ROLE teesql_readwrite IN SCHEMA public REVOKE ALL ON \
         SEQUENCES FROM teesql_read CASCADE;\n\
         ALTER DEFAULT PRIVILEGES FOR ROLE teesql_readwrite IN SCHEMA public GRANT SELECT ON \
         SEQUENCES TO teesql_read;\n"
    );
}
