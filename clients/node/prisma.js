'use strict';
// `teesql/prisma` for CommonJS: the names of the package prisma-ra-tls. `prisma.mjs` exports the same objects.

const { connectViaManifest, withRaTls, withRaTlsManifest } = require('./lib/prisma/adapter.js');
const { rewriteDsnToForwarder } = require('./lib/prisma/dsn.js');
const forwarder = require('./lib/prisma/forwarder.js');
const manifest = require('./lib/prisma/manifest.js');
const { IntelApiVerifier, NoopVerifier } = require('./lib/prisma/verifiers.js');
const { extractTdxQuote } = require('./lib/verify.js');

exports.withRaTls = withRaTls;
exports.connectViaManifest = connectViaManifest;
exports.resolveLeader = manifest.resolveLeader;
exports.withRaTlsManifest = withRaTlsManifest;
exports.openLocalForwarder = forwarder.openLocalForwarder;
exports.rewriteDsnToForwarder = rewriteDsnToForwarder;
exports.RaTlsForwarder = forwarder.RaTlsForwarder;
exports.registerForwarder = forwarder.registerForwarder;
exports.registeredForwarders = forwarder.registeredForwarders;
exports.ManifestError = manifest.ManifestError;
exports.canonicalBody = manifest.canonicalBody;
exports.parseAndVerify = manifest.parseAndVerify;
exports.MANIFEST_VERSION = manifest.MANIFEST_VERSION;
exports.buildRecordName = manifest.buildRecordName;
exports.postgresHostFromLeaderUrl = manifest.postgresHostFromLeaderUrl;
exports.queryManifestTxt = manifest.queryManifestTxt;
exports.IntelApiVerifier = IntelApiVerifier;
exports.NoopVerifier = NoopVerifier;
exports.extractTdxQuote = extractTdxQuote;
