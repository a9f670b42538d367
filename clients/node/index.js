'use strict';
// The package `teesql` for CommonJS. `index.mjs` exports the same objects.

const native = require('./lib/native.js');
const { ConnectionFailure, Refusal, TeesqlError } = require('./lib/errors.js');
const { Forwarder, forward } = require('./lib/forwarder.js');
const { setLogger } = require('./lib/log.js');
const { parseManifest, resolveLeader } = require('./lib/manifest.js');
const verification = require('./lib/verify.js');

module.exports = {
  forward, Forwarder, TeesqlError, ConnectionFailure, Refusal, ...verification, resolveLeader, parseManifest, setLogger,
  reasonCodes: Object.freeze(native.reasonCodes()),
};
