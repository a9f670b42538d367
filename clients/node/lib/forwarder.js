'use strict';
// Forwarders: the options of `forward`, and the object that it returns.

const native = require('./native.js');
const check = require('./arguments.js');
const { ConnectionFailure, TeesqlError, settle, unwrap } = require('./errors.js');
const { dispatcher } = require('./verifier.js');
require('./log.js');

const { absent, optional } = check;

const OPTIONS = [
  'env', 'target', 'cluster', 'identity', 'policy', 'verifier', 'dangerousVerifierInsteadOfDcap', 'verifierTimeout',
  'connectTimeout', 'startTimeout', 'drainTimeout', 'settings', 'signal',
];

/** The verifier among some options, for the native part. */
function verifierOf(options) {
  const own = options.verifier;
  const instead = options.dangerousVerifierInsteadOfDcap;
  if (!absent(own) && !absent(instead)) {
    throw new TypeError('options.verifier and options.dangerousVerifierInsteadOfDcap exclude each other');
  }
  const timeout = optional(check.milliseconds, 'options.verifierTimeout', options.verifierTimeout);
  const name = absent(instead) ? 'options.verifier' : 'options.dangerousVerifierInsteadOfDcap';
  const verifier = instead ?? own;
  return {
    ask: absent(verifier) ? undefined : dispatcher(name, verifier, timeout),
    insteadOfDcap: !absent(instead),
    timeout,
  };
}

function targets(name, value) {
  return check.strings(name, value).join(',');
}

function cluster(name, value) {
  const { domain, signer } = check.object(name, value, ['domain', 'signer']);
  return { domain: check.string(`${name}.domain`, domain), signer: check.signer(`${name}.signer`, signer) };
}

function startSettings(url, options) {
  check.object('options', options, OPTIONS);
  const verifier = verifierOf(options);
  const settings = {
    env: optional(check.boolean, 'options.env', options.env) ?? false,
    url: optional(check.url, 'url', url),
    target: optional(targets, 'options.target', options.target),
    cluster: optional(cluster, 'options.cluster', options.cluster),
    identity: optional(check.identity, 'options.identity', options.identity),
    policy: optional(check.policy, 'options.policy', options.policy),
    verifierInsteadOfDcap: verifier.insteadOfDcap,
    verifierTimeout: verifier.timeout,
    connectTimeout: optional(check.milliseconds, 'options.connectTimeout', options.connectTimeout),
    startTimeout: optional(check.milliseconds, 'options.startTimeout', options.startTimeout),
    drainTimeout: optional(check.milliseconds, 'options.drainTimeout', options.drainTimeout),
    settings: check.settings('options.settings', options.settings),
  };
  if (!absent(options.signal) && !(options.signal instanceof AbortSignal)) {
    throw check.typeError('options.signal', 'an AbortSignal', options.signal);
  }
  return { settings, ask: verifier.ask };
}

/**
 * Forwarders that have not been closed. Without this reference, one whose DSN alone is still used would be collected as
 * garbage, and end.
 */
const open = new Set();

/** Ends what is still open when this JavaScript thread ends. */
const environment = new native.Environment();
// Node does not run the hooks of native modules on `process.exit` and after an uncaught exception.
process.once('exit', () => environment.end());

const CONSTRUCT = Symbol('construct');

class Forwarder {
  #native;
  #closed;

  constructor(key, running) {
    if (key !== CONSTRUCT) throw new TypeError('Illegal constructor: use forward()');
    this.#native = running;
    open.add(this);
  }

  get dsn() {
    return unwrap(this.#native.dsn());
  }

  get host() {
    return unwrap(this.#native.hostAndPort()).host;
  }

  get port() {
    return unwrap(this.#native.hostAndPort()).port;
  }

  get closed() {
    return !open.has(this);
  }

  rewrite(url) {
    return unwrap(this.#native.rewrite(check.url('url', url)));
  }

  get lastFailure() {
    const failure = this.#native.lastFailure();
    return failure ? new ConnectionFailure(failure) : null;
  }

  failuresAfter(sequence) {
    if (!Number.isSafeInteger(sequence)) throw check.typeError('sequence', 'an integer', sequence);
    return this.#native.failuresAfter(Math.max(0, sequence)).map((failure) => new ConnectionFailure(failure));
  }

  close() {
    this.#closed ??= settle((done) => this.#native.stop(done)).finally(() => open.delete(this));
    return this.#closed;
  }

  terminate() {
    this.#native.terminate();
  }

  [Symbol.asyncDispose]() {
    return this.close();
  }

  [Symbol.for('nodejs.util.inspect.custom')]() {
    // Not the DSN, which contains the secret.
    const [error, address] = this.#native.hostAndPort();
    return error ? 'Forwarder { closed }' : `Forwarder { ${address.host}:${address.port} }`;
  }
}

async function forward(url, options = {}) {
  const { settings, ask } = startSettings(url, options);
  const { signal } = options;
  signal?.throwIfAborted();
  const starting = settle((done) => native.start(environment, settings, ask, done)).then(
    (running) => new Forwarder(CONSTRUCT, running),
  );
  return signal ? abortable(starting, signal) : starting;
}

/** `starting`, or the reason of the signal if that comes first: the forwarder is then closed once it has started. */
function abortable(starting, signal) {
  return new Promise((resolve, reject) => {
    const abort = () => {
      reject(signal.reason);
      starting.then((forwarder) => forwarder.close()).catch(() => {});
    };
    signal.addEventListener('abort', abort, { once: true });
    starting.finally(() => signal.removeEventListener('abort', abort)).then(resolve, reject);
  });
}

module.exports = { Forwarder, TeesqlError, forward, verifierOf };
