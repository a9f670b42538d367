//! PostgreSQL messages as bytes. Deliberately independent of the product's code, so that a mistake
//! there is not repeated here and goes unnoticed.

use std::fmt;

pub(crate) const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
pub(crate) const GSSENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];
pub(crate) const CANCEL_CODE: u32 = 0x04d2_162e;
pub(crate) const PROTOCOL_3_0: u32 = 0x0003_0000;
pub(crate) const PROTOCOL_3_2: u32 = 0x0003_0002;
/// 3.9999, which no server supports. The betas of PostgreSQL 19 send it to test negotiation, and
/// the sidecar sends it to learn the newest version of its Postgres.
pub(crate) const PROTOCOL_GREASE: u32 = 0x0003_270f;

/// A message from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) tag: u8,
    pub(crate) body: Vec<u8>,
}

/// An ErrorResponse or NoticeResponse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PgError {
    pub(crate) severity: String,
    pub(crate) code: String,
    pub(crate) message: String,
}

impl fmt::Display for PgError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.severity, self.code, self.message)
    }
}

impl Message {
    /// The fields of an ErrorResponse. Its localized and its fixed severity must be equal.
    pub(crate) fn error(&self) -> PgError {
        assert_eq!(self.tag, b'E', "not an ErrorResponse: {self:?}");
        let end = self.body.len().checked_sub(1).expect("fields");
        assert_eq!(
            self.body[end], 0,
            "an ErrorResponse ends with a zero: {self:?}"
        );
        let field = |kind: u8| {
            let mut fields = self.body[..end].split(|&byte| byte == 0);
            let found = fields.find(|field| field.first() == Some(&kind));
            found.map(|field| String::from_utf8_lossy(&field[1..]).into_owned())
        };
        let error = PgError {
            severity: field(b'S').expect("a severity"),
            code: field(b'C').expect("an SQLSTATE"),
            message: field(b'M').expect("a message"),
        };
        assert_eq!(
            field(b'V').as_ref(),
            Some(&error.severity),
            "the fixed severity differs"
        );
        error
    }

    /// The type of an Authentication message: 0 is AuthenticationOk.
    pub(crate) fn authentication(&self) -> u32 {
        assert_eq!(self.tag, b'R', "not an Authentication message: {self:?}");
        be32(&self.body)
    }

    /// The SASL mechanisms of AuthenticationSASL; empty for AuthenticationCleartextPassword.
    pub(crate) fn mechanisms(&self) -> Vec<String> {
        match self.authentication() {
            3 => Vec::new(),
            10 => {
                let list = self.body[4..].strip_suffix(&[0, 0]).expect("a list");
                let names = list.split(|&byte| byte == 0);
                names
                    .map(|name| String::from_utf8_lossy(name).into_owned())
                    .collect()
            }
            other => panic!("unexpected authentication request {other}"),
        }
    }

    /// The newest supported version and the unrecognized options of a NegotiateProtocolVersion.
    pub(crate) fn negotiation(&self) -> (u32, Vec<String>) {
        assert_eq!(self.tag, b'v', "not a NegotiateProtocolVersion: {self:?}");
        let count = be32(&self.body[4..]) as usize;
        let mut names: Vec<String> = self.body[8..]
            .split(|&byte| byte == 0)
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect();
        assert_eq!(
            names.pop().as_deref(),
            Some(""),
            "the names end with a zero: {self:?}"
        );
        assert_eq!(names.len(), count, "the number of names is wrong: {self:?}");
        (be32(&self.body), names)
    }

    /// The columns of a DataRow as text.
    pub(crate) fn columns(&self) -> Vec<Option<String>> {
        assert_eq!(self.tag, b'D', "not a DataRow: {self:?}");
        let count = usize::from(u16::from_be_bytes([self.body[0], self.body[1]]));
        let mut rest = &self.body[2..];
        let mut columns = Vec::with_capacity(count);
        for _ in 0..count {
            let length = be32(rest);
            rest = &rest[4..];
            columns.push((length != u32::MAX).then(|| {
                let (text, tail) = rest.split_at(length as usize);
                rest = tail;
                String::from_utf8_lossy(text).into_owned()
            }));
        }
        columns
    }
}

pub(crate) fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"))
}

/// A message with its tag and a correct length.
pub(crate) fn tagged(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend(untagged(body));
    out
}

/// A packet of the start-up phase: a correct length, then `body`.
pub(crate) fn untagged(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("a short message");
    [&length.to_be_bytes()[..], body].concat()
}

/// The message as it was on the wire.
pub(crate) fn message_of(message: &Message) -> Vec<u8> {
    tagged(message.tag, &message.body)
}

pub(crate) fn startup(version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    for (name, value) in parameters {
        for text in [name, value] {
            body.extend(text.as_bytes());
            body.push(0);
        }
    }
    body.push(0);
    untagged(&body)
}

pub(crate) fn password(secret: &str) -> Vec<u8> {
    tagged(b'p', &[secret.as_bytes(), &[0]].concat())
}

pub(crate) fn query(sql: &str) -> Vec<u8> {
    tagged(b'Q', &[sql.as_bytes(), &[0]].concat())
}

pub(crate) fn cancel(pid: u32, key: &[u8]) -> Vec<u8> {
    untagged(&[&CANCEL_CODE.to_be_bytes()[..], &pid.to_be_bytes(), key].concat())
}
