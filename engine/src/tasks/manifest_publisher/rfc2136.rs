//! Publishes a TXT record by dynamic update (RFC 2136) with TSIG (RFC 8945).
//!
//! Messages and signatures are hickory-proto's. Everything goes over TCP, as RFC 2136 recommends for updates that matter:
//! a manifest exceeds what UDP carries everywhere. An update counts only if its answer is signed with the same
//! key, and if the record then stands there: PowerDNS also confirms an update that its policy has refused. The queries are not
//! signed, since what they find is signed itself and can only stop a publication. The secret and texts of the server never reach
//! the log unescaped.

use std::io;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::rdata::tsig::TsigError;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType, TSigner};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::error::PublishError;

/// The limit for one exchange, with the connection.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum bytes of a string in a TXT record. [RFC 1035, 3.3]
const MAX_STRING: usize = 255;

/// A name server, and what it needs to know for an update.
pub(super) struct UpdateServer {
    /// A host name or an IP address, and the port.
    pub(super) server: (String, u16),
    /// The zone; `None` asks the server.
    pub(super) zone: Option<Name>,
    pub(super) signer: TSigner,
}

impl UpdateServer {
    /// The TXT records that stand at `name`, each in its strings.
    ///
    /// # Errors
    /// There is no answer, or the server refuses the query.
    pub(super) async fn standing(&self, name: &Name) -> Result<Vec<TXT>, PublishError> {
        let answer = self.query(name, RecordType::TXT).await?;
        let records = answer.answers.into_iter();
        let texts = records.filter_map(|record| match record.data {
            RData::TXT(text) if record.name == *name => Some(text),
            _ => None,
        });
        Ok(texts.collect())
    }

    /// Removes the records `old` at `name` and adds `text`, in one update.
    ///
    /// # Errors
    /// There is no answer, the server refuses, the answer is not signed with the key of the update, or the record does not
    /// stand there afterwards.
    pub(super) async fn replace(
        &self,
        name: &Name,
        old: impl IntoIterator<Item = TXT>,
        text: &str,
        ttl: u32,
        now: u64,
    ) -> Result<(), PublishError> {
        let zone = match &self.zone {
            Some(zone) => zone.clone(),
            None => self.find_zone(name).await?,
        };
        let mut update = Message::query();
        update.metadata.op_code = OpCode::Update;
        update.metadata.recursion_desired = false;
        // The sections of an update are zone, prerequisites, updates. [RFC 2136, section 2]
        update.add_query(Query::query(zone, RecordType::SOA));
        for text in old {
            // Deletes this one record of the set. [RFC 2136, section 2.5.4]
            let mut record = Record::from_rdata(name.clone(), 0, RData::TXT(text));
            record.dns_class = DNSClass::NONE;
            update.add_authority(record);
        }
        let strings = text.as_bytes().chunks(MAX_STRING).collect();
        let added = RData::TXT(TXT::from_bytes(strings));
        update.add_authority(Record::from_rdata(name.clone(), ttl, added));
        let broken = |error: &dyn std::fmt::Display| PublishError::Unverified(error.to_string());
        let verifier = update.finalize(&self.signer, now);
        let verifier = verifier.map_err(|error| broken(&error))?;
        let (answer, bytes) = self.exchange(&update).await?;
        check_update(&answer)?;
        let mut verifier = verifier.ok_or_else(|| broken(&"it was not signed"))?;
        verifier.verify(&bytes).map_err(|error| broken(&error))?;
        let standing = self.standing(name).await?;
        let mut texts = standing.iter().map(|record| record.txt_data.concat());
        match texts.any(|found| found == text.as_bytes()) {
            true => Ok(()),
            false => Err(PublishError::NotApplied),
        }
    }

    /// The zone that `name` is in: the server answers with its SOA, as the answer or beside none. [RFC 2308, section 2]
    async fn find_zone(&self, name: &Name) -> Result<Name, PublishError> {
        let answer = self.query(name, RecordType::SOA).await?;
        let records = answer.answers.iter().chain(&answer.authorities);
        let zone = records
            .filter(|record| matches!(record.data, RData::SOA(_)))
            .map(|record| &record.name)
            .find(|zone| zone.zone_of(name));
        zone.cloned().ok_or(PublishError::NoZone)
    }

    async fn query(&self, name: &Name, kind: RecordType) -> Result<Message, PublishError> {
        let mut query = Message::query();
        query.metadata.recursion_desired = false;
        query.add_query(Query::query(name.clone(), kind));
        let (answer, _) = self.exchange(&query).await?;
        match answer.metadata.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => Ok(answer),
            // The server is not authoritative, and does not ask others for us.
            ResponseCode::Refused => Err(PublishError::NoZone),
            other => Err(PublishError::ServerFailure(other.to_string())),
        }
    }

    /// Sends `message`. Returns the answer, also in bytes, for its signature.
    async fn exchange(&self, message: &Message) -> Result<(Message, Vec<u8>), PublishError> {
        let (host, port) = &self.server;
        let failed = |why: String| PublishError::NoAnswer {
            server: format!("{host}:{port}"),
            why,
        };
        let request = message
            .to_vec()
            .map_err(|error| failed(error.to_string()))?;
        let bytes = match timeout(EXCHANGE_TIMEOUT, self.send(&request)).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(_) => return Err(failed(format!("not within {EXCHANGE_TIMEOUT:?}"))),
        };
        let malformed =
            || PublishError::Unverified("it is not an answer to the request".to_owned());
        let answer = Message::from_vec(&bytes).map_err(|_| malformed())?;
        let header = &answer.metadata;
        if header.id != message.metadata.id
            || header.message_type != MessageType::Response
            || header.op_code != message.metadata.op_code
        {
            return Err(malformed());
        }
        Ok((answer, bytes))
    }

    /// One message each way, each after its length. [RFC 1035, 4.2.2]
    async fn send(&self, request: &[u8]) -> io::Result<Vec<u8>> {
        let (host, port) = &self.server;
        let mut stream = TcpStream::connect((host.as_str(), *port)).await?;
        let length = u16::try_from(request.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes()[..], request].concat();
        stream.write_all(&framed).await?;
        // At most 65,535 bytes.
        let length = stream.read_u16().await?;
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }
}

/// What the server says about an update. Only a success is signed in all cases.
fn check_update(answer: &Message) -> Result<(), PublishError> {
    let signature = answer.signature();
    match signature.and_then(|record| record.data.error.as_ref()) {
        Some(TsigError::BadKey) => return Err(PublishError::BadKey),
        Some(TsigError::BadSig) => return Err(PublishError::BadSignature),
        Some(TsigError::BadTime) => return Err(PublishError::BadTime),
        Some(_) | None => {}
    }
    match answer.metadata.response_code {
        ResponseCode::NoError => Ok(()),
        ResponseCode::Refused => Err(PublishError::Refused),
        ResponseCode::NotAuth => Err(PublishError::NotAuth),
        ResponseCode::NotZone => Err(PublishError::NotZone),
        other => Err(PublishError::ServerFailure(other.to_string())),
    }
}
