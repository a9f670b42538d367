'use strict';
// Leader manifests, with the names and types of prisma-ra-tls.

const dns = require('node:dns').promises;
const { TeesqlError } = require('../errors.js');
const { parseManifest } = require('../manifest.js');

const MANIFEST_VERSION = '1';
const RECORD_LABEL = '_teesql-leader';

class ManifestError extends TeesqlError {}
Object.defineProperty(ManifestError.prototype, 'name', { value: 'ManifestError', configurable: true, writable: true });

function malformed(message) {
  return new ManifestError(message, { kind: 'manifest', code: 'manifest_malformed' });
}

function canonicalBody(manifest) {
  return [
    `cluster=${manifest.cluster.toLowerCase()}`,
    `epoch=${manifest.epoch}`,
    `leader_instance=${manifest.leaderInstance.toLowerCase()}`,
    `leader_url=${manifest.leaderUrl}`,
    `v=${MANIFEST_VERSION}`,
    `valid_until=${manifest.validUntil}`,
  ].join(';');
}

function parseAndVerify(txt, expectedSigner, { now } = {}) {
  if (expectedSigner?.length !== 20) throw malformed('expectedSigner must be 20 bytes');
  const time = now === undefined ? undefined : new Date(now * 1000);
  try {
    const { cluster, leaderInstance, leaderUrl, epoch, validUntil } = parseManifest(txt, expectedSigner, { now: time });
    return { cluster, leaderInstance, leaderUrl, epoch: Number(epoch), validUntil: validUntil.getTime() / 1000 };
  } catch (error) {
    if (error instanceof TeesqlError) throw new ManifestError(error.message, { ...error, cause: error });
    throw error;
  }
}

function buildRecordName(clusterDomain) {
  return clusterDomain.startsWith(`${RECORD_LABEL}.`) ? clusterDomain : `${RECORD_LABEL}.${clusterDomain}`;
}

async function queryManifestTxt(recordName) {
  const records = (await dns.resolveTxt(recordName)).map((chunks) => chunks.join(''));
  if (records.length === 0) throw new Error(`no TXT records for ${recordName}`);
  const manifest = records.find((record) => record.includes(';sig='));
  if (manifest === undefined) throw new Error(`no TXT record with sig field for ${recordName}`);
  return manifest;
}

function postgresHostFromLeaderUrl(url) {
  const { hostname, port, protocol } = new URL(url);
  if (!hostname) throw new Error(`missing hostname: ${url}`);
  const defaults = { 'https:': 443, 'http:': 80 };
  const number = port ? Number(port) : defaults[protocol];
  if (number === undefined) throw new Error(`unknown scheme for ${url}: ${protocol}`);
  return { host: hostname, port: number };
}

async function resolveLeader(clusterDomain, manifestSigner) {
  return parseAndVerify(await queryManifestTxt(buildRecordName(clusterDomain)), manifestSigner);
}

module.exports = {
  MANIFEST_VERSION, ManifestError, buildRecordName, canonicalBody, parseAndVerify, postgresHostFromLeaderUrl,
  queryManifestTxt, resolveLeader,
};
