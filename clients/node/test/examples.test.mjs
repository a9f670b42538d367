// The examples run.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { port, run, serverWithoutEvidence, until } from './helpers.mjs';

test('service.mjs', async (t) => {
  const program = readFileSync('examples/service.mjs', 'utf8');
  const ended = await run(t, program, {
    env: { PORT: '0' },
    inspect: async (child, stdout) => {
      const base = (await until(() => /http:.*\n/.exec(stdout())?.[0], 'listening', 30_000)).trim();
      const text = async (path) => (await fetch(base + path, { headers: { connection: 'close' } })).text();
      assert.equal(await text('/greeting'), 'hello, teesql_readwrite');
      assert.equal(await text('/ready'), 'ready');
      assert.equal(await text('/nothing'), 'not found');
      child.kill('SIGTERM');
    },
  });
  assert.deepEqual([ended.code, ended.signal], [0, null], ended.stderr);
});

test('service.mjs, with a mistake in its settings', async (t) => {
  const program = readFileSync('examples/service.mjs', 'utf8');
  const ended = await run(t, program, { env: { TEESQL_ALLOWED_MRTD: 'zz' } });
  assert.equal(ended.code, 78, ended.stderr);
  assert.match(ended.stderr, /allowed_mrtd/i);
});

test('verify-server.mjs', async (t) => {
  const program = readFileSync('examples/verify-server.mjs', 'utf8');
  const verify = (at, env) => run(t, program, { arguments: ['127.0.0.1', String(at)], env });
  const accepted = await verify(port);
  assert.equal(accepted.code, 0, accepted.stderr);
  assert.equal(JSON.parse(accepted.stdout).appId, process.env.TEESQL_ALLOWED_APP_ID);
  const refused = await verify(await serverWithoutEvidence(t));
  assert.deepEqual([refused.code, refused.stdout], [1, '']);
  assert.match(refused.stderr, /^no_evidence: /);
  assert.equal((await verify(1)).code, 75);
});
