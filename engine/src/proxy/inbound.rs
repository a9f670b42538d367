//! A client's way in, top to bottom: opening bytes, TLS, gate, login, Postgres,
//! relay, close. One function a step, in that order.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::server::UnbufferedServerConnection;
use wire::frontend::{AwaitStartup, PasswordStep, StartupStep, negotiate, request_password};
use wire::opening::{Openings, Policy, Step};
use wire::startup::{ProtocolVersion, Startup};

use crate::attestation::gate::Attested;
use crate::auth::credential::Credential;
use crate::auth::role::Role;
use crate::io::buffer::{Buffer, Size};
use crate::io::stream::Stream;
use crate::proxy::upstream::{self, Injector};
use crate::session::control::{Control, Leash};
use crate::session::relay::{Driver, relay};
use crate::session::tls_stream::{StreamError, TlsStream};
use crate::shard::live_config::{Live, Snapshot};
use crate::shard::{self, Admission, Common};
use crate::telemetry::close_reason::End;
use crate::telemetry::connection_info::Facts;
use crate::tls::session::{Agreed, Session};

/// What every connection of a shard is served with.
pub(crate) struct Service {
    pub(crate) common: Common,
    pub(crate) live: Arc<Live>,
    pub(crate) injector: Injector,
    pub(crate) plaintext_cancel: bool,
    /// Simulator mode: whoever comes from this machine is `postgres` unasked.
    pub(crate) trust_loopback: bool,
    pub(crate) proxy_protocol_from: Vec<ipnet::IpNet>,
    pub(crate) require_alpn: bool,
}

type Client = TlsStream<UnbufferedServerConnection>;

impl Service {
    /// Whether a PROXY header from there is believed.
    fn believes(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        let mut networks = self.proxy_protocol_from.iter();
        networks.any(|network| network.contains(&peer))
    }
}

impl shard::Service for Service {
    fn common(&self) -> &Common {
        &self.common
    }

    fn serve(
        &self,
        stream: Stream,
        admission: &Admission,
        control: &Control,
        facts: &RefCell<Facts>,
    ) -> impl Future<Output = End> {
        serve(self, stream, admission, control, facts)
    }
}

/// Serves one accepted connection to its end.
async fn serve(
    service: &Service,
    stream: Stream,
    admission: &Admission,
    control: &Control,
    facts: &RefCell<Facts>,
) -> End {
    let _leash = control.hold_client(stream.raw_fd());
    // Boxed: what only the way in needs is given back before the relay, which
    // may idle for days.
    let arriving = Box::pin(arrive(service, stream, admission, control, facts));
    let (_leash, relayed) = match arriving.await {
        Ok((client, session)) => {
            entered(service, facts);
            begin(client, session, control)
        }
        Err(end) => return end,
    };
    relayed.await
}

/// From the login to the relay. Apart, so that the future of a session has no room
/// for what goes in here.
fn begin(
    client: Client,
    session: upstream::LoggedIn,
    control: &Control,
) -> (Leash<'_>, impl Future<Output = End>) {
    let upstream::LoggedIn { stream, first } = session;
    let leash = control.hold_upstream(stream.raw_fd());
    control.login_done();
    let relayed = relay(client, stream, first, Driver::InTls, control);
    (leash, relayed)
}

/// From the first byte to ReadyForQuery; who does not get so far has been told
/// why.
async fn arrive(
    service: &Service,
    mut stream: Stream,
    admission: &Admission,
    control: &Control,
    facts: &RefCell<Facts>,
) -> Result<(Client, upstream::LoggedIn), End> {
    let snapshot = service.live.read();
    let incoming = match open(service, &mut stream, control, facts).await {
        Ok(Opened::Tls(incoming)) => incoming,
        Ok(Opened::Cancel(packet)) => {
            return Err(upstream::cancel(&service.injector, packet, control).await);
        }
        Err(end) => return Err(refuse_in_plaintext(&mut stream, end, control).await),
    };
    let (mut client, agreed) =
        encrypt(service, &snapshot, stream, incoming, control, facts).await?;
    let attested = match attest(service, agreed.chain, control).await {
        Ok(attested) => attested,
        Err(end) => return Err(refuse(&mut client, end, control).await),
    };
    let party = Party {
        service,
        snapshot: &snapshot,
        admission,
        control,
        facts,
        alpn: agreed.alpn,
    };
    match party.log_in(&mut client, &attested).await {
        Ok(Entry::Session(session)) => Ok((client, session)),
        Ok(Entry::Cancel(packet)) => {
            let end = upstream::cancel(&service.injector, packet, control).await;
            client.close().await;
            Err(end)
        }
        Err(end) => Err(refuse(&mut client, end, control).await),
    }
}

fn entered(service: &Service, facts: &RefCell<Facts>) {
    let mut facts = facts.borrow_mut();
    facts.entered = true;
    let took = facts.accepted.elapsed();
    service.common.meters.entered(facts.role, took);
}

enum Opened {
    /// A ClientHello comes, or its first bytes are here.
    Tls(Buffer),
    Cancel(Vec<u8>),
}

/// The plaintext bytes before TLS.
async fn open(
    service: &Service,
    stream: &mut Stream,
    control: &Control,
    facts: &RefCell<Facts>,
) -> Result<Opened, End> {
    let peer = facts.borrow().peer.address();
    let mut openings = Openings::new(Policy {
        plaintext_cancel: service.plaintext_cancel,
        proxy_protocol: peer.is_some_and(|peer| service.believes(peer.ip())),
    });
    let mut incoming = Buffer::take(Size::Small);
    loop {
        match openings.advance(incoming.filled()) {
            Step::Read(next) => {
                openings = next;
                let (result, filled) = stream.read(incoming.make_room()).await;
                incoming = filled;
                match result {
                    Ok(0) => return Err(control.end_or(End::ClientGone)),
                    Ok(_) => {}
                    Err(error) => return Err(control.end_or(End::ClientIo(error))),
                }
            }
            Step::Answer {
                byte,
                consumed,
                next,
            } => {
                openings = next;
                incoming.consume(consumed);
                stream
                    .write_all(vec![byte])
                    .await
                    .map_err(|error| control.end_or(End::ClientIo(error)))?;
            }
            Step::Proxied {
                source,
                consumed,
                next,
            } => {
                openings = next;
                incoming.consume(consumed);
                let mut facts = facts.borrow_mut();
                (facts.proxied, facts.relayed) = (source, true);
            }
            Step::Tls => return Ok(Opened::Tls(incoming)),
            Step::Cancel(request) => return Ok(Opened::Cancel(request.as_bytes().to_vec())),
            Step::Refuse(error) => return Err(error.into()),
        }
    }
}

/// The TLS handshake.
async fn encrypt(
    service: &Service,
    snapshot: &Snapshot,
    stream: Stream,
    incoming: Buffer,
    control: &Control,
    facts: &RefCell<Facts>,
) -> Result<(Client, Agreed), End> {
    let connection = UnbufferedServerConnection::new(Arc::clone(&snapshot.tls))
        .map_err(|error| End::TlsHandshake(error.into()))?;
    let mut client = TlsStream::new(stream, Session::new(connection), incoming);
    let agreed = match client.handshake(&service.common.lane).await {
        Ok(agreed) => agreed,
        Err(StreamError::Eof) => return Err(control.end_or(End::ClientGone)),
        Err(StreamError::Io(error)) => return Err(control.end_or(End::ClientIo(error))),
        Err(StreamError::Tls(error)) => {
            // The alert has been sent; closing over what the client still
            // sends would take it away again.
            control.closing();
            client.stream.linger().await;
            return Err(End::TlsHandshake(error));
        }
    };
    let mut facts = facts.borrow_mut();
    facts.tls = agreed.version;
    service.common.meters.encrypted(facts.accepted.elapsed());
    Ok((client, agreed))
}

/// The gate: no byte of the login, and none of Postgres, before the verdict.
/// The certificates are let go of with it: a login may wait long.
async fn attest(
    service: &Service,
    chain: Option<Vec<CertificateDer<'static>>>,
    control: &Control,
) -> Result<Attested, End> {
    let verdict = service.common.gate.admit(chain.as_deref());
    let attested = control.unless_ended(verdict).await??;
    control.set_peer(attested.peer().cloned());
    Ok(attested)
}

enum Entry {
    Session(upstream::LoggedIn),
    Cancel(Vec<u8>),
}

/// What the steps of the login have in common.
struct Party<'a> {
    service: &'a Service,
    snapshot: &'a Snapshot,
    admission: &'a Admission,
    control: &'a Control,
    facts: &'a RefCell<Facts>,
    /// Whether the client agreed on a protocol by ALPN.
    alpn: bool,
}

impl Party<'_> {
    /// From the first message inside TLS to ReadyForQuery.
    async fn log_in(&self, client: &mut Client, _: &Attested) -> Result<Entry, End> {
        let (service, control) = (self.service, self.control);
        let startup = match read_startup(client, control).await? {
            FirstMessage::Startup(startup) => startup,
            FirstMessage::Cancel(packet) => return Ok(Entry::Cancel(packet)),
        };
        if service.require_alpn && !self.alpn {
            return Err(End::AlpnMissing);
        }
        // Only known names get into the log: others may be a mistyped password.
        let role = Role::from_name(startup.role());
        self.facts.borrow_mut().role = role;
        if !self.admission.is_granted() {
            return Err(End::TooManyConnections);
        }
        let (credential, version) = match self.unasked(role) {
            Some(credential) => (credential, self.welcome(client, &startup).await?),
            None => self.check_password(client, &startup, role).await?,
        };
        let stream = service.injector.dial(control).await?;
        let leash = control.hold_upstream(stream.raw_fd());
        let session = service
            .injector
            .inject(stream, client, &startup, version, &credential, control)
            .await?;
        drop(leash);
        Ok(Entry::Session(session))
    }

    /// In simulator mode, what a client of this machine need not be asked for.
    fn unasked(&self, role: Option<Role>) -> Option<Arc<Credential>> {
        let local = self.service.trust_loopback && self.facts.borrow().is_local();
        let unasked = local && role == Some(Role::Superuser);
        let credential = self.snapshot.gatekeeper.superuser_unasked();
        unasked.then_some(credential).flatten().cloned()
    }

    /// Negotiates the version, and asks for nothing.
    async fn welcome(
        &self,
        client: &mut Client,
        startup: &Startup,
    ) -> Result<ProtocolVersion, End> {
        let newest = self.service.injector.knowledge.newest_or_oldest().await;
        let mut message = Vec::new();
        let version = negotiate(startup, newest, &mut message);
        if !message.is_empty() {
            let sent = client.send(&message).await;
            sent.map_err(|error| error.into_end(self.control))?;
        }
        Ok(version)
    }

    /// Asks for the secret and compares it. No Postgres is involved yet.
    async fn check_password(
        &self,
        client: &mut Client,
        startup: &Startup,
        role: Option<Role>,
    ) -> Result<(Arc<Credential>, ProtocolVersion), End> {
        let control = self.control;
        let newest = self.service.injector.knowledge.newest_or_oldest().await;
        let mut question = Vec::new();
        let (mut await_password, version) = request_password(startup, newest, &mut question);
        client
            .send(&question)
            .await
            .map_err(|error| error.into_end(control))?;
        loop {
            match await_password.advance(client.plain.filled()) {
                PasswordStep::Read(next) => await_password = next,
                PasswordStep::Password { password, consumed } => {
                    let admitted = self.snapshot.gatekeeper.admit(role, password).cloned();
                    client.plain.consume(consumed);
                    client.plain.wipe_used();
                    client.incoming.wipe_used();
                    return match admitted {
                        Some(credential) => Ok((credential, version)),
                        None => Err(End::AuthenticationFailed),
                    };
                }
                PasswordStep::Refuse(error) => return Err(error.into()),
            }
            read_more(client, control).await?;
        }
    }
}

enum FirstMessage {
    Startup(Startup),
    Cancel(Vec<u8>),
}

async fn read_startup(client: &mut Client, control: &Control) -> Result<FirstMessage, End> {
    let mut await_startup = AwaitStartup::new();
    loop {
        match await_startup.advance(client.plain.filled()) {
            StartupStep::Read(next) => await_startup = next,
            StartupStep::Startup { message, consumed } => {
                let startup = message.to_owned();
                client.plain.consume(consumed);
                return Ok(FirstMessage::Startup(startup));
            }
            StartupStep::Cancel(request) => {
                return Ok(FirstMessage::Cancel(request.as_bytes().to_vec()));
            }
            StartupStep::Refuse(error) => return Err(error.into()),
        }
        read_more(client, control).await?;
    }
}

async fn read_more(client: &mut Client, control: &Control) -> Result<(), End> {
    client
        .read_more()
        .await
        .map_err(|error| error.into_end(control))
}

/// Says why inside TLS, and lets the client read it.
async fn refuse(client: &mut Client, end: End, control: &Control) -> End {
    control.closing();
    if let Some(text) = end.response()
        && client.send(&text).await.is_err()
    {
        return end;
    }
    client.close().await;
    client.stream.linger().await;
    end
}

/// Says why in plaintext, and lets the client read it.
async fn refuse_in_plaintext(stream: &mut Stream, end: End, control: &Control) -> End {
    control.closing();
    if let Some(text) = end.response()
        && stream.write_all(text).await.is_ok()
    {
        stream.linger().await;
    }
    end
}
