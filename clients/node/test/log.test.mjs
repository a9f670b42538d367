// Where the log goes.
import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';

import { forward, setLogger } from 'teesql';

import { certificate, currentUser, key, run, until, url } from './helpers.mjs';

afterEach(() => setLogger(undefined));

const identity = { certificate, key };

/** Starts a forwarder whose connections are refused, and lets one be refused. */
async function provoke() {
  const forwarder = await forward(url, { env: true, identity, policy: { mrtd: 'ab'.repeat(48) } });
  await assert.rejects(currentUser(forwarder.dsn));
  await forwarder.close();
}

test('a logger with all levels', async () => {
  const lines = [];
  const method = (level) => (text) => lines.push([level, text]);
  setLogger({ error: method('error'), warn: method('warn'), info: method('info'), debug: method('debug') });
  await provoke();
  const refusal = await until(() => lines.find(([, text]) => text.includes('mrtd_not_allowed')), 'the refusal');
  assert.equal(refusal[0], 'warn');
  assert(lines.some(([level]) => level === 'info'), 'other levels');
  const { password } = new URL(url);
  assert(lines.every(([, text]) => !text.includes(password)), 'no secret');
});

test('a logger with one level', async () => {
  const lines = [];
  const logger = { prefix: 'own: ', error(text) { lines.push(this.prefix + text); } };
  setLogger(logger);
  await provoke();
  assert.deepEqual(lines, []);
  logger.warn = logger.error;
  setLogger(logger);
  await provoke();
  await until(() => lines.length > 0, 'a warning');
  assert.match(lines[0], /^own: /);
});

test('no logger, a logger that fails, and none at all', async (t) => {
  const warnings = [];
  const note = (warning) => warnings.push(warning);
  process.on('warning', note);
  t.after(() => process.off('warning', note));
  setLogger(null);
  await provoke();
  assert.deepEqual(warnings, []);
  setLogger({ warn() { throw new Error('the disk is full'); } });
  await provoke();
  await until(() => warnings.some(({ message }) => message === 'the logger of teesql failed: the disk is full'), 'a warning');
  for (const wrong of ['console', 5, true]) assert.throws(() => setLogger(wrong), { code: 'ERR_INVALID_ARG_TYPE' });
});

test('without a logger each warning is one of Node, once', async (t) => {
  const text = `
    import { forward } from 'teesql';
    for (let i = 0; i < 3; i += 1) await (await forward(process.env.DATABASE_URL, { env: true })).close();
    await new Promise((resolve) => setTimeout(resolve, 100));`;
  const ended = await run(t, text);
  assert.equal(ended.code, 0, ended.stderr);
  assert.equal(ended.stderr.split('TeesqlWarning: any MRTD is accepted').length, 2, ended.stderr);
  const quiet = await run(t, text, { args: ['--disable-warning=TeesqlWarning'] });
  assert.deepEqual([quiet.code, quiet.stderr], [0, '']);
  const verbose = await run(t, text, { env: { NODE_DEBUG: 'teesql' } });
  assert.match(verbose.stderr, /TEESQL \d+: /);
});

test('the level is that of the next thread when the first one has ended', async (t) => {
  const text = `
    import { Worker } from 'node:worker_threads';
    import { forward, setLogger } from 'teesql';
    const lines = [];
    setLogger({ warn: (text) => lines.push(text) });
    const worker = new Worker("require('teesql').setLogger({ error() {} })", { eval: true });
    await new Promise((resolve, reject) => worker.on('exit', resolve).on('error', reject));
    await (await forward(process.env.DATABASE_URL, { env: true })).close();
    while (!lines.some((line) => line.startsWith('any MRTD is accepted'))) await new Promise((resolve) => setTimeout(resolve, 10));
    console.log('warned');`;
  const ended = await run(t, text, { timeout: 20_000 });
  assert.deepEqual([ended.code, ended.stdout, ended.stderr], [0, 'warned\n', '']);
});
