// Verification without a forwarder, and leader manifests.
import assert from 'node:assert/strict';
import { createHash, generateKeyPairSync, randomBytes, X509Certificate } from 'node:crypto';
import { test } from 'node:test';

import * as teesql from 'teesql';
import { TeesqlError } from 'teesql';

import { certificate, guestAgent, host, listen, plainCertificate, port, serverWithoutEvidence, simulator, x509 } from './helpers.mjs';
import { CLUSTER, nameServer, signer, silentNameServer } from './nameserver.mjs';

const WRONG_MRTD = 'ab'.repeat(48);
const der = new X509Certificate(certificate).raw;

test('verifyServer', async () => {
  const verified = await teesql.verifyServer(host, Number(port), { env: true });
  assert.equal(verified.claims.appId, process.env.TEESQL_ALLOWED_APP_ID);
  assert.equal(verified.claims.tcbStatus, 'UpToDate');
  assert.equal(verified.fingerprint, createHash('sha256').update(verified.chain[0]).digest('hex'));
  assert(verified.validUntil > new Date());
  const inSimulatorMode = await teesql.verifyServer(host, Number(simulator.split(':')[1]), { env: true });
  assert.equal(inSimulatorMode.claims.mrtd, verified.claims.mrtd);
  const fingerprint256 = x509(verified.chain[0]).fingerprint256.replaceAll(':', '').toLowerCase();
  assert.equal(verified.fingerprint, fingerprint256);
});

test('verifyServer refuses', async (t) => {
  const silent = await listen(t);
  const refused = (server, options, expected) =>
    assert.rejects(teesql.verifyServer(server.split(':')[0], Number(server.split(':')[1]), { env: true, ...options }), {
      name: 'TeesqlError',
      ...expected,
    });
  await refused(`${host}:${port}`, { policy: { mrtd: WRONG_MRTD } }, { kind: 'refused', code: 'mrtd_not_allowed' });
  await refused(`${host}:${port}`, { verifier: () => false }, { kind: 'refused', code: 'verifier_refused' });
  await refused(`127.0.0.1:${await serverWithoutEvidence(t)}`, {}, { kind: 'refused', code: 'no_evidence' });
  await refused('127.0.0.1:1', {}, { kind: 'network' });
  await refused(`127.0.0.1:${silent.port}`, { timeout: 300 }, { kind: 'timeout' });
  await assert.rejects(teesql.verifyServer(host, '5433'), { code: 'ERR_INVALID_ARG_TYPE' });
  await assert.rejects(teesql.verifyServer(host, 0), { code: 'ERR_OUT_OF_RANGE' });
  await assert.rejects(teesql.verifyServer(host, 1, { target: 'x' }), { code: 'ERR_INVALID_ARG_VALUE' });
});

test('verifyCertificate and verify', async () => {
  const verified = await teesql.verifyCertificate(certificate, { env: true });
  const quote = teesql.extractTdxQuote(der);
  assert.deepEqual(verified.quote, quote);
  assert.equal(verified.claims.reportData, teesql.expectedReportData(spki(der)).toString('hex'));
  const settings = { dangerous_tdx_root_ca: process.env.TEESQL_DANGEROUS_TDX_ROOT_CA, pccs: process.env.TEESQL_PCCS };
  const { claims, chain, fingerprint } = await teesql.verify(quote, { policy: { mrtd: verified.claims.mrtd, settings } });
  assert.equal(claims.mrtd, verified.claims.mrtd);
  assert.equal(claims.tcbStatus, 'UpToDate');
  assert.deepEqual([chain, fingerprint], [[], '']);
  await assert.rejects(teesql.verify(quote, { policy: { mrtd: WRONG_MRTD, settings } }), { code: 'mrtd_not_allowed' });
  const forged = Buffer.from(quote);
  forged[700] ^= 1;
  await assert.rejects(teesql.verify(forged, { policy: { settings } }), { name: 'TeesqlError', kind: 'refused' });
  const refused = (chain, code) => assert.rejects(teesql.verifyCertificate(chain, { env: true }), { name: 'TeesqlError', code });
  await refused(plainCertificate().certificate, 'no_evidence');
  await refused([], 'no_certificate');
  await refused('', 'malformed_certificate');
  await refused('-----BEGIN CERTIFICATE-----\n!', 'configuration');
  await refused(plainCertificate().key, 'no_certificate');
});

/** The public key of a certificate, in DER. */
function spki(certificateDer) {
  return x509(certificateDer).publicKey.export({ type: 'spki', format: 'der' });
}

test('a certificate of another key is refused', async () => {
  const chain = certificate.match(/-----BEGIN[^]*?-----END CERTIFICATE-----\n?/g);
  const tampered = Buffer.from(new X509Certificate(chain[0]).raw);
  const own = spki(tampered);
  const other = generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey.export({ type: 'spki', format: 'der' });
  assert.equal(own.length, other.length);
  other.copy(tampered, tampered.indexOf(own));
  const rest = chain.slice(1).map((pem) => new X509Certificate(pem).raw);
  const error = await teesql.verifyCertificate([tampered, ...rest], { env: true }).catch((reason) => reason);
  assert(error instanceof TeesqlError, String(error));
  assert.equal(error.code, 'unbound_key');
});

test('extractTdxQuote and readQuote', () => {
  const quote = teesql.extractTdxQuote(der);
  const claims = teesql.readQuote(quote);
  assert.match(claims.mrtd, /^[0-9a-f]{96}$/);
  assert.equal(claims.tcbStatus, null);
  assert.equal(claims.appId, null);
  assert.equal(teesql.extractTdxQuote(Buffer.from('no certificate')), null);
  assert.equal(teesql.extractTdxQuote(new Uint8Array(0)), null);
  assert.throws(() => teesql.extractTdxQuote(certificate), { code: 'ERR_INVALID_ARG_TYPE' });
  assert.throws(() => teesql.readQuote(Buffer.from('no quote')), { name: 'TeesqlError', kind: 'refused' });
  for (let i = 0; i < 50; i += 1) {
    assert.equal(teesql.extractTdxQuote(randomBytes(i * 40)), null);
    assert.throws(() => teesql.readQuote(randomBytes(i * 40)), { name: 'TeesqlError' });
  }
});

test('requestClientCertificate', async () => {
  const { chainPem, keyPem } = await teesql.requestClientCertificate({ guestAgent });
  assert(new X509Certificate(chainPem).raw.length > 1000);
  assert.match(keyPem, /PRIVATE KEY/);
  const none = teesql.requestClientCertificate({ guestAgent: '/nonexistent', timeout: 300 });
  await assert.rejects(none, { name: 'TeesqlError', kind: 'identity' });
});

test('parseManifest', (t) => {
  const { sign, address } = signer(t);
  const validUntil = Math.floor(Date.now() / 1000) + 600;
  const text = sign(7, validUntil);
  const manifest = teesql.parseManifest(text, address);
  assert.deepEqual(manifest, {
    cluster: CLUSTER,
    leaderInstance: 'ab'.repeat(20),
    leaderUrl: 'https://leader.example:8443',
    host: manifest.host,
    port: 8443,
    epoch: 7n,
    validUntil: new Date(validUntil * 1000),
    canonicalBody: text.slice(0, text.indexOf(';sig=')),
  });
  assert.match(manifest.host, /leader\.example/);
  const bytes = Buffer.from(address.slice(2), 'hex');
  assert.equal(teesql.parseManifest(text, bytes).epoch, 7n);
  const refused = (code) => ({ name: 'TeesqlError', kind: 'manifest', code });
  assert.throws(() => teesql.parseManifest(text, Buffer.alloc(20)), refused('manifest_signature'));
  assert.throws(() => teesql.parseManifest(text, address, { now: new Date((validUntil + 1) * 1000) }), refused('manifest_expired'));
  assert.throws(() => teesql.parseManifest('nonsense', address), { name: 'TeesqlError', kind: 'manifest' });
  assert.throws(() => teesql.parseManifest(text, '0x12'), { code: 'ERR_OUT_OF_RANGE' });
  assert.throws(() => teesql.parseManifest(5, address), { code: 'ERR_INVALID_ARG_TYPE' });
});

test('resolveLeader', async (t) => {
  const { sign, address } = signer(t);
  let records = [sign(3), sign(9), 'another record', sign(5)];
  const dnsServer = await nameServer(t, () => records);
  const manifest = await teesql.resolveLeader('cluster.example', address, { dnsServer });
  assert.equal(manifest.epoch, 9n);
  const resolve = (options) => teesql.resolveLeader('cluster.example', address, { dnsServer, ...options });
  await assert.rejects(resolve({ cluster: `0x${'d2'.repeat(20)}` }), { name: 'TeesqlError', kind: 'manifest' });
  records = [];
  await assert.rejects(resolve(), { name: 'TeesqlError', code: 'no_manifest' });
  const silent = await silentNameServer(t);
  await assert.rejects(resolve({ dnsServer: silent, timeout: 500 }), { name: 'TeesqlError', kind: 'timeout', code: 'dns_failed' });
  await assert.rejects(resolve({ dnsServer: 'ns.example' }), /IP address/);
});
