//! Test harness for links: runs the state machines of both members with every split that a network
//! could produce, and checks the invariants that hold for any input. Shared with the fuzz target,
//! so it depends on `wire` only.

use wire::link::{
    AwaitAnswer, AwaitRequest, LINK_ANSWER_LEN, LinkAnswerStep, LinkRefusal, LinkRequestStep,
    MAX_LINK_REQUEST, ServiceName, ServiceNameError, request_link,
};

/// The syntax of a service's name, written in another way than in the crate.
pub(crate) fn is_service_name(name: &[u8]) -> bool {
    let is_letter = |byte: &u8| byte.is_ascii_lowercase();
    let is_alphanumeric = |byte: &u8| is_letter(byte) || byte.is_ascii_digit();
    let (first, last) = (name.first(), name.last());
    name.len() <= 32
        && first.is_some_and(is_letter)
        && last.is_some_and(is_alphanumeric)
        && name.iter().all(|b| is_alphanumeric(b) || *b == b'-')
}

/// Checks every split of the bytes that an accepting member reads. Returns the requested service
/// and the length of the frame.
pub(crate) fn check_link_request(
    bytes: &[u8],
) -> Result<Option<(ServiceName, usize)>, ServiceNameError> {
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
        LinkRequestStep::Requested { request, consumed } => {
            let service = *request.service();
            let mut frame = Vec::new();
            let _ = request_link(&service, &mut frame);
            assert_eq!(frame, bytes[..consumed]);
            assert!(is_service_name(&frame[1..]));
            assert_eq!(service.as_str().parse(), Ok(service));
            Ok(Some((service, consumed)))
        }
        LinkRequestStep::Refuse(error) => {
            assert_eq!(error.answer(), LinkRefusal::UnknownService);
            let name = bytes[1..].get(..usize::from(bytes[0]));
            assert!(!name.is_some_and(is_service_name));
            Err(error)
        }
    }
}

/// Checks that more bytes are read only where they can still complete a request.
fn check_can_continue(part: &[u8]) {
    let mut frame = part.to_vec();
    if frame.is_empty() {
        frame.push(1);
    }
    frame.resize(1 + usize::from(frame[0]), b'a');
    assert!(part.len() < frame.len());
    let step = AwaitRequest::new().advance(&frame);
    assert!(
        matches!(&step, LinkRequestStep::Requested { consumed, .. } if *consumed == frame.len()),
        "{step:?} after {part:?}"
    );
}

/// The state of a member that has requested a link.
pub(crate) fn await_answer() -> AwaitAnswer {
    request_link(&"postgres".parse().unwrap(), &mut Vec::new())
}

/// Checks every split of the bytes that an opening member reads, and that the first one decides.
pub(crate) fn check_link_answer(bytes: &[u8]) -> LinkAnswerStep {
    assert_eq!(
        await_answer().advance(b""),
        LinkAnswerStep::Read(await_answer())
    );
    let whole = await_answer().advance(bytes);
    for split in LINK_ANSWER_LEN..=bytes.len() {
        assert_eq!(await_answer().advance(&bytes[..split]), whole);
    }
    if let LinkAnswerStep::Opened { consumed } = whole {
        assert_eq!((consumed, bytes[0]), (LINK_ANSWER_LEN, 0));
    }
    whole
}

/// Runs a whole link between two members: `early` is sent with the request, before the answer, and
/// `reply` with the answer. Returns what each side forwards.
pub(crate) fn check_link(service: &ServiceName, early: &[u8], reply: &[u8]) -> [Vec<u8>; 2] {
    let mut sent = Vec::new();
    let opener = request_link(service, &mut sent);
    sent.extend_from_slice(early);
    let (requested, at) = check_link_request(&sent).unwrap().unwrap();
    assert_eq!(requested, *service);

    let LinkRequestStep::Requested { request, .. } = AwaitRequest::new().advance(&sent) else {
        panic!("not requested");
    };
    let mut answer = Vec::new();
    request.accept(&mut answer);
    answer.extend_from_slice(reply);
    check_link_answer(&answer);
    let LinkAnswerStep::Opened { consumed } = opener.advance(&answer) else {
        panic!("not opened");
    };
    [sent.split_off(at), answer.split_off(consumed)]
}
