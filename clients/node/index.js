'use strict';
// The package `teesql` for CommonJS. `index.mjs` exports the same objects.

const native = require('./lib/native.js');
const { ConnectionFailure, Refusal, TeesqlError } = require('./lib/errors.js');
const { Forwarder, forward } = require('./lib/forwarder.js');
const { setLogger } = require('./lib/log.js');
const { parseManifest, resolveLeader } = require('./lib/manifest.js');
const verification = require('./lib/verify.js');

exports.forward = forward;
exports.Forwarder = Forwarder;
exports.TeesqlError = TeesqlError;
exports.ConnectionFailure = ConnectionFailure;
exports.Refusal = Refusal;
exports.verify = verification.verify;
exports.verifyCertificate = verification.verifyCertificate;
exports.verifyServer = verification.verifyServer;
exports.extractTdxQuote = verification.extractTdxQuote;
exports.readQuote = verification.readQuote;
exports.expectedReportData = verification.expectedReportData;
exports.requestClientCertificate = verification.requestClientCertificate;
exports.resolveLeader = resolveLeader;
exports.parseManifest = parseManifest;
exports.setLogger = setLogger;
exports.reasonCodes = Object.freeze(native.reasonCodes());
