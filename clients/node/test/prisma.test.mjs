// `teesql/prisma`: the names and the texts of prisma-ra-tls.
import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import dns from 'node:dns';
import { after, test } from 'node:test';
import { inspect } from 'node:util';

import { PrismaPg } from '@prisma/adapter-pg';
import * as ratls from 'teesql/prisma';
import { readQuote } from 'teesql';

import { PrismaClient } from '../generated/client.js';
import { certificate, currentUser, guestAgent, host, key, port, serverWithoutEvidence, simulator, until, url } from './helpers.mjs';
import { nameServer, signer } from './nameserver.mjs';
import { API_KEY, trustAuthority } from './trust-authority.mjs';

const { IntelApiVerifier, NoopVerifier, RaTlsForwarder } = ratls;
const quote = ratls.extractTdxQuote(new X509Certificate(certificate).raw);
const { mrtd } = readQuote(quote);

after(() => Promise.all(ratls.registeredForwarders().map((forwarder) => forwarder.stop())));

/** What a query by Prisma through an adapter gives, or its error. */
async function query(adapter) {
  const prisma = new PrismaClient({ adapter });
  try {
    const [{ user }] = await prisma.$queryRaw`select current_user::text as user`;
    return user;
  } finally {
    await prisma.$disconnect();
  }
}

const mutual = { clientAttestation: true, dstackSocket: guestAgent };

test('every name of prisma-ra-tls, and extractTdxQuote', () => {
  const names = [
    'IntelApiVerifier', 'MANIFEST_VERSION', 'ManifestError', 'NoopVerifier', 'RaTlsForwarder', 'buildRecordName', 'canonicalBody',
    'connectViaManifest', 'extractTdxQuote', 'openLocalForwarder', 'parseAndVerify', 'postgresHostFromLeaderUrl',
    'queryManifestTxt', 'registerForwarder', 'registeredForwarders', 'resolveLeader', 'rewriteDsnToForwarder', 'withRaTls',
    'withRaTlsManifest',
  ];
  assert.deepEqual(Object.keys(ratls).sort(), names.sort());
});

test('withRaTls', async () => {
  const adapter = await ratls.withRaTls(url, { verifier: new NoopVerifier(), allowedMrTd: [`0x${mrtd.toUpperCase()}`], ...mutual });
  // The package loads the CommonJS form of the class, this file the other one.
  assert.equal(adapter.constructor.name, PrismaPg.name);
  assert.equal(await query(adapter), 'teesql_readwrite');
  assert.equal(await query(adapter), 'teesql_readwrite', 'again, after a disconnect');
});

test('withRaTls asks the verifier, and the cache comes before it', async () => {
  const calls = [];
  const verifier = {
    async verify(seen, options) {
      calls.push({ seen, options });
      return new NoopVerifier().verify();
    },
  };
  const adapter = await ratls.withRaTls(url, { verifier, allowedMrTd: [mrtd], ...mutual });
  await query(adapter);
  await query(adapter);
  assert.equal(calls.length, 1);
  assert(Buffer.isBuffer(calls[0].seen));
  assert.deepEqual(calls[0].options, { allowedMrTd: [mrtd], allowDebugMode: undefined });
});

test('withRaTls refuses', async (t) => {
  const refusal = { verify: async () => { throw new Error('not by this one'); } };
  await assert.rejects(query(await ratls.withRaTls(url, { verifier: refusal, ...mutual })), /not by this one/);
  const other = { verifier: new NoopVerifier(), allowedMrTd: ['ab'.repeat(48)], ...mutual };
  await assert.rejects(query(await ratls.withRaTls(url, other)), /`MRTD "[0-9a-f]+…[0-9a-f]+" is not in the allowlist\./);
  const dsn = url.replace(`:${port}/`, `:${await serverWithoutEvidence(t)}/`);
  await assert.rejects(
    query(await ratls.withRaTls(dsn, { verifier: new NoopVerifier() })),
    /Server TLS certificate does not contain a TDX attestation quote\. .* Set allowSimulator: true/,
  );
  await assert.rejects(ratls.withRaTls('host=x dbname=y', { verifier: new NoopVerifier() }), {
    message: 'prisma-ra-tls v0.3 requires a URI-form DSN (postgresql://user:pw@host:port/db)',
  });
  await assert.rejects(ratls.withRaTls('postgresql:///db', { verifier: new NoopVerifier() }), { message: 'DSN has no host' });
  await assert.rejects(ratls.withRaTls(url, {}), { name: 'TypeError' });
});

test('withRaTls to a simulator', async () => {
  const dsn = `postgresql://postgres@${simulator}/postgres`;
  const adapter = await ratls.withRaTls(dsn, { verifier: new NoopVerifier(), allowSimulator: true });
  assert.equal(await query(adapter), 'postgres');
});

test('openLocalForwarder, and its end', async () => {
  const forwarder = await ratls.openLocalForwarder(host, Number(port), { verifier: new NoopVerifier(), dstackSocket: guestAgent });
  assert(ratls.registeredForwarders().includes(forwarder));
  const { host: localHost, port: localPort } = forwarder.localAddr;
  const dsn = ratls.rewriteDsnToForwarder(url, localHost, localPort);
  assert.equal(await currentUser(dsn), 'teesql_readwrite');
  await forwarder.stop();
  await forwarder.stop();
  assert(!ratls.registeredForwarders().includes(forwarder));
  await assert.rejects(currentUser(dsn), { code: 'ECONNREFUSED' });
});

test('DSTACK_SIMULATOR_ENDPOINT takes precedence', async (t) => {
  process.env.DSTACK_SIMULATOR_ENDPOINT = guestAgent;
  t.after(() => delete process.env.DSTACK_SIMULATOR_ENDPOINT);
  const forwarder = await ratls.openLocalForwarder(host, Number(port), { verifier: new NoopVerifier(), dstackSocket: '/nonexistent' });
  await forwarder.stop();
});

test('RaTlsForwarder', async (t) => {
  const warnings = t.mock.method(console, 'warn', () => {});
  const options = { targetHost: host, targetPort: Number(port), clientCertChainPem: certificate, clientKeyPem: key };
  const forwarder = new RaTlsForwarder({ ...options, verifier: new NoopVerifier() });
  assert.throws(() => forwarder.localAddr, { message: 'RaTlsForwarder: start() has not been called' });
  await forwarder.stop();
  const address = await forwarder.start();
  assert.deepEqual(address, forwarder.localAddr);
  assert.equal(await currentUser(ratls.rewriteDsnToForwarder(url, address.host, address.port)), 'teesql_readwrite');
  await forwarder.stop();
  assert.throws(() => forwarder.localAddr);
  const again = await forwarder.start();
  assert.equal(await currentUser(ratls.rewriteDsnToForwarder(url, again.host, again.port)), 'teesql_readwrite');
  forwarder.start();
  await forwarder.stop();
  const starting = forwarder.start();
  await forwarder.stop();
  const stopped = await starting;
  await assert.rejects(currentUser(ratls.rewriteDsnToForwarder(url, stopped.host, stopped.port)), { code: 'ECONNREFUSED' });

  const withoutEvidence = { ...options, targetPort: await serverWithoutEvidence(t), verifier: new NoopVerifier() };
  const refusing = new RaTlsForwarder(withoutEvidence);
  const local = await refusing.start();
  await assert.rejects(currentUser(ratls.rewriteDsnToForwarder(url, local.host, local.port)));
  await until(() => warnings.mock.callCount() > 0, 'a warning');
  await refusing.stop();
  assert.deepEqual(warnings.mock.calls.map((call) => call.arguments), [
    [
      'prisma-ra-tls forwarder: upstream connection failed: upstream cert has no TDX attestation extension; ' +
        'set allowSimulator: true for non-TEE targets',
    ],
  ]);
});

test('connectViaManifest and withRaTlsManifest', async (t) => {
  const { sign, address } = signer(t);
  const manifestSigner = Uint8Array.from(Buffer.from(address.slice(2), 'hex'));
  const records = [sign(4, undefined, `https://${host}:${port}`)];
  const servers = dns.getServers();
  dns.setServers([await nameServer(t, () => records)]);
  t.after(() => dns.setServers(servers));
  const options = { verifier: new NoopVerifier(), allowSimulator: false, dstackSocket: guestAgent };

  const { dsn, manifest, forwarder } = await ratls.connectViaManifest('cluster.example', url, manifestSigner, options);
  assert.equal(manifest.epoch, 4);
  assert.equal(typeof manifest.validUntil, 'number');
  assert.equal(ratls.canonicalBody(manifest), records[0].slice(0, records[0].indexOf(';sig=')));
  assert.equal(await query(new PrismaPg({ connectionString: dsn })), 'teesql_readwrite');
  await forwarder.stop();

  const adapter = await ratls.withRaTlsManifest('cluster.example', url, manifestSigner, options);
  assert.equal(await query(adapter), 'teesql_readwrite');

  assert.equal((await ratls.resolveLeader('_teesql-leader.cluster.example', manifestSigner)).epoch, 4);
  await assert.rejects(ratls.resolveLeader('cluster.example', new Uint8Array(20)), ratls.ManifestError);
  const wrong = ratls.connectViaManifest('cluster.example', 'dbname=x', manifestSigner, options);
  await assert.rejects(wrong, /requires a URI-form DSN/);
  records[0] = 'no manifest';
  await assert.rejects(ratls.queryManifestTxt('_teesql-leader.x'), { message: 'no TXT record with sig field for _teesql-leader.x' });
});

test('parseAndVerify, and the helpers of manifests', (t) => {
  const { sign, address } = signer(t);
  const expected = Buffer.from(address.slice(2), 'hex');
  const validUntil = Math.floor(Date.now() / 1000) + 600;
  const text = sign(7, validUntil);
  const manifest = ratls.parseAndVerify(text, expected, { now: validUntil - 1 });
  assert.deepEqual(Object.keys(manifest).sort(), ['cluster', 'epoch', 'leaderInstance', 'leaderUrl', 'validUntil']);
  assert.equal(manifest.validUntil, validUntil);
  assert.throws(() => ratls.parseAndVerify(text, expected, { now: validUntil }), { name: 'ManifestError', code: 'manifest_expired' });
  assert.throws(() => ratls.parseAndVerify(text, new Uint8Array(19)), { name: 'ManifestError', message: 'expectedSigner must be 20 bytes' });
  assert.throws(() => ratls.parseAndVerify('x', expected), ratls.ManifestError);
  assert.equal(ratls.MANIFEST_VERSION, '1');
  assert.equal(ratls.buildRecordName('a.example'), '_teesql-leader.a.example');
  assert.equal(ratls.buildRecordName('_teesql-leader.a.example'), '_teesql-leader.a.example');
  assert.deepEqual(ratls.postgresHostFromLeaderUrl('https://a.example'), { host: 'a.example', port: 443 });
  assert.deepEqual(ratls.postgresHostFromLeaderUrl('http://a.example'), { host: 'a.example', port: 80 });
  assert.deepEqual(ratls.postgresHostFromLeaderUrl('https://a.example:8443/x'), { host: 'a.example', port: 8443 });
  assert.throws(() => ratls.postgresHostFromLeaderUrl('ftp://a.example'), { message: 'unknown scheme for ftp://a.example: ftp:' });
});

test('rewriteDsnToForwarder', () => {
  const rewrite = (dsn) => ratls.rewriteDsnToForwarder(dsn, '127.0.0.1', 4000);
  assert.equal(rewrite('postgresql://u:p@h:1/d'), 'postgresql://u:p@127.0.0.1:4000/d?sslmode=disable');
  assert.equal(rewrite('postgres://u@h/d?schema=x&sslmode=require'), 'postgres://u:ratls@127.0.0.1:4000/d?schema=x&sslmode=disable');
  // What would lead the driver around the forwarder.
  assert.equal(
    rewrite('postgresql://u:p@h/d?host=evil&hostaddr=1.2.3.4&port=1&sslrootcert=x&application_name=a'),
    'postgresql://u:p@127.0.0.1:4000/d?application_name=a&sslmode=disable',
  );
  assert.throws(() => rewrite('mysql://u:p@h/d'), { message: /requires a URI-form DSN/ });
  assert.throws(() => rewrite('postgresql://u:secret@h:99999/d'), (error) => !inspect(error).includes('secret'));
});

test('NoopVerifier', async () => {
  const zeros = '0'.repeat(96);
  assert.deepEqual(await new NoopVerifier().verify(quote, {}), {
    mrTd: zeros, rtmr0: zeros, rtmr1: zeros, rtmr2: zeros, rtmr3: zeros, tcbStatus: 'UpToDate', isDebugMode: false,
  });
});

test('IntelApiVerifier', async (t) => {
  const authority = await trustAuthority(t);
  const verifier = new IntelApiVerifier({ apiKey: API_KEY, baseUrl: authority.url });
  const result = await verifier.verify(quote, { allowedMrTd: [`0x${mrtd}`] });
  assert.deepEqual(Object.keys(result), ['mrTd', 'rtmr0', 'rtmr1', 'rtmr2', 'rtmr3', 'tcbStatus', 'isDebugMode']);
  assert.deepEqual([result.mrTd, result.tcbStatus, result.isDebugMode], [mrtd, 'UpToDate', false]);
  assert.deepEqual(authority.requests, [
    { url: '/appraisal/v2/attest', key: API_KEY, body: { quote: quote.toString('base64'), token_signing_alg: 'PS384' } },
  ]);

  const refused = async (change, expected, options) => {
    const before = structuredClone({ ...authority, requests: [] });
    change(authority);
    await assert.rejects(verifier.verify(quote, options), expected);
    Object.assign(authority, before);
  };
  await refused((ita) => Object.assign(ita, { status: 401, answer: 'Unauthorized' }), { message: 'Intel Trust Authority returned 401: Unauthorized' });
  await refused((ita) => Object.assign(ita, { answer: '{}' }), { message: 'Intel Trust Authority response missing token field' });
  await refused((ita) => Object.assign(ita, { answer: 'x'.repeat(300_000) }), /too large/);
  await refused((ita) => Object.assign(ita, { answer: 'x' }), /malformed/);
  await refused((ita) => Object.assign(ita, { answer: '{"token":"a.b.c"}' }), /malformed/);
  await refused((ita) => Object.assign(ita.header, { alg: 'none' }), /PS384 or RS256/);
  await refused((ita) => Object.assign(ita.header, { alg: 'RS256' }), /signature does not verify/);
  await refused((ita) => Object.assign(ita.header, { kid: 'k2' }), /key is not one/);
  await refused((ita) => Object.assign(ita.header, { kid: undefined }), { message: 'Attestation token missing kid header' });
  await refused((ita) => Object.assign(ita.header, { jku: 'https://evil.example/certs' }), /jku is not on/);
  await refused((ita) => Object.assign(ita.header, { jku: 5 }), { message: 'Attestation token missing jku header' });
  await refused((ita) => Object.assign(ita.claims, { exp: 1 }), /has expired/);
  await refused((ita) => Object.assign(ita.claims, { exp: undefined }), /has expired/);
  await refused((ita) => Object.assign(ita.claims, { nbf: 2 ** 40 }), /not valid yet/);
  await refused((ita) => Object.assign(ita.tdx, { tdx_mrtd: 'ab'.repeat(48) }), /tdx_mrtd is not the quote's/);
  await refused((ita) => Object.assign(ita.tdx, { tdx_report_data: 'ab'.repeat(64) }), /tdx_report_data is not the quote's/);
  await refused((ita) => Object.assign(ita.tdx, { attester_tcb_status: 'OutOfDate' }), /^Error: Unacceptable TCB status: "OutOfDate"\./);
  await refused((ita) => Object.assign(ita.tdx, { tdx_is_debuggable: true }), /TDX TD is in debug mode — connection refused\./);
  await refused(() => {}, /is not in the allowlist/, { allowedMrTd: ['ab'.repeat(48)] });

  // As a forwarder's verifier: its texts reach the driver.
  const adapter = await ratls.withRaTls(url, { verifier, ...mutual });
  assert.equal(await query(adapter), 'teesql_readwrite');
  Object.assign(authority, { status: 401, answer: 'Unauthorized' });
  const other = await ratls.withRaTls(url, { verifier, ...mutual });
  await assert.rejects(query(other), /Intel Trust Authority returned 401: Unauthorized/);
});

test('IntelApiVerifier without a key', (t) => {
  const saved = process.env.INTEL_TRUST_AUTHORITY_API_KEY;
  t.after(() => saved !== undefined && (process.env.INTEL_TRUST_AUTHORITY_API_KEY = saved));
  delete process.env.INTEL_TRUST_AUTHORITY_API_KEY;
  assert.throws(() => new IntelApiVerifier(), {
    message:
      'Intel Trust Authority API key required. Pass { apiKey } option or set INTEL_TRUST_AUTHORITY_API_KEY env var. ' +
      'Register at https://portal.trustauthority.intel.com',
  });
  process.env.INTEL_TRUST_AUTHORITY_API_KEY = 'k\n';
  assert(new IntelApiVerifier());
  const unusable = { code: 'ERR_OUT_OF_RANGE', message: 'apiKey must be of printable ASCII characters' };
  assert.throws(() => new IntelApiVerifier({ apiKey: 'se\ncret' }), unusable);
  if (saved === undefined) delete process.env.INTEL_TRUST_AUTHORITY_API_KEY;
});
