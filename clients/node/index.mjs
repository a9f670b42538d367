// The package `teesql` for ES modules: the objects of the CommonJS part, so that classes are the same in both.
import teesql from './index.js';

export const {
  forward,
  Forwarder,
  TeesqlError,
  ConnectionFailure,
  Refusal,
  verify,
  verifyCertificate,
  verifyServer,
  extractTdxQuote,
  readQuote,
  expectedReportData,
  requestClientCertificate,
  resolveLeader,
  parseManifest,
  setLogger,
  reasonCodes,
} = teesql;
