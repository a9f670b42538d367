'use strict';
// `RaTlsForwarder` of prisma-ra-tls, over the forwarder of this package.

const { createHash } = require('node:crypto');
const check = require('../arguments.js');
const { Refusal } = require('../errors.js');
const { forward } = require('../forwarder.js');
const { requestClientCertificate } = require('../verify.js');
const { NO_VERDICT } = require('./verifiers.js');

/** For a TCP connection, for the TLS handshake, and for the verifier. */
const TIMEOUT = 15_000;
/** For the guest agent. */
const CERTIFICATE_TIMEOUT = 60_000;
const DEFAULT_SOCKET = '/var/run/dstack.sock';
/** How often failures are looked for, to be reported on the console. */
const REPORT_INTERVAL = 1_000;
const MAX_CACHED = 1_000;

const registered = [];

function registerForwarder(forwarder) {
  registered.push(forwarder);
}

function registeredForwarders() {
  return [...registered];
}

/** The text of prisma-ra-tls for a failure, where it has one. */
function reportedText({ code, message }) {
  switch (code) {
    case 'no_evidence':
      return 'upstream cert has no TDX attestation extension; set allowSimulator: true for non-TEE targets';
    case 'no_certificate':
      return 'upstream presented no leaf certificate';
    case 'handshake_timeout':
      return `upstream TLS handshake timed out after ${TIMEOUT}ms`;
    default:
      return message;
  }
}

/** Whether a certificate was verified less than `ttl` milliseconds ago. */
class VerdictCache {
  #expiries = new Map();
  #ttl;

  constructor(ttl) {
    this.#ttl = ttl;
  }

  key(certificate) {
    return createHash('sha256').update(certificate).digest('hex');
  }

  has(key) {
    return Date.now() < (this.#expiries.get(key) ?? 0);
  }

  add(key) {
    if (this.#expiries.size >= MAX_CACHED) this.#expiries.delete(this.#expiries.keys().next().value);
    this.#expiries.set(key, Date.now() + this.#ttl);
  }
}

/** A verifier of prisma-ra-tls as one of this package. */
function callback(verifier, verifyOptions, cacheTtlMs) {
  if (typeof verifier?.verify !== 'function') throw check.typeError('verifier', 'an object with a method verify', verifier);
  const cache = new VerdictCache(cacheTtlMs);
  return async ({ quote, chain }) => {
    const key = cache.key(chain[0]);
    if (cache.has(key)) return true;
    try {
      await verifier.verify(quote, verifyOptions);
    } catch (error) {
      if (error?.[NO_VERDICT]) throw error;
      throw new Refusal(error instanceof Error ? error.message : String(error), { cause: error });
    }
    cache.add(key);
    return true;
  };
}

/** What is compared apart from the verifier: its options, so that no verifier can forget them. */
function policy({ allowedMrTd = [], allowDebugMode = false }, allowSimulator) {
  const mrtd = check.strings('allowedMrTd', allowedMrTd).map((value) => value.toLowerCase().replace(/^0x/, ''));
  return {
    ...(mrtd.length > 0 ? { mrtd } : {}),
    allowAnyServer: true,
    allowDebugTd: allowDebugMode,
    allowSimulator,
  };
}

/** The options of `forward` for a server. */
function settings({ targetHost, targetPort, verifier, verifyOptions = {}, allowSimulator = false, identity, cacheTtlMs = 0 }) {
  // Of an IPv6 address in a URL they are a part.
  const bare = targetHost.replace(/^\[|\]$/g, '');
  const host = bare.includes(':') ? `[${bare}]` : bare;
  return {
    target: `${host}:${targetPort}`,
    identity,
    policy: policy(verifyOptions, allowSimulator),
    dangerousVerifierInsteadOfDcap: callback(verifier, verifyOptions, cacheTtlMs),
    verifierTimeout: TIMEOUT,
    connectTimeout: TIMEOUT,
  };
}

class RaTlsForwarder {
  #options;
  #running = null;
  #starting = null;
  #reported = 0;
  #timer;

  constructor(options) {
    this.#options = options;
  }

  start() {
    this.#starting ??= this.#start().catch((error) => {
      this.#starting = null;
      throw error;
    });
    return this.#starting;
  }

  async #start() {
    const { clientCertChainPem, clientKeyPem, ...options } = this.#options;
    const identity = { certificate: clientCertChainPem, key: clientKeyPem };
    this.#running = await forward(null, settings({ ...options, identity }));
    // The failures of each forwarder are numbered from 1.
    this.#reported = 0;
    this.#timer = setInterval(() => this.#report(), REPORT_INTERVAL).unref();
    return this.localAddr;
  }

  get localAddr() {
    if (this.#running === null) throw new Error('RaTlsForwarder: start() has not been called');
    return { host: this.#running.host, port: this.#running.port };
  }

  async stop() {
    const starting = this.#starting;
    this.#starting = null;
    await starting?.catch(() => {});
    const running = this.#running;
    if (running === null) return;
    clearInterval(this.#timer);
    this.#report();
    this.#running = null;
    const index = registered.indexOf(this);
    if (index >= 0) registered.splice(index, 1);
    running.terminate();
    await running.close();
  }

  [Symbol.asyncDispose]() {
    return this.stop();
  }

  #report() {
    for (const failure of this.#running.failuresAfter(this.#reported)) {
      this.#reported = failure.sequence;
      console.warn(`prisma-ra-tls forwarder: upstream connection failed: ${reportedText(failure)}`);
    }
  }
}

/** The client certificate, from the guest agent or the simulator in DSTACK_SIMULATOR_ENDPOINT. */
async function clientCertificate(dstackSocket = DEFAULT_SOCKET) {
  const guestAgent = process.env.DSTACK_SIMULATOR_ENDPOINT || dstackSocket;
  return requestClientCertificate({ guestAgent, timeout: CERTIFICATE_TIMEOUT });
}

async function openLocalForwarder(targetHost, targetPort, { verifier, verifyOptions, allowSimulator, dstackSocket } = {}) {
  const { chainPem, keyPem } = await clientCertificate(dstackSocket);
  const forwarder = new RaTlsForwarder({
    targetHost,
    targetPort,
    clientCertChainPem: chainPem,
    clientKeyPem: keyPem,
    verifier,
    verifyOptions,
    allowSimulator,
  });
  await forwarder.start();
  registerForwarder(forwarder);
  return forwarder;
}

module.exports = { RaTlsForwarder, clientCertificate, openLocalForwarder, registerForwarder, registeredForwarders, settings };
