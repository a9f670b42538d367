'use strict';
// Leader manifests.

const { isIP } = require('node:net');
const native = require('./native.js');
const check = require('./arguments.js');
const { settle, unwrap } = require('./errors.js');

const { optional } = check;

function manifest(raw) {
  const { validUntil, ...rest } = raw;
  return { ...rest, validUntil: new Date(validUntil * 1000) };
}

/** An IP address, with a port or without, as `address:port`. */
function dnsServer(name, value) {
  check.string(name, value);
  if (isIP(value) === 6) return `[${value}]:53`;
  if (isIP(value) === 4) return `${value}:53`;
  const [, v6, v4, port] = /^(?:\[(.+)\]|([^:]+)):(\d{1,5})$/.exec(value) ?? [];
  if (isIP(v6 ?? '') !== 6 && isIP(v4 ?? '') !== 4) throw check.valueError(name, 'an IP address, with a port or without');
  check.port(`the port of ${name}`, Number(port));
  return value;
}

function leaderOptions(options) {
  check.object('options', options, ['dnsServer', 'timeout', 'cluster']);
  return {
    dnsServer: optional(dnsServer, 'options.dnsServer', options.dnsServer),
    timeout: optional(check.milliseconds, 'options.timeout', options.timeout),
    cluster: optional(check.string, 'options.cluster', options.cluster),
  };
}

async function resolveLeader(domain, signer, options = {}) {
  check.string('domain', domain);
  const address = check.signer('signer', signer);
  const settings = leaderOptions(options);
  return manifest(await settle((done) => native.resolveLeader(domain, address, settings, done)));
}

function parseManifest(text, signer, options = {}) {
  check.object('options', options, ['now']);
  check.string('text', text);
  const { now } = options;
  if (!check.absent(now) && !(now instanceof Date && now >= 0)) throw check.typeError('options.now', 'a Date', now);
  const seconds = check.absent(now) ? undefined : Math.floor(now / 1000);
  return manifest(unwrap(native.parseManifest(text, check.signer('signer', signer), seconds)));
}

module.exports = { resolveLeader, parseManifest };
