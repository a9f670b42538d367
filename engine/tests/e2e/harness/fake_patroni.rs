//! A fake Patroni of one member: its answers are set by the test, in the form of Patroni 4.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::json;

use crate::harness::fake_server::FakeServer;

/// What a fake Patroni does with a request.
#[derive(Debug, Clone)]
pub(crate) enum Behavior {
    /// It answers that this member leads, or follows `leader`. `None`: no member holds the lock.
    Leader(Option<&'static str>),
    /// It answers that both members lead.
    TwoLeaders,
    /// It answers with this status and body.
    Answer(u16, String),
    /// It answers with a body that does not end.
    Endless,
    /// It accepts connections and never answers.
    Hang,
}

/// A fake Patroni for the member with this name in a cluster of `a` and `b`.
#[derive(Debug)]
pub(crate) struct FakePatroni {
    server: FakeServer,
    behavior: Arc<Mutex<Behavior>>,
}

impl FakePatroni {
    pub(crate) fn start(member: &'static str, behavior: Behavior) -> Self {
        let behavior = Arc::new(Mutex::new(behavior));
        let current = Arc::clone(&behavior);
        let server = FakeServer::start(move |stream| {
            let behavior = current.lock().expect("no panic while locked").clone();
            serve(stream, member, behavior)
        });
        Self { server, behavior }
    }

    pub(crate) fn url(&self) -> String {
        let address: SocketAddr = self.server.address();
        format!("http://{address}")
    }

    pub(crate) fn set(&self, behavior: Behavior) {
        *self.behavior.lock().expect("no panic while locked") = behavior;
    }
}

fn serve(mut stream: TcpStream, member: &str, behavior: Behavior) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.split(' ').nth(1).unwrap_or_default();
    let (status, body) = match behavior {
        Behavior::Leader(leader) if path == "/primary" => status_of(member, leader),
        Behavior::TwoLeaders if path == "/primary" => status_of(member, Some(member)),
        Behavior::Leader(_) | Behavior::TwoLeaders if path == "/config" => {
            (200, r#"{"ttl":30}"#.to_owned())
        }
        Behavior::Leader(leader) => (200, cluster_of(|name| leader == Some(name))),
        Behavior::TwoLeaders => (200, cluster_of(|_| true)),
        Behavior::Answer(status, body) => (status, body),
        Behavior::Hang => {
            // Until the client or the fake server closes.
            let _ = stream.read(&mut [0]);
            return Ok(());
        }
        Behavior::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n{\"state\":\"")?;
            loop {
                stream.write_all(&[b'x'; 4096])?;
            }
        }
    };
    let head = format!(
        "HTTP/1.0 {status} \r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes())
}

fn status_of(member: &str, leader: Option<&str>) -> (u16, String) {
    let leads = leader == Some(member);
    let mut status = json!({
        "state": "running",
        "role": if leads { "primary" } else { "replica" },
        "server_version": 150_018,
        "dcs_last_seen": 1_795_967_805,
        "patroni": {"version": "4.0.4", "scope": "orders", "name": member},
    });
    if leader.is_none() {
        status["cluster_unlocked"] = true.into();
    }
    (if leads { 200 } else { 503 }, status.to_string())
}

fn cluster_of(leads: impl Fn(&str) -> bool) -> String {
    let members = ["a", "b"].map(|name| match leads(name) {
        true => json!({"name": name, "role": "leader", "state": "running", "timeline": 1}),
        false => {
            json!({"name": name, "role": "replica", "state": "streaming", "timeline": 1, "lag": 0})
        }
    });
    json!({"members": members, "scope": "orders"}).to_string()
}
