'use strict';
// Errors: one class for all that the native part reports, distinguished by `kind` and `code`.

class TeesqlError extends Error {
  /** `options`: kind, code, and messages if there are several. */
  constructor(message, { kind, code, messages = [message], cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.kind = kind;
    this.code = code;
    this.messages = Object.freeze([...messages]);
  }
}
// Enumerable properties of an instance are printed with it; its name should not be one.
Object.defineProperty(TeesqlError.prototype, 'name', { value: 'TeesqlError', configurable: true, writable: true });

/** A connection that a forwarder refused, or a session that it ended by an error. */
class ConnectionFailure extends TeesqlError {
  constructor({ error, sequence, sqlstate, inSession, client, at }) {
    super(error.message, error);
    this.sequence = sequence;
    this.sqlstate = sqlstate ?? null;
    this.inSession = inSession;
    this.client = client ?? null;
    this.at = new Date(at);
  }
}
Object.defineProperty(ConnectionFailure.prototype, 'name', { value: 'ConnectionFailure', configurable: true, writable: true });

/** What a verifier throws to refuse a server. Any other exception means that the verifier failed. */
class Refusal extends Error {}
Object.defineProperty(Refusal.prototype, 'name', { value: 'Refusal', configurable: true, writable: true });

/** The value of a native result, or its error as an exception. */
function unwrap([error, value]) {
  if (error) throw new TeesqlError(error.message, error);
  return value;
}

/**
 * Calls a native function whose last argument is a callback `(error, value)`. The stack of an exception is that of this call,
 * since the callback has none.
 */
function settle(call) {
  const called = {};
  Error.captureStackTrace(called, settle);
  return new Promise((resolve, reject) => {
    call((error, value) => {
      if (!error) {
        resolve(value);
        return;
      }
      const exception = new TeesqlError(error.message, error);
      const frames = called.stack.split('\n').slice(1);
      exception.stack = [`${exception.name}: ${exception.message}`, ...frames].join('\n');
      reject(exception);
    });
  });
}

module.exports = { TeesqlError, ConnectionFailure, Refusal, unwrap, settle };
