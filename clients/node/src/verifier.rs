//! A verifier in JavaScript: a question and its answer.
//!
//! The question is a call of a JavaScript function, with an object that holds the sender of a channel. JavaScript passes
//! that object with its answer. If the object is collected as garbage without an answer, or the JavaScript thread has ended,
//! the verifier has failed.

use std::sync::Arc;

use napi::Status;
use napi::bindgen_prelude::{Buffer, External, FnArgs, Function};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi_derive::napi;
use teesql::{Acceptance, BoxFuture, Claims, Evidence, Refusal, Verifier};
use tokio::sync::oneshot;

type Decision = Result<Acceptance, Refusal>;
type Pending = External<Option<oneshot::Sender<Decision>>>;
pub(crate) type Question = FnArgs<(Pending, EvidenceParts)>;

/// Questions that JavaScript has not received yet. The core asks at most 256 at a time.
const MAX_WAITING: usize = 256;

/// `(question, evidence)` in JavaScript. Weak: it does not keep the process alive.
type Ask = ThreadsafeFunction<Question, (), Question, Status, false, true, MAX_WAITING>;

/// A verifier in JavaScript.
pub(crate) struct JsVerifier {
    ask: Arc<Ask>,
}

impl JsVerifier {
    /// # Errors
    /// The function cannot be kept.
    pub(crate) fn new(ask: &Function<'_, Question, ()>) -> napi::Result<Self> {
        let ask = ask
            .build_threadsafe_function()
            .weak::<true>()
            .max_queue_size::<MAX_WAITING>()
            .build()?;
        Ok(Self { ask: Arc::new(ask) })
    }
}

impl Verifier for JsVerifier {
    fn verify<'a>(&'a self, evidence: &'a Evidence) -> BoxFuture<'a, Decision> {
        let (sender, answer) = oneshot::channel();
        let question = (External::new(Some(sender)), EvidenceParts::from(evidence));
        let asked = self
            .ask
            .call(question.into(), ThreadsafeFunctionCallMode::NonBlocking);
        Box::pin(async move {
            match asked {
                Status::Ok => {}
                Status::QueueFull => return failed("its thread is busy"),
                _ => return failed("its thread has ended"),
            }
            answer.await.unwrap_or_else(|_| failed("it never answers"))
        })
    }
}

fn failed(text: &str) -> Decision {
    Err(Refusal::Failed(text.to_owned()))
}

/// What JavaScript decides: `kind` is `accept`, `refuse` or `fail`; `text` a TCB status or a reason.
#[napi(object)]
pub struct Answer {
    pub kind: String,
    pub text: Option<String>,
}

impl From<Answer> for Decision {
    fn from(answer: Answer) -> Self {
        let text = answer.text;
        match answer.kind.as_str() {
            "accept" => Ok(text.map_or_else(Acceptance::default, Acceptance::with_tcb_status)),
            "refuse" => Err(Refusal::Refused(text.unwrap_or_default())),
            _ => Err(Refusal::Failed(text.unwrap_or_default())),
        }
    }
}

/// Answers a question. A further answer has no effect.
#[napi(catch_unwind)]
pub fn answer(question: &mut Pending, answer: Answer) {
    if let Some(sender) = question.take() {
        // After the deadline there is no receiver.
        let _ = sender.send(answer.into());
    }
}

#[napi(object)]
pub struct EvidenceParts {
    pub quote: Buffer,
    pub chain: Vec<Buffer>,
    pub claims: ClaimsParts,
}

impl From<&Evidence> for EvidenceParts {
    fn from(evidence: &Evidence) -> Self {
        Self {
            quote: evidence.quote.clone().into(),
            chain: evidence.chain.iter().cloned().map(Buffer::from).collect(),
            claims: ClaimsParts::from(&evidence.claims),
        }
    }
}

#[napi(object)]
pub struct ClaimsParts {
    pub mrtd: String,
    pub rtmr0: String,
    pub rtmr1: String,
    pub rtmr2: String,
    pub rtmr3: String,
    pub report_data: String,
    pub is_debug: bool,
    pub tcb_status: Option<String>,
    pub advisories: Vec<String>,
    pub app_id: Option<String>,
    pub compose_hash: Option<String>,
    pub instance_id: Option<String>,
    pub os_image_hash: Option<String>,
}

impl From<&Claims> for ClaimsParts {
    fn from(claims: &Claims) -> Self {
        let [rtmr0, rtmr1, rtmr2, rtmr3] = claims.rtmr.clone();
        Self {
            mrtd: claims.mrtd.clone(),
            rtmr0,
            rtmr1,
            rtmr2,
            rtmr3,
            report_data: claims.report_data.clone(),
            is_debug: claims.is_debug,
            tcb_status: claims.tcb_status.clone(),
            advisories: claims.advisories.clone(),
            app_id: claims.app_id.clone(),
            compose_hash: claims.compose_hash.clone(),
            instance_id: claims.instance_id.clone(),
            os_image_hash: claims.os_image_hash.clone(),
        }
    }
}
