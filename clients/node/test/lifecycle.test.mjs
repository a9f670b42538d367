// What a forwarder leaves behind, which is nothing: after it was closed, after its process, and after its worker thread.
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { test } from 'node:test';
import { inspect } from 'node:util';
import { Worker } from 'node:worker_threads';

import { forward, TeesqlError } from 'teesql';

import { certificate, currentUser, descriptors, foreignThreads, key, run, temporaryFolder, until, url } from './helpers.mjs';

const identity = { certificate, key };

test('a closed forwarder leaves no thread and no descriptor', async () => {
  // The first one loads what stays, such as trusted roots.
  await (await forward(url, { env: true, identity })).close();
  await until(() => foreignThreads().length === 0, 'no threads');
  const before = descriptors();
  const forwarder = await forward(url, { env: true, identity });
  assert.equal(await currentUser(forwarder.dsn), 'teesql_readwrite');
  assert(foreignThreads().length > 0);
  await forwarder.close();
  await until(() => foreignThreads().length === 0, `no threads: ${foreignThreads()}`);
  await until(() => descriptors() <= before, 'no descriptors');
});

test('after close', async () => {
  const forwarder = await forward(url, { env: true, identity });
  const { dsn, port } = forwarder;
  assert.equal(inspect(forwarder), `Forwarder { 127.0.0.1:${port} }`);
  const closing = forwarder.close();
  assert.equal(forwarder.close(), closing, 'a second call waits for the same');
  await closing;
  assert.equal(forwarder.closed, true);
  assert.equal(inspect(forwarder), 'Forwarder { closed }');
  const stopped = { name: 'TeesqlError', kind: 'stopped' };
  assert.throws(() => forwarder.dsn, stopped);
  assert.throws(() => forwarder.host, stopped);
  assert.throws(() => forwarder.rewrite(url), stopped);
  assert.equal(forwarder.lastFailure, null);
  forwarder.terminate();
  await forwarder[Symbol.asyncDispose]();
  await assert.rejects(currentUser(dsn), { code: 'ECONNREFUSED' });
});

test('sessions may finish until the drain timeout', async () => {
  const forwarder = await forward(url, { env: true, identity, drainTimeout: 20_000 });
  const { default: postgres } = await import('postgres');
  const db = postgres(forwarder.dsn, { max: 1 });
  const query = db`select pg_sleep(0.7), 1 as one`.then((rows) => rows[0].one);
  await until(async () => (await currentUser(forwarder.dsn)) && true, 'connected');
  const closing = forwarder.close();
  assert.equal(await query, 1);
  await db.end();
  await closing;
});

test('terminate ends the sessions that close waits for', async () => {
  const forwarder = await forward(url, { env: true, identity, drainTimeout: 60_000 });
  const { default: pg } = await import('pg');
  const client = new pg.Client({ connectionString: forwarder.dsn });
  const ended = new Promise((resolve) => client.on('error', resolve));
  await client.connect();
  const closing = forwarder.close();
  forwarder.terminate();
  await closing;
  assert.equal((await ended).code, '57P01');
});

test('1,000 forwarders', async () => {
  const forwarders = await Promise.all(Array.from({ length: 1000 }, () => forward(url, { env: true, identity })));
  assert.equal(new Set(forwarders.map(({ port }) => port)).size, 1000);
  const threads = foreignThreads().length;
  assert(threads < 32, `${threads} threads`);
  assert.equal(await currentUser(forwarders[500].dsn), 'teesql_readwrite');
  await Promise.all(forwarders.map((forwarder) => forwarder.close()));
  await until(() => foreignThreads().length === 0, 'no threads');
});

test('starting and closing at the same time, many times', async () => {
  await Promise.all(
    Array.from({ length: 8 }, async () => {
      for (let i = 0; i < 10; i += 1) await (await forward(url, { env: true, identity })).close();
    }),
  );
  await until(() => foreignThreads().length === 0, 'no threads');
});

/** A session through a forwarder that listens on a Unix socket. */
const PROGRAM = `
import { dirname } from 'node:path';
import pg from 'pg';
import { forward } from 'teesql';
const settings = { forward_listen: dirname(process.argv[1]) };
const forwarder = await forward(process.env.DATABASE_URL, { env: true, settings });
const { username: user, password } = new URL(process.env.DATABASE_URL);
const { host, port } = forwarder;
const client = new pg.Client({ host, port, user, password, database: 'postgres' });
client.on('error', () => {});
await client.connect();
console.log(forwarder.host);
`;

const ends = {
  'at the end of its work': ['await client.end();', 0],
  'by process.exit': ['process.exit(3);', 3],
  'by process.exit in a callback': ["client.query('select pg_sleep(60)').catch(() => {}); setTimeout(() => process.exit(4), 100);", 4],
  'by an uncaught exception': ["setTimeout(() => { throw new Error('a bug'); }, 50);", 1],
};
for (const [name, [text, code]] of Object.entries(ends)) {
  test(`a process that ends ${name}, with an open forwarder`, async (t) => {
    const ended = await run(t, PROGRAM + text, { timeout: 20_000 });
    assert.equal(ended.signal, null, ended.stderr);
    assert.equal(ended.code, code, ended.stderr);
    const folder = ended.stdout.trim();
    assert(existsSync(folder), ended.stderr);
    assert(!existsSync(`${folder}/.s.PGSQL.5432`), 'the socket is removed');
  });
}

test('a process that ends by SIGTERM, with an open session', async (t) => {
  const ended = await run(t, `${PROGRAM}setInterval(() => {}, 1000);`, {
    inspect: async (child, stdout) => {
      await until(stdout, 'connected', 30_000);
      child.kill('SIGTERM');
    },
  });
  assert.equal(ended.signal, 'SIGTERM', 'no handler was installed');
});

test('a process does not wait for a verifier or a forwarder without connections', async (t) => {
  const text = `
    import { forward } from 'teesql';
    await forward(process.env.DATABASE_URL, { env: true, verifier: () => true });
    console.log('started');`;
  const ended = await run(t, text, { timeout: 20_000 });
  assert.deepEqual([ended.code, ended.stdout], [0, 'started\n'], ended.stderr);
});

test('a forwarder survives the garbage collection of its object', async (t) => {
  const text = `
    import pg from 'pg';
    import { forward } from 'teesql';
    const { dsn } = await forward(process.env.DATABASE_URL, { env: true });
    for (let i = 0; i < 5; i += 1) { gc(); await new Promise((resolve) => setTimeout(resolve, 20)); }
    const client = new pg.Client({ connectionString: dsn });
    await client.connect();
    await client.end();
    console.log('connected');`;
  const ended = await run(t, text, { args: ['--expose-gc'], timeout: 30_000 });
  assert.deepEqual([ended.code, ended.stdout], [0, 'connected\n'], ended.stderr);
});

const WORKER = `
const { parentPort, workerData } = require('node:worker_threads');
(async () => {
  const { forward } = require('teesql');
  const { Client } = require('pg');
  const forwarder = await forward(process.env.DATABASE_URL, { env: true, verifier: async () => true });
  const client = new Client({ connectionString: forwarder.dsn });
  client.on('error', () => {});
  await client.connect();
  parentPort.postMessage({ dsn: forwarder.dsn });
  if (workerData.stays) setInterval(() => {}, 1000); else await client.end();
})();
`;

/** A worker with an open forwarder, until it has connected. */
async function startWorker(t, workerData) {
  const { writeFileSync } = await import('node:fs');
  const file = `${temporaryFolder(t)}/worker.cjs`;
  writeFileSync(file, WORKER);
  const worker = new Worker(file, { workerData });
  const exited = new Promise((resolve, reject) => worker.on('exit', resolve).on('error', reject));
  const { dsn } = await new Promise((resolve, reject) => worker.on('message', resolve).on('error', reject));
  return { worker, exited, dsn };
}

test('a worker thread that ends leaves nothing behind', async (t) => {
  const { exited, dsn } = await startWorker(t, { stays: false });
  assert.equal(await exited, 0);
  await assert.rejects(currentUser(dsn), { code: 'ECONNREFUSED' });
  await until(() => foreignThreads().length === 0, 'no threads');
});

test('a worker thread that is terminated, with an open session, leaves nothing behind', async (t) => {
  const { worker, dsn } = await startWorker(t, { stays: true });
  const other = await forward(url, { env: true, identity });
  await worker.terminate();
  await assert.rejects(currentUser(dsn), { code: 'ECONNREFUSED' });
  assert.equal(await currentUser(other.dsn), 'teesql_readwrite');
  await other.close();
  await until(() => foreignThreads().length === 0, 'no threads');
});

test('several worker threads at the same time', async (t) => {
  const workers = await Promise.all([1, 2, 3, 4].map(() => startWorker(t, { stays: true })));
  await Promise.all(workers.map(({ dsn }) => currentUser(dsn)));
  await Promise.all(workers.map(({ worker }) => worker.terminate()));
  await until(() => foreignThreads().length === 0, 'no threads');
});

test('the package loaded in a worker thread only', async (t) => {
  const text = `
    import { Worker } from 'node:worker_threads';
    for (let i = 0; i < 3; i += 1) {
      const worker = new Worker(${JSON.stringify(WORKER)}, { eval: true, workerData: { stays: i === 1 } });
      await new Promise((resolve, reject) => worker.on('message', resolve).on('error', reject));
      await worker.terminate();
    }
    console.log('ended');`;
  const ended = await run(t, text, { timeout: 60_000 });
  assert.deepEqual([ended.code, ended.signal, ended.stdout], [0, null, 'ended\n'], ended.stderr);
});

test('a child process starts its own forwarders', async (t) => {
  const forwarder = await forward(url, { env: true, identity });
  const ended = await run(t, `${PROGRAM}await client.end(); await forwarder.close();`);
  assert.equal(ended.code, 0, ended.stderr);
  assert.equal(await currentUser(forwarder.dsn), 'teesql_readwrite');
  await forwarder.close();
});

test('errors are printed with their parts, and without secrets', async () => {
  const error = await forward('postgresql://u:topsecret@h/d?no_such=1', { env: true }).catch((reason) => reason);
  assert(error instanceof TeesqlError);
  const text = inspect(error, { depth: 5 });
  assert.match(text, /TeesqlError: /);
  assert.match(text, /kind: 'configuration'/);
  assert(!text.includes('topsecret'), text);
});
