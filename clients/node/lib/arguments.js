'use strict';
// Checks of arguments. A mistake in a type, or a key that does not exist, is a TypeError: a misspelt key of a policy
// would otherwise compare nothing.

const { types } = require('node:util');
const { fileURLToPath } = require('node:url');

function typeError(name, expected, actual) {
  const seen = actual === null ? 'null' : Array.isArray(actual) ? 'an array' : `type ${typeof actual}`;
  const error = new TypeError(`${name} must be ${expected}, not ${seen}`);
  error.code = 'ERR_INVALID_ARG_TYPE';
  return error;
}

function valueError(name, expected) {
  const error = new RangeError(`${name} must be ${expected}`);
  error.code = 'ERR_OUT_OF_RANGE';
  return error;
}

const absent = (value) => value === undefined || value === null;

function object(name, value, keys) {
  if (typeof value !== 'object' || value === null || Array.isArray(value) || types.isUint8Array(value)) {
    throw typeError(name, 'an object', value);
  }
  for (const key of Object.keys(value)) {
    if (!keys.includes(key)) {
      const error = new TypeError(`${name} has no ${JSON.stringify(key)}: it has ${keys.join(', ')}`);
      error.code = 'ERR_INVALID_ARG_VALUE';
      throw error;
    }
  }
  return value;
}

function string(name, value) {
  if (typeof value !== 'string') throw typeError(name, 'a string', value);
  // The native part would cut it there.
  if (value.includes('\0')) throw valueError(name, 'without a null character');
  return value;
}

function boolean(name, value) {
  if (typeof value !== 'boolean') throw typeError(name, 'a boolean', value);
  return value;
}

/** A connection URL: a string, or a URL. */
function url(name, value) {
  if (value instanceof URL) return value.href;
  if (typeof value !== 'string') throw typeError(name, 'a string or a URL', value);
  return string(name, value);
}

/** A path: a string, or a file: URL. */
function path(name, value) {
  if (value instanceof URL) return fileURLToPath(value);
  if (typeof value !== 'string') throw typeError(name, 'a string or a URL', value);
  return string(name, value);
}

/** One string or several, as an array. */
function strings(name, value) {
  if (typeof value === 'string') return [string(name, value)];
  if (!Array.isArray(value)) throw typeError(name, 'a string or an array of strings', value);
  return value.map((item, index) => string(`${name}[${index}]`, item));
}

/** Bytes, as a Buffer over the same memory. */
function bytes(name, value) {
  if (!types.isUint8Array(value)) throw typeError(name, 'a Buffer or a Uint8Array', value);
  return Buffer.from(value.buffer, value.byteOffset, value.byteLength);
}

/** PEM, as text or bytes. */
function text(name, value) {
  if (typeof value === 'string') return Buffer.from(value, 'utf8');
  if (!types.isUint8Array(value)) throw typeError(name, 'a string, a Buffer or a Uint8Array', value);
  return bytes(name, value);
}

/** The longest delay of Node's timers: 24.8 days. */
const MAX_MILLISECONDS = 2 ** 31 - 1;

function milliseconds(name, value) {
  if (typeof value !== 'number') throw typeError(name, 'a number of milliseconds', value);
  if (!(value > 0 && value <= MAX_MILLISECONDS)) throw valueError(name, `between 0 and ${MAX_MILLISECONDS} ms`);
  return Math.max(1, Math.round(value));
}

function port(name, value) {
  if (typeof value !== 'number') throw typeError(name, 'a number', value);
  if (!Number.isInteger(value) || value < 1 || value > 65535) throw valueError(name, 'between 1 and 65535');
  return value;
}

/** `check(name, value)`, unless the value is absent. */
function optional(check, name, value) {
  return absent(value) ? undefined : check(name, value);
}

/** An object of settings as pairs of strings. */
function settings(name, value) {
  if (absent(value)) return [];
  if (typeof value !== 'object' || Array.isArray(value)) throw typeError(name, 'an object', value);
  return Object.entries(value).map(([key, setting]) => {
    const path = `${name}.${key}`;
    if (typeof setting === 'number' || typeof setting === 'boolean') return { name: key, value: String(setting) };
    if (Array.isArray(setting)) return { name: key, value: strings(path, setting).join(',') };
    if (typeof setting !== 'string') throw typeError(path, 'a string, a number, a boolean or an array of strings', setting);
    return { name: key, value: string(path, setting) };
  });
}

/** The address of the key that signs manifests: 20 bytes, or `0x` and 40 hex digits. */
function signer(name, value) {
  if (types.isUint8Array(value)) {
    if (value.byteLength !== 20) throw valueError(name, '20 bytes');
    return bytes(name, value);
  }
  if (typeof value !== 'string') throw typeError(name, 'a string or a Uint8Array', value);
  if (!/^0x[0-9a-f]{40}$/i.test(value)) throw valueError(name, '0x and 40 hex digits');
  return Buffer.from(value.slice(2), 'hex');
}

const IDENTITY_KEYS = ['guestAgent', 'certificate', 'key', 'certificateFile', 'keyFile'];

function identity(name, value) {
  if (value === 'guest-agent') return { kind: 'guest-agent' };
  if (value === 'none') return { kind: 'none' };
  if (typeof value === 'string') throw valueError(name, "'guest-agent', 'none' or an object");
  const given = Object.keys(object(name, value, IDENTITY_KEYS)).filter((key) => !absent(value[key]));
  switch (given.sort().join()) {
    case 'guestAgent':
      return { kind: 'guest-agent-at', address: path(`${name}.guestAgent`, value.guestAgent) };
    case 'certificate,key':
      return {
        kind: 'pem',
        certificate: text(`${name}.certificate`, value.certificate),
        key: text(`${name}.key`, value.key),
      };
    case 'certificateFile,keyFile':
      return {
        kind: 'files',
        certificateFile: path(`${name}.certificateFile`, value.certificateFile),
        keyFile: path(`${name}.keyFile`, value.keyFile),
      };
    default: {
      const error = new TypeError(`${name} must have either guestAgent, or certificate and key, or certificateFile and keyFile`);
      error.code = 'ERR_INVALID_ARG_VALUE';
      throw error;
    }
  }
}

/** Keys of a policy with values, and the native part's names for them. */
const POLICY_VALUES = {
  mrtd: 'mrtd',
  rtmr0: 'rtmr0',
  rtmr1: 'rtmr1',
  rtmr2: 'rtmr2',
  rtmr3: 'rtmr3',
  appId: 'app-id',
  composeHash: 'compose-hash',
  instanceId: 'instance-id',
  osImageHash: 'os-image-hash',
  acceptTcbStatus: 'accept-tcb-status',
};
const POLICY_FLAGS = {
  allowDebugTd: 'allow-debug-td',
  allowAnyServer: 'allow-any-server',
  allowSimulator: 'allow-simulator',
};
const POLICY_KEYS = ['file', ...Object.keys(POLICY_VALUES), ...Object.keys(POLICY_FLAGS), 'settings'];

/** A policy as a list of rules for the native part. */
function policy(name, value) {
  const rules = [];
  object(name, value, POLICY_KEYS);
  if (!absent(value.file)) rules.push({ name: 'file', value: path(`${name}.file`, value.file) });
  for (const [key, rule] of Object.entries(POLICY_VALUES)) {
    if (absent(value[key])) continue;
    const allowed = strings(`${name}.${key}`, value[key]);
    // An empty list would compare nothing, which is probably a mistake.
    if (allowed.length === 0) throw valueError(`${name}.${key}`, 'not empty: leave it out to compare nothing');
    for (const item of allowed) rules.push({ name: rule, value: item });
  }
  for (const [key, rule] of Object.entries(POLICY_FLAGS)) {
    if (!absent(value[key]) && boolean(`${name}.${key}`, value[key])) rules.push({ name: rule, value: '' });
  }
  return { rules, settings: settings(`${name}.settings`, value.settings) };
}

module.exports = {
  absent, boolean, bytes, identity, milliseconds, object, optional, path, policy, port, settings, signer, string,
  strings, text, typeError, url, valueError,
};
