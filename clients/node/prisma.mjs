// `teesql/prisma` for ES modules: the objects of the CommonJS part.
import prisma from './prisma.js';

export const {
  withRaTls,
  connectViaManifest,
  resolveLeader,
  withRaTlsManifest,
  openLocalForwarder,
  rewriteDsnToForwarder,
  RaTlsForwarder,
  registerForwarder,
  registeredForwarders,
  ManifestError,
  canonicalBody,
  parseAndVerify,
  MANIFEST_VERSION,
  buildRecordName,
  postgresHostFromLeaderUrl,
  queryManifestTxt,
  IntelApiVerifier,
  NoopVerifier,
  extractTdxQuote,
} = prisma;
