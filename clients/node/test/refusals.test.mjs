// What is refused: servers, policies, verifiers, arguments. Each is a typed error.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pathToFileURL } from 'node:url';

import { PrismaPg } from '@prisma/adapter-pg';
import { ConnectionFailure, forward, reasonCodes, Refusal, TeesqlError } from 'teesql';

import { PrismaClient } from '../generated/client.js';
import { certificate, currentUser, guestAgent, host, key, libpq, listen, port, serverWithoutEvidence, simulator, url } from './helpers.mjs';
import { API_KEY, trustAuthority } from './trust-authority.mjs';

const WRONG_MRTD = 'ab'.repeat(48);

/** A forwarder for one test. */
async function open(t, options = {}, to = url) {
  const forwarder = await forward(to, { env: true, drainTimeout: 200, ...options });
  t.after(() => forwarder.close());
  return forwarder;
}

/** The forwarder's failure behind an error of node-postgres, which must say the same. */
async function refused(forwarder) {
  let failed;
  await assert.rejects(currentUser(forwarder.dsn), (error) => {
    failed = error;
    return true;
  });
  const failure = forwarder.lastFailure;
  assert(failure instanceof ConnectionFailure && failure instanceof TeesqlError && failure instanceof Error);
  assert.equal(failed.code, failure.sqlstate);
  assert(failed.message.includes(failure.message), `${failed.message} / ${failure.message}`);
  assert(reasonCodes.includes(failure.code), failure.code);
  return failure;
}

test('a server that the policy does not name', async (t) => {
  const forwarder = await open(t, { policy: { mrtd: WRONG_MRTD } });
  const before = Date.now();
  const failure = await refused(forwarder);
  assert.equal(failure.kind, 'refused');
  assert.equal(failure.code, 'mrtd_not_allowed');
  assert.equal(failure.name, 'ConnectionFailure');
  assert.equal(failure.inSession, false);
  assert.match(failure.client, /^127\.0\.0\.1:\d+$/);
  assert(failure.at >= before - 1000 && failure.at <= Date.now() + 1000);
  await refused(forwarder);
  const failures = forwarder.failuresAfter(0);
  assert.deepEqual(failures.map(({ sequence }) => sequence), [1, 2]);
  assert.deepEqual(forwarder.failuresAfter(1).map(({ sequence }) => sequence), [2]);
});

test('the same, for Prisma', async (t) => {
  const forwarder = await open(t, { policy: { mrtd: WRONG_MRTD } });
  const prisma = new PrismaClient({ adapter: new PrismaPg({ connectionString: forwarder.dsn }) });
  await assert.rejects(prisma.$queryRaw`select 1`);
  await prisma.$disconnect();
  assert.equal(forwarder.lastFailure.code, 'mrtd_not_allowed');
});

test('a server without evidence', async (t) => {
  const failure = await refused(await open(t, { target: `127.0.0.1:${await serverWithoutEvidence(t)}` }));
  assert.equal(failure.code, 'no_evidence');
  assert.equal(failure.kind, 'refused');
});

test('an API key of Trust Authority that has expired, and one that has not', async (t) => {
  const authority = await trustAuthority(t);
  const settings = { verifier: 'ita', trust_authority: authority.url };
  const expired = await open(t, { policy: { settings: { ...settings, trust_authority_key: 'ZXhwaXJlZA==' } } });
  const failure = await refused(expired);
  assert.deepEqual([failure.code, failure.kind], ['ita_unauthorized', 'unavailable']);
  const accepted = await open(t, { policy: { settings: { ...settings, trust_authority_key: API_KEY } } });
  assert.equal(await currentUser(accepted.dsn), 'teesql_readwrite');
  await assert.rejects(forward(url, { env: true, policy: { settings } }), { kind: 'configuration' });
});

test('a server that is not there', async (t) => {
  const failure = await refused(await open(t, { target: '127.0.0.1:1' }));
  assert.equal(failure.code, 'server_unreachable');
  assert.equal(failure.kind, 'network');
});

test('a wrong secret is no failure of the forwarder', async (t) => {
  const forwarder = await open(t);
  const dsn = new URL(forwarder.dsn);
  dsn.password = 'ab'.repeat(32);
  await assert.rejects(currentUser(dsn.href), { code: '28P01' });
});

test('a policy that does not say which application the server is', async () => {
  const starting = forward(url, { identity: { guestAgent }, policy: {} });
  await assert.rejects(starting, (error) => {
    assert(error instanceof TeesqlError);
    assert.equal(error.kind, 'configuration');
    assert(reasonCodes.includes(error.code), error.code);
    assert(error.messages.length > 0);
    return true;
  });
});

test('all mistakes of a configuration together', async () => {
  const starting = forward(url, { env: true, policy: { mrtd: 'zz', appId: '1' }, settings: { pccs: 'no such' } });
  await assert.rejects(starting, (error) => {
    assert.equal(error.kind, 'configuration');
    assert(error.messages.length >= 3, error.messages.join('\n'));
    return true;
  });
});

test('connection URLs of every spelling', async () => {
  const wrong = [
    '', 'x', 'postgres', 'mysql://a@b/c', 'host=127.0.0.1 dbname=x', 'postgresql://', 'postgresql://u:p@h:99999/d',
    'postgresql://u:p@h/d?service=x', 'postgresql://u:p@h/d?unknown_parameter=1', 'postgresql://u:%zz@h/d', 'postgresql://[::1/d',
  ];
  for (const text of wrong) {
    await assert.rejects(forward(text, { env: true }), { name: 'TeesqlError', kind: 'configuration' }, JSON.stringify(text));
  }
  const { password } = new URL(url);
  const right = [
    url.replace('postgresql://', 'postgres://'),
    `postgresql:///postgres?host=${host}&port=${port}&user=teesql_readwrite&password=${password}`,
    new URL(url),
    `${url}?application_name=a%20b&sslmode=verify-full`,
  ];
  for (const text of right) {
    const forwarder = await forward(text, { env: true });
    assert.equal(await currentUser(forwarder.dsn), 'teesql_readwrite', String(text));
    await forwarder.close();
  }
});

test('no guest agent', async () => {
  const identity = { guestAgent: '/nonexistent/dstack.sock' };
  const expected = { name: 'TeesqlError', kind: 'identity', code: 'agent_not_found' };
  await assert.rejects(forward(url, { env: true, identity, startTimeout: 500 }), expected);
});

test('a guest agent that does not answer, and an event loop that goes on', async (t) => {
  const path = `${process.cwd()}/silent-agent-${process.pid}.sock`;
  await listen(t, () => {}, { path });
  let ticks = 0;
  const timer = setInterval(() => (ticks += 1), 5);
  const starting = forward(url, { env: true, identity: { guestAgent: path }, startTimeout: 1000 });
  await assert.rejects(starting, { name: 'TeesqlError', kind: 'identity', code: 'agent_timeout' });
  clearInterval(timer);
  assert(ticks > 20, `${ticks} ticks in a second`);
});

test('giving up before it has started', async (t) => {
  const path = `${process.cwd()}/silent-agent-abort-${process.pid}.sock`;
  await listen(t, () => {}, { path });
  const options = { env: true, identity: { guestAgent: path }, startTimeout: 500 };
  await assert.rejects(forward(url, { ...options, signal: AbortSignal.timeout(50) }), { name: 'TimeoutError' });
  await assert.rejects(forward(url, { ...options, signal: AbortSignal.abort() }), { name: 'AbortError' });
});

test('PEM that cannot be used, and PEM that can', async (t) => {
  const unusable = { kind: 'identity', code: 'identity_unusable' };
  // Files are settings.
  const missing = { kind: 'configuration', code: 'configuration' };
  for (const [identity, expected] of [
    [{ certificate: 'x', key: 'y' }, unusable],
    [{ certificate, key: certificate }, unusable],
    [{ certificateFile: '/nonexistent', keyFile: '/nonexistent' }, missing],
  ]) {
    await assert.rejects(forward(url, { env: true, identity }), { name: 'TeesqlError', ...expected });
  }
  for (const identity of [
    { certificate, key },
    { certificate: Buffer.from(certificate), key: new TextEncoder().encode(key) },
    { certificateFile: libpq.PGSSLCERT, keyFile: pathToFileURL(libpq.PGSSLKEY) },
  ]) {
    const forwarder = await open(t, { identity });
    assert.equal(await currentUser(forwarder.dsn), 'teesql_readwrite');
  }
});

test('without a certificate, where the sidecar wants one and where it does not', async (t) => {
  const forwarder = await open(t, { identity: 'none' });
  await assert.rejects(currentUser(forwarder.dsn), /no_certificate/);
  const simulated = await open(t, { identity: 'none' }, `postgresql://postgres@${simulator}/postgres`);
  assert.equal(await currentUser(simulated.dsn), 'postgres');
});

const accepting = {
  'true': () => true,
  'a promise': async () => true,
  'an acceptance': async () => ({}),
  'an object with a method': { expected: true, async verify() { return this.expected; } },
};
for (const [name, verifier] of Object.entries(accepting)) {
  test(`a verifier that accepts: ${name}`, async (t) => {
    const forwarder = await open(t, { verifier });
    assert.equal(await currentUser(forwarder.dsn), 'teesql_readwrite');
  });
}

test('what a verifier sees', async (t) => {
  let seen;
  const verifier = (evidence, context) => {
    seen = { evidence, context };
    return true;
  };
  const forwarder = await open(t, { verifier });
  await currentUser(forwarder.dsn);
  const { claims, quote, chain } = seen.evidence;
  assert.equal(claims.appId, process.env.TEESQL_ALLOWED_APP_ID);
  assert.match(claims.mrtd, /^[0-9a-f]{96}$/);
  assert.equal(claims.rtmr.length, 4);
  assert.equal(claims.tcbStatus, 'UpToDate');
  assert.equal(claims.isDebug, false);
  assert(Buffer.isBuffer(quote) && quote.length > 1000);
  assert(chain.length >= 1 && chain.every(Buffer.isBuffer));
  assert(seen.context.signal instanceof AbortSignal);
});

const refusing = {
  'false': [() => false, 'verifier_refused', 'refused'],
  'a Refusal': [() => { throw new Refusal('not on our list'); }, 'verifier_refused', 'refused', /not on our list/],
  'a promise of a Refusal': [async () => { throw new Refusal('not\non our list'); }, 'verifier_refused', 'refused', /not\\non our list/],
  'an exception': [() => { throw new Error('the database is down'); }, 'verifier_failed', 'unavailable', /the database is down/],
  'a rejection with a text': [() => Promise.reject('a text'), 'verifier_failed', 'unavailable', /a text/],
  'a rejection with a value that has no text': [() => Promise.reject(Object.create(null)), 'verifier_failed', 'unavailable'],
  'nothing': [() => {}, 'verifier_failed', 'unavailable', /undefined/],
  'a number': [() => 1, 'verifier_failed', 'unavailable'],
  'null': [() => null, 'verifier_failed', 'unavailable'],
  'an object that is no acceptance': [() => ({ accepted: true }), 'verifier_failed', 'unavailable'],
  'a thenable that throws': [() => ({ then() { throw new Error('no'); } }), 'verifier_failed', 'unavailable'],
  // The promise can be collected as garbage before the deadline, and the question with it: nobody can answer it any more.
  'never an answer': [() => new Promise(() => {}), ['verifier_timeout', 'verifier_failed'], ['timeout', 'unavailable']],
};
for (const [name, [verifier, codes, kinds, text]] of Object.entries(refusing)) {
  test(`a verifier that does not accept: ${name}`, async (t) => {
    const failure = await refused(await open(t, { verifier, verifierTimeout: 500 }));
    assert([codes].flat().includes(failure.code), failure.code);
    assert([kinds].flat().includes(failure.kind), failure.kind);
    if (text) assert.match(failure.message, text);
  });
}

test('the signal of a verifier that is too slow is aborted', async (t) => {
  let aborted;
  const keep = [];
  const verifier = (_, { signal }) => {
    signal.addEventListener('abort', () => (aborted = signal.reason.name));
    const never = new Promise((resolve) => keep.push(resolve));
    return never;
  };
  const failure = await refused(await open(t, { verifier, verifierTimeout: 300 }));
  assert.equal(failure.code, 'verifier_timeout');
  await new Promise((resolve) => setTimeout(resolve, 100));
  assert.equal(aborted, 'TimeoutError');
});

test('a verifier is asked for each connection', async (t) => {
  let calls = 0;
  const forwarder = await open(t, { verifier: () => (calls += 1) < 3 });
  await currentUser(forwarder.dsn);
  await currentUser(forwarder.dsn);
  assert.equal((await refused(forwarder)).code, 'verifier_refused');
});

test('a verifier does not see a server that the policy refuses', async (t) => {
  let calls = 0;
  const forwarder = await open(t, { policy: { mrtd: WRONG_MRTD }, verifier: () => Boolean((calls += 1)) });
  assert.equal((await refused(forwarder)).code, 'mrtd_not_allowed');
  assert.equal(calls, 0);
});

test('a verifier instead of DCAP', async (t) => {
  // Without collateral, and without the root that the cluster's quotes are signed under.
  const policy = { appId: process.env.TEESQL_ALLOWED_APP_ID, settings: { kms_root: process.env.TEESQL_KMS_ROOT, pccs: 'off' } };
  const identity = { guestAgent };
  const start = async (verifier) => {
    const forwarder = await forward(url, { identity, policy, dangerousVerifierInsteadOfDcap: verifier });
    t.after(() => forwarder.close());
    return forwarder;
  };
  assert.equal(await currentUser((await start(async ({ claims }) => claims.tcbStatus === null)).dsn), 'teesql_readwrite');
  assert.equal((await refused(await start(() => ({ tcbStatus: 'OutOfDate' })))).code, 'tcb_out_of_date');
  assert.equal((await refused(await start(() => ({ tcbStatus: 'Nonsense' })))).code, 'verifier_failed');
  assert.equal((await refused(await start(() => false))).code, 'verifier_refused');
});

test('arguments of the wrong type', async () => {
  const type = { name: 'TypeError', code: 'ERR_INVALID_ARG_TYPE' };
  const value = { name: 'TypeError', code: 'ERR_INVALID_ARG_VALUE' };
  const range = { name: 'RangeError', code: 'ERR_OUT_OF_RANGE' };
  const cases = [
    [1, {}, type],
    [url, null, type],
    [url, [], type],
    [url, { unknown: 1 }, value],
    [url, { env: 'yes' }, type],
    [url, { target: 5 }, type],
    [url, { target: [5] }, type],
    [url, { target: 'a\0b' }, range],
    [url, { cluster: 'domain' }, type],
    [url, { cluster: { domain: 'a', signer: 'b' } }, range],
    [url, { cluster: { domain: 'a', signer: Buffer.alloc(19) } }, range],
    [url, { cluster: { domain: 'a', signer: Buffer.alloc(20), x: 1 } }, value],
    [url, { identity: 'some' }, range],
    [url, { identity: { certificate } }, value],
    [url, { identity: { certificate, key: 5 } }, type],
    [url, { identity: { guestAgent, key } }, value],
    [url, { policy: { mrtds: WRONG_MRTD } }, value],
    [url, { policy: { mrtd: [] } }, range],
    [url, { policy: { mrtd: [undefined] } }, type],
    [url, { policy: { allowSimulator: 'false' } }, type],
    [url, { policy: { settings: { pccs: {} } } }, type],
    [url, { verifier: 'x' }, type],
    [url, { verifier: {} }, type],
    [url, { verifierTimeout: '10s' }, type],
    [url, { connectTimeout: 0 }, range],
    [url, { connectTimeout: NaN }, range],
    [url, { drainTimeout: Infinity }, range],
    [url, { signal: {} }, type],
    [url, { settings: [] }, type],
  ];
  for (const [first, options, expected] of cases) {
    await assert.rejects(forward(first, options), expected, JSON.stringify(options));
  }
  const both = { verifier: () => true, dangerousVerifierInsteadOfDcap: () => true };
  await assert.rejects(forward(url, both), { name: 'TypeError' });
});

test('a driver that is in the middle of connecting when the forwarder is closed', async (t) => {
  const silent = await listen(t);
  const forwarder = await open(t, { target: `127.0.0.1:${silent.port}` });
  const { dsn } = forwarder;
  const connecting = currentUser(dsn);
  connecting.catch(() => {});
  await new Promise((resolve) => setTimeout(resolve, 100));
  const before = Date.now();
  await forwarder.close();
  assert(Date.now() - before < 8_000, `${Date.now() - before} ms`);
  await assert.rejects(connecting);
  await assert.rejects(currentUser(dsn), { code: 'ECONNREFUSED' });
});
