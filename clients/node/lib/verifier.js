'use strict';
// Calls of an application's verifier: from the native part's question to the answer, which is always one of accept,
// refuse and fail. Only `true` and an object are consent, so that a forgotten `return` is none.

const native = require('./native.js');
const { Refusal } = require('./errors.js');
const { absent, object, string, typeError } = require('./arguments.js');

/** As the native part's, for the signal that the verifier gets. */
const DEFAULT_TIMEOUT = 10_000;

/** The function of a verifier, which is one or has a method `verify`. */
function decider(name, verifier) {
  if (typeof verifier === 'function') return verifier;
  if (typeof verifier?.verify !== 'function') throw typeError(name, 'a function or an object with a method verify', verifier);
  return (evidence, context) => verifier.verify(evidence, context);
}

function claims(raw) {
  const { rtmr0, rtmr1, rtmr2, rtmr3, tcbStatus, appId, composeHash, instanceId, osImageHash, ...rest } = raw;
  return {
    ...rest,
    rtmr: [rtmr0, rtmr1, rtmr2, rtmr3],
    tcbStatus: tcbStatus ?? null,
    appId: appId ?? null,
    composeHash: composeHash ?? null,
    instanceId: instanceId ?? null,
    osImageHash: osImageHash ?? null,
  };
}

function evidence(raw) {
  return { quote: raw.quote, chain: raw.chain, claims: claims(raw.claims) };
}

async function decide(verifier, raw, timeout) {
  const decision = await verifier(evidence(raw), { signal: AbortSignal.timeout(timeout) });
  if (decision === true) return { kind: 'accept' };
  if (decision === false) return { kind: 'refuse', text: 'it returned false' };
  if (typeof decision !== 'object' || decision === null) {
    return { kind: 'fail', text: `it returned ${decision === null ? 'null' : typeof decision}, not true` };
  }
  const { tcbStatus } = object('the result of the verifier', decision, ['tcbStatus']);
  return { kind: 'accept', text: absent(tcbStatus) ? undefined : string('tcbStatus', tcbStatus) };
}

function textOf(error) {
  try {
    return String(error instanceof Error ? error.message || error.name : error);
  } catch {
    return 'it threw a value that has no text';
  }
}

/** What the native part calls: `(question, evidence)`. It must not throw: that would be an uncaught exception. */
function dispatcher(name, verifier, timeout = DEFAULT_TIMEOUT) {
  const decideByVerifier = decider(name, verifier);
  return (question, raw) => {
    decide(decideByVerifier, raw, timeout).then(
      (answer) => native.answer(question, answer),
      (error) => native.answer(question, { kind: error instanceof Refusal ? 'refuse' : 'fail', text: textOf(error) }),
    );
  };
}

module.exports = { dispatcher, claims };
