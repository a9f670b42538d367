use super::*;
use crate::config::Errors;
use crate::config::layers::Layers;
use crate::config::reader::read_all;
use crate::config::spec::Scope;

const MEMBERS: &str = "a=a.example:5433,b=b.example:5433,c=c.example:5433";

fn read(settings: &[(&str, &str)]) -> Result<Option<ClusterConfig>, String> {
    let layers = Layers::from_settings(Scope::Serve, settings.iter().copied());
    read_all(&layers, ClusterConfig::read)
        .map(|(config, _)| config)
        .map_err(|errors: Errors| errors.to_string())
}

fn three(more: &[(&str, &str)]) -> Result<Option<ClusterConfig>, String> {
    let mut settings = vec![
        ("cluster_name", "orders"),
        ("cluster_member", "b"),
        ("cluster_members", MEMBERS),
    ];
    settings.retain(|(key, _)| more.iter().all(|(other, _)| key != other));
    settings.extend(more);
    read(&settings)
}

#[test]
fn every_service_of_every_member_has_a_port() {
    let config = three(&[]).unwrap().unwrap();
    assert_eq!(config.own, 1);
    assert_eq!(config.own_member().host, "b.example");
    let ports = |name: &str| {
        let service = config.service(&name.parse().unwrap()).unwrap();
        [0, 1, 2].map(|member| service.address_of(member).to_string())
    };
    assert_eq!(
        ports("postgres"),
        ["127.0.0.1:15432", "127.0.0.1:15433", "127.0.0.1:15434"]
    );
    assert_eq!(
        ports("etcd-peer"),
        ["127.0.0.1:13380", "127.0.0.1:13381", "127.0.0.1:13382"]
    );
}

#[test]
fn without_its_settings_there_is_no_cluster() {
    assert_eq!(read(&[]), Ok(None));
}

#[test]
fn mistakes_are_named() {
    let cases: &[(&[(&str, &str)], &str)] = &[
        (
            &[("cluster_member", "d")],
            "cluster_member = \"d\": no member",
        ),
        (
            &[("cluster_members", "")],
            "cluster_member = \"b\": no member",
        ),
        (
            &[("cluster_members", "b=b.example:5433,b=c.example:5433")],
            "two members are named \"b\"",
        ),
        (
            &[("cluster_members", "a=b.example:5433,b=b.example:5433")],
            "members \"a\" and \"b\" have the same address",
        ),
        (&[("cluster_members", "b")], "expected NAME=HOST:PORT"),
        (&[("cluster_members", "b=b.example")], "expected HOST:PORT"),
        (&[("cluster_name", "Orders")], "expected a name"),
        (
            &[(
                "cluster_services",
                "postgres=5432:15432,postgres=5433:16432",
            )],
            "two services are named \"postgres\"",
        ),
        (
            &[("cluster_services", "postgres=5432:15432,patroni=8008:15434")],
            "the ports 15434 to 15436 of patroni overlap with the ports 15432 to 15434 of postgres",
        ),
        (
            &[("cluster_services", "postgres=5432:5430")],
            "the ports 5430 to 5432 of postgres overlap with the port of postgres",
        ),
        (
            &[("cluster_services", "postgres=5432:65534")],
            "the ports of 3 members from 65534 on exceed 65535",
        ),
        (
            &[
                ("cluster_services", "postgres=5432:5431"),
                ("listen", "0.0.0.0:5433"),
            ],
            "overlap with listen",
        ),
    ];
    for (settings, expected) in cases {
        let error = three(settings).unwrap_err();
        assert!(error.contains(expected), "{settings:?}: {error}");
    }
}

#[test]
fn a_table_is_another_form_of_the_settings() {
    let table = "name = 'orders'\nmember = 'b'\n\
                 [[members]]\nname = 'a'\naddress = 'a.example:5433'\n\
                 [[members]]\nname = 'b'\naddress = '[::1]:5433'\n\
                 [[services]]\nname = 'postgres'\nport = 5432\nfirst_port = 15432\n";
    let settings: Vec<_> = settings_of_table(table.parse().unwrap())
        .into_iter()
        .map(|setting| setting.map(|(key, value)| (key, value.as_str().unwrap().to_owned())))
        .collect::<Result<_, _>>()
        .unwrap();
    let settings: Vec<_> = settings
        .iter()
        .map(|(key, text)| (*key, text.as_str()))
        .collect();
    let config = read(&settings).unwrap().unwrap();
    assert_eq!(config.members[1].host, "::1");
    assert_eq!(config.services.len(), 1);
}

#[test]
fn mistakes_in_the_table_are_named() {
    for (table, expected) in [
        ("[[members]]\nname = 'a'", "expected name and address"),
        (
            "[[members]]\nname = 'a,b'\naddress = 'a:1'",
            "expected name and address",
        ),
        (
            "[[members]]\nname = 'a'\naddress = 'a:1'\nport = 1",
            "expected name and address",
        ),
        ("members = 'a'", "expected name and address"),
        (
            "[[services]]\nname = 'a'\nport = '1'\nfirst_port = 2",
            "expected name, port and first_port",
        ),
        ("listen = '0.0.0.0:5433'", "cluster.listen: unknown setting"),
        ("nome = 'a'", "cluster.nome: unknown setting"),
    ] {
        let settings = settings_of_table(table.parse().unwrap());
        let error = settings.into_iter().find_map(Result::err).unwrap();
        assert!(error.contains(expected), "{table}: {error}");
    }
}

#[test]
fn the_role_has_defaults_and_limits() {
    let role = three(&[]).unwrap().unwrap().role;
    assert_eq!(role.patroni, Some(([127, 0, 0, 1], 8008).into()));
    assert_eq!(role.writes_on_standby, WritesOnStandby::Leader);
    let off = three(&[("cluster_patroni", "off")]).unwrap().unwrap();
    assert_eq!(off.role.patroni, None);
    for (key, value, wrong) in [
        ("cluster_patroni", "https://127.0.0.1:8008", "http://"),
        ("cluster_patroni", "http://patroni:8008", "IP address"),
        ("cluster_patroni", "http://127.0.0.1:0", "port"),
        (
            "cluster_writes_on_standby",
            "primary",
            "leader, local or refuse",
        ),
        ("cluster_fence_after", "1s", "at least 2s"),
    ] {
        let error = three(&[(key, value)]).unwrap_err();
        assert!(error.contains(key) && error.contains(wrong), "{error}");
    }
    let services = ("cluster_services", "patroni=8008:18008");
    assert!(
        three(&[services])
            .unwrap_err()
            .contains("no service postgres")
    );
    let local = ("cluster_writes_on_standby", "local");
    assert!(three(&[services, local]).is_ok());
}
