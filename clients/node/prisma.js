'use strict';
// `teesql/prisma` for CommonJS: the names of the package prisma-ra-tls. `prisma.mjs` exports the same objects.

const adapter = require('./lib/prisma/adapter.js');
const { rewriteDsnToForwarder } = require('./lib/prisma/dsn.js');
const { RaTlsForwarder, openLocalForwarder, registerForwarder, registeredForwarders } = require('./lib/prisma/forwarder.js');
const manifest = require('./lib/prisma/manifest.js');
const { IntelApiVerifier, NoopVerifier } = require('./lib/prisma/verifiers.js');
const { extractTdxQuote } = require('./lib/verify.js');

module.exports = {
  ...adapter, ...manifest, openLocalForwarder, rewriteDsnToForwarder, RaTlsForwarder, registerForwarder, registeredForwarders,
  IntelApiVerifier, NoopVerifier, extractTdxQuote,
};
