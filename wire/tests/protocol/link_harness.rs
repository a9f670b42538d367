//! Test harness for links: runs the state machines of both members with every split that a network
//! could produce, and checks the invariants that hold for any input. Shared with the fuzz target,
//! so it depends on `wire` only.

use wire::link::{
    AwaitAnswer, AwaitRequest, BOOT_ID_LEN, BootId, LinkAnswerStep, LinkRefusal, LinkRequest,
    LinkRequestStep, MAX_LINK_ANSWER, MAX_LINK_REQUEST, NameError, request_link,
};

/// The boot id of the accepting member in these tests.
pub(crate) const ACCEPTORS_BOOT: BootId = BootId::new([0xac; BOOT_ID_LEN]);

fn is_letter(byte: &u8) -> bool {
    byte.is_ascii_lowercase()
}

fn is_alphanumeric(byte: &u8) -> bool {
    is_letter(byte) || byte.is_ascii_digit()
}

fn is_name(name: &[u8], max: usize, is_first: fn(&u8) -> bool) -> bool {
    let (first, last) = (name.first(), name.last());
    name.len() <= max
        && first.is_some_and(is_first)
        && last.is_some_and(is_alphanumeric)
        && name.iter().all(|b| is_alphanumeric(b) || *b == b'-')
}

/// The syntax of a service's name, written in another way than in the crate.
pub(crate) fn is_service_name(name: &[u8]) -> bool {
    is_name(name, 32, is_letter)
}

/// The syntax of a member's name, written in another way than in the crate.
pub(crate) fn is_member_name(name: &[u8]) -> bool {
    is_name(name, 63, is_alphanumeric)
}

/// Completes a request of which `part` was read, with valid bytes. `None` if that is impossible.
fn complete(part: &[u8]) -> Option<Vec<u8>> {
    let mut frame = part.to_vec();
    let mut at = 0;
    for is_name in [is_member_name, is_member_name, is_service_name] {
        if frame.len() == at {
            frame.push(1);
        }
        let end = at + 1 + usize::from(frame[at]);
        if frame.len() < end {
            frame.resize(end, b'a');
        }
        if !is_name(&frame[at + 1..end]) {
            return None;
        }
        at = end;
    }
    let end = at + BOOT_ID_LEN;
    frame.resize(end.max(frame.len()), 0xb0);
    frame.truncate(end);
    Some(frame)
}

/// Checks every split of the bytes that an accepting member reads. Returns the request and the
/// length of the frame.
pub(crate) fn check_link_request(bytes: &[u8]) -> Result<Option<(LinkRequest, usize)>, NameError> {
    let whole = AwaitRequest::new().advance(bytes);
    for split in 0..=bytes.len().min(MAX_LINK_REQUEST) {
        let part = &bytes[..split];
        match AwaitRequest::new().advance(part) {
            LinkRequestStep::Read(same) => {
                assert_eq!(same, AwaitRequest::new());
                assert!(split < MAX_LINK_REQUEST, "undecided after {split} bytes");
                check_can_continue(part);
            }
            decided => assert_eq!(decided, whole, "split at {split} of {}", bytes.len()),
        }
    }
    match whole {
        LinkRequestStep::Read(_) => Ok(None),
        LinkRequestStep::Requested { link, consumed } => {
            let request = *link.request();
            let mut frame = Vec::new();
            let _ = request_link(&request, &mut frame);
            assert_eq!(frame, bytes[..consumed]);
            assert_eq!(complete(bytes), Some(frame));
            assert_eq!(request.from.as_str().parse(), Ok(request.from));
            assert_eq!(request.to.as_str().parse(), Ok(request.to));
            assert_eq!(request.service.as_str().parse(), Ok(request.service));
            Ok(Some((request, consumed)))
        }
        LinkRequestStep::Refuse(error) => {
            assert_eq!(error.answer(), LinkRefusal::UnknownService);
            assert_eq!(complete(bytes), None, "{error} for {bytes:?}");
            Err(error)
        }
    }
}

/// Checks that more bytes are read only where they can still complete a request.
fn check_can_continue(part: &[u8]) {
    let frame = complete(part).unwrap_or_else(|| panic!("{part:?} cannot be completed"));
    assert!(part.len() < frame.len());
    let step = AwaitRequest::new().advance(&frame);
    assert!(
        matches!(&step, LinkRequestStep::Requested { consumed, .. } if *consumed == frame.len()),
        "{step:?} after {part:?}"
    );
}

/// The state of a member that has requested a link.
pub(crate) fn await_answer() -> AwaitAnswer {
    let request = LinkRequest {
        from: "a".parse().unwrap(),
        to: "b".parse().unwrap(),
        service: "postgres".parse().unwrap(),
        boot_id: BootId::new([0; BOOT_ID_LEN]),
    };
    request_link(&request, &mut Vec::new())
}

/// Checks every split of the bytes that an opening member reads, and that no later byte changes a
/// decision.
pub(crate) fn check_link_answer(bytes: &[u8]) -> LinkAnswerStep {
    let whole = await_answer().advance(bytes);
    let needed = match bytes.first() {
        Some(0) | None => MAX_LINK_ANSWER,
        Some(_) => 1,
    };
    for split in 0..=bytes.len() {
        let step = await_answer().advance(&bytes[..split]);
        match split < needed {
            true => assert_eq!(step, LinkAnswerStep::Read(await_answer())),
            false => assert_eq!(step, whole),
        }
    }
    if let LinkAnswerStep::Opened { boot_id, consumed } = &whole {
        assert_eq!((*consumed, bytes[0]), (MAX_LINK_ANSWER, 0));
        assert_eq!(boot_id.as_bytes()[..], bytes[1..MAX_LINK_ANSWER]);
    }
    whole
}

/// Runs a whole link between two members: `early` is sent with the request, before the answer, and
/// `reply` with the answer. Returns what each side forwards.
pub(crate) fn check_link(request: &LinkRequest, early: &[u8], reply: &[u8]) -> [Vec<u8>; 2] {
    let mut sent = Vec::new();
    let opener = request_link(request, &mut sent);
    sent.extend_from_slice(early);
    let (requested, at) = check_link_request(&sent).unwrap().unwrap();
    assert_eq!(requested, *request);

    let LinkRequestStep::Requested { link, .. } = AwaitRequest::new().advance(&sent) else {
        panic!("not requested");
    };
    let mut answer = Vec::new();
    link.accept(ACCEPTORS_BOOT, &mut answer);
    answer.extend_from_slice(reply);
    check_link_answer(&answer);
    let LinkAnswerStep::Opened { boot_id, consumed } = opener.advance(&answer) else {
        panic!("not opened");
    };
    assert_eq!(boot_id, ACCEPTORS_BOOT);
    [sent.split_off(at), answer.split_off(consumed)]
}
