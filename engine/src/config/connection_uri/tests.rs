use super::*;

fn uri(text: &str) -> ConnectionUri {
    match DatabaseUrl::parse(text) {
        DatabaseUrl::Postgres(uri) => uri,
        DatabaseUrl::OtherDatabase => panic!("another database: {text}"),
        DatabaseUrl::Unusable(error) => panic!("{text}: {error}"),
    }
}

fn error(text: &str) -> UriError {
    match DatabaseUrl::parse(text) {
        DatabaseUrl::Unusable(error) => error,
        DatabaseUrl::Postgres(_) | DatabaseUrl::OtherDatabase => panic!("usable: {text}"),
    }
}

fn through(text: &str) -> Result<String, UriError> {
    uri(text).through_forwarder("127.0.0.1", 6543)
}

#[test]
fn the_drivers_parameters_are_kept_and_the_servers_replaced() {
    for (given, wanted) in [
        (
            "postgres://u:p%40%3A@db.example:5433/d?sslmode=verify-full&options=-c%20a%3Db+c&application_name=a%26b",
            "postgres://u:p%40%3A@127.0.0.1:6543/d?options=-c%20a%3Db+c&application_name=a%26b&sslmode=disable",
        ),
        (
            "postgresql:///d?host=/run&port=1&sslcert=x",
            "postgresql://127.0.0.1:6543/d?sslmode=disable",
        ),
        (
            "postgres://u@[2001:db8::1]/",
            "postgres://u@127.0.0.1:6543/?sslmode=disable",
        ),
        (
            "postgresql://db.example?user=u&password=p%2B&dbname=d&connect_timeout=3",
            "postgresql://u:p%2B@127.0.0.1:6543/d?connect_timeout=3&sslmode=disable",
        ),
        // SQLAlchemy passes the parameters to the driver.
        (
            "postgresql+asyncpg://u:p@h/d?ssl=require",
            "postgresql+asyncpg://u:p@127.0.0.1:6543/d?ssl=disable",
        ),
        (
            "postgresql+psycopg://u:p@h/d",
            "postgresql+psycopg://u:p@127.0.0.1:6543/d?sslmode=disable",
        ),
        (
            "postgresql+pg8000://u:p@h/d",
            "postgresql+pg8000://u:p@127.0.0.1:6543/d",
        ),
        (
            "postgres://u:p@h/d?schema=public&connection_limit=5&options%5Bsearch_path%5D=a",
            "postgres://u:p@127.0.0.1:6543/d?schema=public&connection_limit=5&options%5Bsearch_path%5D=a&sslmode=disable",
        ),
    ] {
        assert_eq!(through(given).as_deref(), Ok(wanted), "{given}");
    }
    assert_eq!(
        uri("postgres://u@db.example/d")
            .through_forwarder("/run/my pg", 6543)
            .unwrap(),
        "postgres://u@localhost:6543/d?host=%2Frun%2Fmy%20pg&sslmode=disable"
    );
}

/// Each of these is a URI with which libpq, or another driver, would connect elsewhere than to the host of the authority.
#[test]
fn nothing_leads_around_the_forwarder() {
    let clean = "postgresql://u:p@127.0.0.1:6543/d?sslmode=disable";
    for query in [
        "hostaddr=192.0.2.1",
        "%68ostaddr=192.0.2.1",
        "hos%74=elsewhere",
        "h%6Fst=%2Frun",
        "host=a&%68ost=elsewhere",
        "por%74=1",
        "sslcertmode=require",
        "ssl%63ertmode=require",
        "channel_binding=require",
        "requirepeer=postgres",
        "gssencmode=require",
        "load_balance_hosts=random",
    ] {
        let given = format!("postgresql://u:p@db.example:5433/d?{query}");
        assert_eq!(through(&given).as_deref(), Ok(clean), "{query}");
    }
    for (query, name) in [
        ("service=elsewhere", "service"),
        ("servic%65=elsewhere", "service"),
        ("servicefile=/tmp/f", "servicefile"),
    ] {
        let given = format!("postgresql://u:p@db.example:5433/d?{query}");
        assert_eq!(through(&given), Err(UriError::Refused(name)), "{query}");
        assert_eq!(
            uri(&given).servers(),
            Err(UriError::Refused(name)),
            "{query}"
        );
    }
    for (query, name) in [
        ("hostname=elsewhere", "hostname="),
        ("socket_dir=/run", "socket_dir="),
        ("HOST=elsewhere", "HOST="),
        ("%20host=elsewhere", "a parameter"),
        ("host%00=elsewhere", ""),
    ] {
        let given = format!("postgresql://u:p@db.example:5433/d?{query}");
        match name {
            "" => assert_eq!(error(&given), UriError::Text, "{query}"),
            name => assert_eq!(
                through(&given),
                Err(UriError::Unknown(name.to_owned())),
                "{query}"
            ),
        }
    }
    // Other parsers take the user name for the host here.
    assert_eq!(
        through("postgresql://u?x=#y@db.example/d").as_deref(),
        Ok("postgresql://u%3Fx%3D%23y@127.0.0.1:6543/d?sslmode=disable")
    );
    assert_eq!(
        through("postgres://u@db.example/d?application_name=x#&user=y").as_deref(),
        Ok("postgres://y@127.0.0.1:6543/d?application_name=x%23&sslmode=disable")
    );
    // vacuumdb and others pass PGDATABASE to libpq as a connection string.
    for database in ["host%3Delsewhere", "postgresql:%2F%2Felsewhere"] {
        let given = format!("postgresql://u@db.example/{database}");
        assert_eq!(through(&given), Err(UriError::Database), "{database}");
    }
    // Without a database they take PGUSER.
    assert_eq!(
        through("postgresql://host%3Delsewhere@db.example/"),
        Err(UriError::Database)
    );
    assert!(through("postgresql://a%3Db@db.example/d").is_ok());
}

#[test]
fn require_auth_must_admit_scram() {
    let given = |methods: &str| format!("postgresql://u@h/d?require_auth={methods}");
    for methods in [
        "scram-sha-256",
        "md5,scram-sha-256",
        "!password,!md5",
        "%73cram-sha-256",
    ] {
        assert!(
            through(&given(methods)).unwrap().contains("require_auth="),
            "{methods}"
        );
    }
    for methods in ["none", "gss,sspi", "!scram-sha-256", "md5"] {
        assert_eq!(
            through(&given(methods)),
            Err(UriError::RequireAuth),
            "{methods}"
        );
    }
    assert!(admits_scram(""));
}

#[test]
fn servers_are_those_of_libpq() {
    let one = |host: &str, port| vec![(host.to_owned(), port)];
    for (text, wanted) in [
        ("postgres://u:p@db.example/d", one("db.example", 5433)),
        ("postgresql://db.example:6000", one("db.example", 6000)),
        ("postgres://[2001:db8::1]:1/d", one("2001:db8::1", 1)),
        ("postgres://[2001:db8::1]", one("2001:db8::1", 5433)),
        ("postgres:///d?host=db.example&port=7", one("db.example", 7)),
        ("postgres://a:1/d?hos%74=db.example", one("db.example", 1)),
        (
            "postgresql+psycopg:///d?host=db.example:7",
            one("db.example", 7),
        ),
        (" POSTGRES://db.example\n", one("db.example", 5433)),
        (
            "postgres://a:1,[::1]:2,c/d",
            vec![
                ("a".to_owned(), 1),
                ("::1".to_owned(), 2),
                ("c".to_owned(), 5433),
            ],
        ),
        (
            "postgres://u:p@a,b:3/d",
            vec![("a".to_owned(), 5433), ("b".to_owned(), 3)],
        ),
        (
            "postgres://a%2Cb/d?port=3",
            vec![("a".to_owned(), 3), ("b".to_owned(), 3)],
        ),
        // Everything before the @ is the login.
        (
            "postgres://evil?host=x@db.example/d",
            one("db.example", 5433),
        ),
        ("postgres://evil#@db.example/d", one("db.example", 5433)),
    ] {
        assert_eq!(uri(text).servers(), Ok(wanted), "{text}");
    }
    for (text, wanted) in [
        ("postgresql:///d", UriError::NoHost),
        ("postgresql://a,/d", UriError::NoHost),
        ("postgresql:///d?host=/run/postgresql", UriError::UnixSocket),
        ("postgresql://%2Frun%2Fpostgresql/d", UriError::UnixSocket),
        ("postgresql://a/d?host=@abstract", UriError::UnixSocket),
        (
            "postgresql://a/d?hostaddr=192.0.2.1",
            UriError::Refused("hostaddr"),
        ),
        ("postgresql://a/d?host=b&host=c", UriError::Repeated("host")),
        ("postgresql://a,b/d?port=1,2,3", UriError::HostCount),
        ("postgresql://a,a,a,a,a,a,a,a,a/d", UriError::HostCount),
        ("postgresql://a:x/d", UriError::Host),
        ("postgresql://a:0/d", UriError::Host),
        ("postgresql://u:pa/ss@a/d", UriError::Host),
        (
            "postgresql://a,b/d?target_session_attrs=standby",
            UriError::SessionAttributes,
        ),
        (
            "postgresql://a,b/d?target_session_attr%73=prefer%2Dstandby",
            UriError::SessionAttributes,
        ),
    ] {
        assert_eq!(uri(text).servers(), Err(wanted), "{text}");
    }
}

/// The driver has one host, the forwarder, and checks the session that it gets.
#[test]
fn target_session_attrs_reach_the_driver() {
    for wanted in ["any", "read-write", "read-only", "primary"] {
        let given = uri(&format!("postgresql://a,b/d?target_session_attrs={wanted}"));
        assert_eq!(
            given.servers().map(|servers| servers.len()),
            Ok(2),
            "{wanted}"
        );
        let through = given.through_forwarder("127.0.0.1", 6543).unwrap();
        let kept = format!("?target_session_attrs={wanted}&");
        assert!(through.contains(&kept), "{through}");
    }
    let one = "postgresql://a/d?target_session_attrs=standby";
    assert!(uri(one).servers().is_ok());
    assert!(
        through(one)
            .unwrap()
            .contains("target_session_attrs=standby")
    );
}

#[test]
fn load_balance_hosts_is_that_of_libpq() {
    let order = |query: &str| uri(&format!("postgresql://a,b/d{query}")).host_order();
    assert_eq!(order(""), Ok(None));
    assert_eq!(order("?load_balance_hosts="), Ok(None));
    let disable = order("?load_balance_hosts=disable");
    assert_eq!(disable, Ok(Some(HostOrder::Given)));
    let random = order("?load_balance%5Fhosts=r%61ndom");
    assert_eq!(random, Ok(Some(HostOrder::Random)));
    let unknown = order("?load_balance_hosts=Random");
    assert_eq!(unknown, Err(UriError::LoadBalanceHosts));
}

#[test]
fn refuses_what_libpq_refuses() {
    for text in [
        "",
        "host=db",
        "postgres:db",
        "db.example:5433",
        "jdbc:postgresql://h/d",
        "postgresql+://h",
        "postgresql+a b://h",
    ] {
        assert_eq!(error(text), UriError::NotUri, "{text}");
    }
    for (text, wanted) in [
        ("postgres://h/d?a", UriError::Separator),
        ("postgres://h/d?a=b=c", UriError::Separator),
        ("postgres://h/%zz", UriError::PercentEncoding),
        ("postgres://h/d?a=%2", UriError::PercentEncoding),
        ("postgres://h/%00", UriError::Text),
        ("postgres://h/%ff", UriError::Text),
        ("postgres://[::1/d", UriError::Ipv6),
        ("postgres://[]/d", UriError::Ipv6),
        ("postgres://[::1]x/d", UriError::Ipv6),
    ] {
        assert_eq!(error(text), wanted, "{text}");
    }
    for text in [
        "mysql://u:p@h/d",
        "sqlite:///d",
        "file:./dev.db",
        "mysql+pymysql://h",
        "mongodb+srv://h",
    ] {
        assert!(
            matches!(DatabaseUrl::parse(text), DatabaseUrl::OtherDatabase),
            "{text}"
        );
    }
}

#[test]
fn libpqs_variables_are_role_password_and_database() {
    let given = uri("postgres://a%40b:p%2F@db.example/my%20db");
    let all: Vec<_> = given.variables().collect();
    assert_eq!(
        all,
        [
            ("PGUSER", "a@b"),
            ("PGPASSWORD", "p/"),
            ("PGDATABASE", "my db")
        ]
    );
    assert_eq!(uri("postgres://db.example").variables().count(), 0);
}

#[test]
fn no_error_shows_a_value() {
    for text in [
        "postgres://u:hunter2@h/d?service=hunter2",
        "postgres://u:hunter2@h/d?hunter%202=hunter2",
        "postgres://u:hun/ter2@h/d",
        "postgres://u:hun/a?hunter2=b@h/d",
        "postgres://hunter2:hunter2/d",
    ] {
        let uri = uri(text);
        for error in [uri.servers().err(), uri.through_forwarder("h", 1).err()] {
            let shown = error.map(|error| error.to_string()).unwrap_or_default();
            assert!(!shown.contains("hun"), "{shown}");
        }
    }
}
