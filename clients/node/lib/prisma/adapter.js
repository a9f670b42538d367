'use strict';
// Prisma's driver adapter over a forwarder, with the functions of prisma-ra-tls.

const { createRequire } = require('node:module');
const check = require('../arguments.js');
const { forward } = require('../forwarder.js');
const { parseDsnTarget, rewriteDsnToForwarder } = require('./dsn.js');
const { clientCertificate, openLocalForwarder, settings } = require('./forwarder.js');
const { postgresHostFromLeaderUrl, resolveLeader } = require('./manifest.js');

/** As long as the tokens of Intel Trust Authority hold. */
const DEFAULT_CACHE_TTL = 3_600_000;

/** The peer dependencies, loaded only when an adapter is made. `pg` is the one that the adapter itself uses. */
function peers() {
  const { PrismaPg } = require('@prisma/adapter-pg');
  const pg = createRequire(require.resolve('@prisma/adapter-pg'))('pg');
  return { PrismaPg, Pool: pg.Pool };
}

/** The text of prisma-ra-tls for a connection that was refused, where it has one. */
function translated(error, forwarder) {
  const failure = forwarder.lastFailure;
  if (!failure || !error?.message?.includes(failure.message)) return error;
  if (failure.code === 'no_evidence') {
    return new Error(
      'Server TLS certificate does not contain a TDX attestation quote. The server may not be running inside a dstack CVM. ' +
        'Set allowSimulator: true if connecting to a simulator or non-TEE server.',
      { cause: failure },
    );
  }
  error.cause ??= failure;
  return error;
}

/** A pool whose errors have the forwarder's as their cause. */
function poolOf(Pool, forwarder, connectionString) {
  const pool = new (class RaTlsPool extends Pool {
    connect(callback) {
      const connecting = super.connect().catch((error) => {
        throw translated(error, forwarder);
      });
      if (!callback) return connecting;
      connecting.then(
        (client) => callback(undefined, client, client.release),
        (error) => callback(error, undefined, () => {}),
      );
      return undefined;
    }
  })({ connectionString, allowExitOnIdle: true });
  // Of an idle connection that has ended, which the pool replaces. Without a listener it would end the process.
  pool.on('error', () => {});
  return pool;
}

async function withRaTls(connectionString, options) {
  const { host, port } = parseDsnTarget(connectionString);
  const { PrismaPg, Pool } = peers();
  const { verifier, allowedMrTd, allowDebugMode, allowSimulator, clientAttestation, dstackSocket, cacheTtlMs, schema } = options;
  let identity = 'none';
  if (clientAttestation) {
    const { chainPem, keyPem } = await clientCertificate(dstackSocket);
    identity = { certificate: chainPem, key: keyPem };
  }
  const forwarder = await forward(
    null,
    settings({
      targetHost: host,
      targetPort: port,
      verifier,
      verifyOptions: { allowedMrTd, allowDebugMode },
      allowSimulator,
      identity,
      cacheTtlMs: check.absent(cacheTtlMs) ? DEFAULT_CACHE_TTL : cacheTtlMs,
    }),
  );
  const pool = poolOf(Pool, forwarder, rewriteDsnToForwarder(connectionString, forwarder.host, forwarder.port));
  return new PrismaPg(pool, { schema });
}

async function connectViaManifest(clusterDomain, dsnTemplate, manifestSigner, options) {
  const manifest = await resolveLeader(clusterDomain, manifestSigner);
  const { host, port } = postgresHostFromLeaderUrl(manifest.leaderUrl);
  // Before the forwarder is there: a mistake in it should leave nothing behind.
  rewriteDsnToForwarder(dsnTemplate, host, port);
  const forwarder = await openLocalForwarder(host, port, options);
  const local = forwarder.localAddr;
  return { dsn: rewriteDsnToForwarder(dsnTemplate, local.host, local.port), manifest, forwarder };
}

async function withRaTlsManifest(clusterDomain, dsnTemplate, manifestSigner, options) {
  const { PrismaPg } = peers();
  const { dsn } = await connectViaManifest(clusterDomain, dsnTemplate, manifestSigner, options);
  return new PrismaPg({ connectionString: dsn }, { schema: options.schema });
}

module.exports = { connectViaManifest, withRaTls, withRaTlsManifest };
