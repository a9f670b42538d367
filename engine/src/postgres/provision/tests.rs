//! The plan, without a server.

use std::sync::LazyLock;

use super::desired::Aim;
use super::state::{Creator, Made, Object, RoleState, Scope, State};
use super::{Login, Wanted, differences, steps};
use wire::scram::{Password, Verifier};

static WANTED: LazyLock<Wanted> = LazyLock::new(|| Wanted {
    database: "led\"ger".to_owned(),
    read: (Password::new("reader's"), [1; 16]),
    readwrite: (Password::new("writer's"), [2; 16]),
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

fn role(login: Login) -> RoleState {
    RoleState {
        exists: true,
        login: true,
        verifier: Some(WANTED.verifier(login).to_text()),
        ..RoleState::default()
    }
}

/// All as it has to be, with two tables, a sequence and a function.
fn good() -> State {
    let all = ["DELETE", "INSERT", "SELECT", "UPDATE"];
    let sequence = ["SELECT", "USAGE"];
    let future = |creator, made, readwrite| {
        object(
            Scope::Future(creator, made),
            "things to come",
            &["SELECT"],
            readwrite,
        )
    };
    State {
        read: role(Login::Read),
        readwrite: role(Login::ReadWrite),
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
            future(Creator::Superuser, Made::Tables, &all),
            future(Creator::Superuser, Made::Sequences, &sequence),
            future(Creator::ReadWrite, Made::Tables, &[]),
            future(Creator::ReadWrite, Made::Sequences, &[]),
        ],
    }
}

fn found(state: &State) -> Vec<String> {
    differences(steps(state, &WANTED))
}

/// What is found when `good` was changed in one way.
fn after(change: impl FnOnce(&mut State)) -> Vec<String> {
    let mut state = good();
    change(&mut state);
    found(&state)
}

fn aims(state: &State) -> Vec<Aim> {
    steps(state, &WANTED).iter().map(|step| step.aim).collect()
}

#[test]
fn where_all_is_well_there_is_no_step() {
    assert_eq!(found(&good()), [""; 0]);
}

#[test]
fn each_drift_is_named_by_itself() {
    let role = |change: fn(&mut RoleState)| after(|state| change(&mut state.read));
    assert_eq!(role(|r| r.login = false), ["teesql_read: may not log in"]);
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
        ["teesql_readwrite: has a password that is not kept as SCRAM-SHA-256"]
    );
}

#[test]
fn teesql_read_must_have_no_more_than_it_is_to_have() {
    let table = |change: fn(&mut Object)| after(|state| change(&mut state.objects[2]));
    assert_eq!(
        table(|o| o.read = texts(&["SELECT", "TRIGGER"])),
        ["teesql_read: has TRIGGER on public.a"]
    );
    // On a column it may be too much, and is not enough.
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
fn teesql_readwrite_may_have_more_in_public_but_not_in_the_database() {
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
fn many_objects_make_one_short_line() {
    let state = State {
        objects: (0..1000)
            .map(|n| {
                object(
                    Scope::Table,
                    &format!("public.t{n}"),
                    &["SELECT"],
                    &["SELECT"],
                )
            })
            .chain(good().objects)
            .collect(),
        ..good()
    };
    assert_eq!(
        found(&state)[0],
        "teesql_readwrite: lacks INSERT on public.t0, public.t1, public.t2, public.t3, \
         public.t4 and 995 more"
    );
}

#[test]
fn a_missing_schema_is_made_before_anything_is_granted_on_it() {
    let mut state = good();
    state.objects.retain(|object| object.scope != Scope::Schema);
    assert_eq!(found(&state), ["schema public does not exist"]);
    state.objects[1].read.clear();
    let expected = [Aim::Schema, Aim::Privileges(Login::Read, Scope::Table)];
    assert_eq!(aims(&state), expected);
}

#[test]
fn everybody_may_not_create() {
    let found = after(|state| state.objects[1].public_creates = true);
    assert_eq!(found, ["everybody has CREATE on schema public"]);
}

#[test]
fn statements_quote_names_and_hold_verifiers_only() {
    let script = WANTED.script();
    assert!(script.contains("GRANT CONNECT ON DATABASE \"led\"\"ger\" TO teesql_read;"));
    assert!(script.contains("SET LOCAL teesql.database = 'led\"ger';"));
    assert!(!script.contains("reader's") && !script.contains("writer's"));
    for login in Login::ALL {
        let verifier = WANTED.verifier(login).to_text();
        assert_eq!(script.matches(verifier.as_str()).count(), 1);
    }
    for aim in Aim::all() {
        assert!(script.contains(aim.sql(&WANTED).as_str()), "{aim:?}");
    }
}

#[test]
fn only_the_read_role_loses_what_it_has_too_much() {
    let sql = |login, scope| Aim::Privileges(login, scope).sql(&WANTED).to_string();
    assert_eq!(
        sql(Login::Read, Scope::Table),
        "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM teesql_read CASCADE;\n\
         GRANT SELECT ON ALL TABLES IN SCHEMA public TO teesql_read;\n"
    );
    assert_eq!(
        sql(Login::ReadWrite, Scope::Table),
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO \
         teesql_readwrite;\n"
    );
    assert_eq!(
        sql(
            Login::Read,
            Scope::Future(Creator::ReadWrite, Made::Sequences)
        ),
        "ALTER DEFAULT PRIVILEGES FOR ROLE teesql_readwrite IN SCHEMA public REVOKE ALL ON \
         SEQUENCES FROM teesql_read CASCADE;\n\
         ALTER DEFAULT PRIVILEGES FOR ROLE teesql_readwrite IN SCHEMA public GRANT SELECT ON \
         SEQUENCES TO teesql_read;\n"
    );
}
