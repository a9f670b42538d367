//! What the peer does in a comparison: a list of actions, from a property test's strategy
//! or from a fuzz target's input.

use rustls::{CipherSuite, Side};

/// Maximum actions of a script. It is below each limit of either record layer on what a peer
/// may repeat, except rustls' limit on warnings; separate tests reach the limits.
pub(super) const MAX_ACTIONS: usize = 24;

pub(super) const SUITES: [CipherSuite; 3] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
];

/// One action of the peer, or of the compared sessions.
#[derive(Clone, Debug)]
pub(super) enum Action {
    /// Sends application data of this length.
    Data { length: usize, padding: usize },
    /// Sends a KeyUpdate and changes its key.
    KeyUpdate { request: bool },
    /// Sends handshake messages, valid or not.
    Handshake(Vec<u8>),
    /// Sends an alert, valid or not.
    Alert(Vec<u8>),
    /// Sends a record of any type within its encryption.
    Inner { kind: u8, content: Vec<u8> },
    /// Sends a sealed record that contains zeros only, and thus no type.
    Zeros(usize),
    /// Sends a record without sealing it.
    Plaintext { header: [u8; 3], body: Vec<u8> },
    /// Sends sealed data, the header of which is changed on the way.
    Header {
        header: [u8; 3],
        length: Option<u16>,
    },
    /// A bit of the last record's ciphertext is flipped on the way.
    FlipBit(usize),
    /// The last record loses bytes at its end, all but its header at most.
    Truncate(usize),
    /// The last record arrives twice.
    Duplicate,
    /// The last two records arrive in the wrong order.
    Swap,
    /// The last record is lost.
    Lose,
    /// The compared sessions send data of this length, after they have read everything.
    Answer(usize),
}

/// A comparison: which session, what the peer does, and how its bytes arrive.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) suite: CipherSuite,
    /// The side of the compared sessions.
    pub(super) side: Side,
    pub(super) actions: Vec<Action>,
    /// The sizes of the reads, repeated.
    pub(super) reads: Vec<usize>,
}

impl Script {
    /// Arbitrary bytes as a script: all bytes are valid. A missing byte is a zero.
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let mut input = Input(bytes);
        let choice = usize::from(input.byte());
        let reads = (0..1 + choice / 6 % 4).map(|_| input.length(16_000).max(1));
        let reads = reads.collect();
        let mut actions = Vec::new();
        while !input.0.is_empty() && actions.len() < MAX_ACTIONS {
            actions.push(input.action());
        }
        Self {
            suite: SUITES[choice % 3],
            side: [Side::Client, Side::Server][choice / 3 % 2],
            actions,
            reads,
        }
    }
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        [(); N].map(|()| self.byte())
    }

    /// One byte for a short length, three for a length of up to `most`.
    fn length(&mut self, most: usize) -> usize {
        match self.byte() {
            255 => usize::from(u16::from_be_bytes(self.array())) % (most + 1),
            short => usize::from(short),
        }
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = usize::from(self.byte() % 32);
        (0..length).map(|_| self.byte()).collect()
    }

    fn action(&mut self) -> Action {
        match self.byte() % 16 {
            0 | 1 => Action::Data {
                length: self.length(LONGEST),
                padding: self.length(LONGEST),
            },
            2 => Action::KeyUpdate {
                request: self.byte() & 1 == 1,
            },
            3 | 4 => Action::Handshake(self.bytes()),
            5 | 6 => Action::Alert(self.bytes()),
            7 => Action::Inner {
                kind: self.byte(),
                content: self.bytes(),
            },
            8 => Action::Zeros(self.length(LONGEST)),
            9 => Action::Plaintext {
                header: self.array(),
                body: self.bytes(),
            },
            10 => Action::Header {
                header: self.array(),
                length: (self.byte() & 1 == 1).then(|| u16::from_be_bytes(self.array())),
            },
            11 => Action::FlipBit(self.length(LONGEST)),
            12 => Action::Truncate(self.length(LONGEST)),
            13 => match self.byte() % 3 {
                0 => Action::Duplicate,
                1 => Action::Swap,
                _ => Action::Lose,
            },
            _ => Action::Answer(self.length(60_000)),
        }
    }
}

/// Longer than any record may be.
const LONGEST: usize = 17_000;

#[cfg(test)]
pub(super) mod strategy {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::tls::session::differential::TICKET;

    /// Lengths around the limits, and others.
    fn length() -> impl Strategy<Value = usize> {
        prop_oneof![
            0..64_usize,
            0..2_000_usize,
            16_383 - 2..=16_384 + 2_usize,
            0..LONGEST,
        ]
    }

    fn short() -> impl Strategy<Value = Vec<u8>> {
        vec(any::<u8>(), 0..24)
    }

    /// Handshake messages as they should be, cut, joined, or of other types.
    fn handshake() -> impl Strategy<Value = Vec<u8>> {
        let known = prop_oneof![
            Just(TICKET.to_vec()),
            Just(vec![24, 0, 0, 1, 0]),
            Just(vec![24, 0, 0, 1, 1]),
            Just(vec![24, 0, 0, 1, 2]),
            Just(vec![24, 0, 0, 0]),
            Just(vec![24, 0, 0, 2, 0, 0]),
            Just(vec![4, 0, 0, 2, 7, 7]),
            Just(vec![13, 0, 0, 0]),
            Just(vec![0, 0, 0, 0]),
            Just(vec![20, 0, 0, 1, 7]),
        ];
        let joined = vec(known, 0..3).prop_map(|messages| messages.concat());
        let cut = (joined.clone(), any::<prop::sample::Index>()).prop_map(|(mut bytes, at)| {
            bytes.truncate(at.index(bytes.len() + 1));
            bytes
        });
        prop_oneof![4 => joined, 2 => cut, 1 => short()]
    }

    fn alert() -> impl Strategy<Value = Vec<u8>> {
        let level = prop_oneof![4 => 1..=2_u8, 1 => any::<u8>()];
        let description = prop_oneof![
            Just(0_u8),
            Just(90),
            Just(48),
            Just(20),
            Just(10),
            Just(201),
            any::<u8>()
        ];
        let alert = (level, description).prop_map(|(level, kind)| vec![level, kind]);
        prop_oneof![6 => alert, 1 => vec(any::<u8>(), 0..4)]
    }

    fn header() -> impl Strategy<Value = [u8; 3]> {
        let kind = prop_oneof![2 => 20..=24_u8, 1 => any::<u8>()];
        let version = prop_oneof![Just([3, 3]), Just([3, 1]), Just([2, 3]), any::<[u8; 2]>()];
        (kind, version).prop_map(|(kind, [major, minor])| [kind, major, minor])
    }

    /// What a peer may do.
    fn valid() -> impl Strategy<Value = Action> {
        prop_oneof![
            6 => (length(), prop_oneof![3 => Just(0), 1 => length()])
                .prop_map(|(length, padding)| Action::Data { length, padding }),
            3 => any::<bool>().prop_map(|request| Action::KeyUpdate { request }),
            1 => Just(Action::Handshake(TICKET.to_vec())),
            1 => Just(Action::Alert(vec![1, 90])),
            4 => (0..60_000_usize).prop_map(Action::Answer),
        ]
    }

    /// What a peer must not do, or what happens on the way.
    fn invalid() -> impl Strategy<Value = Action> {
        prop_oneof![
            3 => handshake().prop_map(Action::Handshake),
            3 => alert().prop_map(Action::Alert),
            1 => (any::<u8>(), short()).prop_map(|(kind, content)| Action::Inner { kind, content }),
            1 => length().prop_map(Action::Zeros),
            1 => (header(), short()).prop_map(|(header, body)| Action::Plaintext { header, body }),
            1 => (header(), any::<Option<u16>>())
                .prop_map(|(header, length)| Action::Header { header, length }),
            2 => any::<usize>().prop_map(Action::FlipBit),
            1 => length().prop_map(Action::Truncate),
            1 => Just(Action::Duplicate),
            1 => Just(Action::Swap),
            1 => Just(Action::Lose),
        ]
    }

    /// A script, most of which is valid, so that it gets somewhere.
    pub(in crate::tls::session::differential) fn script() -> impl Strategy<Value = Script> {
        let action = prop_oneof![8 => valid(), 1 => invalid()];
        let read = prop_oneof![Just(1_usize), 1..8_usize, 1..3_000_usize, Just(65_000)];
        (
            prop::sample::select(SUITES.to_vec()),
            prop_oneof![Just(Side::Client), Just(Side::Server)],
            vec(action, 0..MAX_ACTIONS),
            vec(read, 1..4),
        )
            .prop_map(|(suite, side, actions, reads)| Script {
                suite,
                side,
                actions,
                reads,
            })
    }
}
