'use strict';
// Verification without a forwarder.

const native = require('./native.js');
const check = require('./arguments.js');
const { settle, unwrap } = require('./errors.js');
const { claims } = require('./verifier.js');
const { verifierOf } = require('./forwarder.js');

const { optional } = check;

function verified(raw) {
  return {
    claims: claims(raw.claims),
    quote: raw.quote,
    chain: raw.chain,
    fingerprint: raw.fingerprint,
    validUntil: new Date(raw.validUntil),
  };
}

/** The policy among some options, with that of the environment below it. */
function policyOf(options) {
  const env = optional(check.boolean, 'options.env', options.env) ?? false;
  return { env, ...(optional(check.policy, 'options.policy', options.policy) ?? { rules: [], settings: [] }) };
}

async function verify(quote, options = {}) {
  check.object('options', options, ['env', 'policy']);
  const bytes = check.bytes('quote', quote);
  return verified(await settle((done) => native.verify(bytes, policyOf(options), done)));
}

async function verifyCertificate(chain, options = {}) {
  check.object('options', options, ['env', 'policy']);
  const parts = Array.isArray(chain) ? chain : [chain];
  const certificates = parts.map((part, index) => check.text(`chain[${index}]`, part));
  return verified(await settle((done) => native.verifyCertificate(certificates, policyOf(options), done)));
}

const SERVER_OPTIONS = [
  'env', 'policy', 'identity', 'timeout', 'verifier', 'dangerousVerifierInsteadOfDcap', 'verifierTimeout',
];

async function verifyServer(host, port, options = {}) {
  check.object('options', options, SERVER_OPTIONS);
  check.string('host', host);
  check.port('port', port);
  const verifier = verifierOf(options);
  const settings = {
    identity: optional(check.identity, 'options.identity', options.identity),
    timeout: optional(check.milliseconds, 'options.timeout', options.timeout),
    verifierInsteadOfDcap: verifier.insteadOfDcap,
    verifierTimeout: verifier.timeout,
  };
  const policy = policyOf(options);
  return verified(await settle((done) => native.verifyServer(host, port, policy, settings, verifier.ask, done)));
}

function extractTdxQuote(certificate) {
  return native.extractTdxQuote(check.bytes('certificate', certificate)) ?? null;
}

function readQuote(quote) {
  return claims(unwrap(native.readQuote(check.bytes('quote', quote))));
}

function expectedReportData(publicKey) {
  return native.expectedReportData(check.bytes('publicKey', publicKey));
}

async function requestClientCertificate(options = {}) {
  check.object('options', options, ['guestAgent', 'timeout']);
  const address = optional(check.path, 'options.guestAgent', options.guestAgent);
  const timeout = optional(check.milliseconds, 'options.timeout', options.timeout) ?? 60_000;
  return settle((done) => native.requestClientCertificate(address, timeout, done));
}

module.exports = {
  verify, verifyCertificate, verifyServer, extractTdxQuote, readQuote, expectedReportData, requestClientCertificate,
};
