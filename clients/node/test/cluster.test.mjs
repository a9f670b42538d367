// A cluster whose leader changes: an application goes on with the forwarder and the pool that it has.
import assert from 'node:assert/strict';
import { connect } from 'node:net';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import pg from 'pg';
import { forward, reasonCodes, verifyServer } from 'teesql';

import { host, listen, port, until, url } from './helpers.mjs';
import { nameServer, signer } from './nameserver.mjs';

const { claims } = await verifyServer(host, Number(port), { env: true });

/** A leader: a TCP proxy to the server, which `lose` closes. */
async function leader(t) {
  const sockets = new Set();
  const { server, port: at } = await listen(t, (socket) => {
    const upstream = connect(Number(port), host);
    for (const [one, other] of [[socket, upstream], [upstream, socket]]) {
      sockets.add(one);
      one.on('error', () => {}).on('close', () => other.destroy());
      one.pipe(other);
    }
  });
  const lose = () => {
    server.close();
    for (const socket of sockets) socket.destroy();
  };
  return { url: `https://127.0.0.1:${at}`, lose, connections: () => sockets.size };
}

test('an application goes on when the leader is lost and another one is published', async (t) => {
  const { sign, address } = signer(t, { leaderInstance: claims.instanceId });
  const [first, second] = [await leader(t), await leader(t)];
  let record = sign(1, undefined, first.url);
  const dnsServer = await nameServer(t, () => [record]);
  const forwarder = await forward(url, {
    env: true,
    cluster: { domain: 'cluster.example', signer: address },
    settings: { dns_server: dnsServer },
  });
  t.after(() => forwarder.close());
  const pool = new pg.Pool({ connectionString: forwarder.dsn, max: 4 });
  t.after(() => pool.end());
  pool.on('error', () => {});

  const counts = { answered: 0, failed: 0 };
  let isStopped = false;
  const work = async () => {
    while (!isStopped) {
      try {
        await pool.query('select pg_sleep(0.01)');
        counts.answered += 1;
      } catch {
        counts.failed += 1;
        await sleep(20);
      }
    }
  };
  const working = Promise.all([work(), work(), work()]);
  await until(() => counts.answered > 10, 'work with the first leader');
  assert(first.connections() > 0);

  first.lose();
  await until(() => counts.failed > 5, 'without a leader');
  assert(reasonCodes.includes(forwarder.lastFailure.code), forwarder.lastFailure.code);
  assert.equal(forwarder.lastFailure.kind, 'network');

  record = sign(2, undefined, second.url);
  counts.answered = 0;
  await until(() => counts.answered > 10, 'work with the second leader', 20_000);
  assert(second.connections() > 0);
  isStopped = true;
  await working;
});

test('a leader that proves to be another instance than the published one', async (t) => {
  const { sign, address } = signer(t);
  const dnsServer = await nameServer(t, () => [sign(1, undefined, `https://${host}:${port}`)]);
  const cluster = { domain: 'cluster.example', signer: Buffer.from(address.slice(2), 'hex') };
  const forwarder = await forward(url, { env: true, cluster, settings: { dns_server: dnsServer } });
  t.after(() => forwarder.close());
  const client = new pg.Client({ connectionString: forwarder.dsn });
  await assert.rejects(client.connect(), /the leader manifest names instance/);
  const { code, kind } = forwarder.lastFailure;
  assert.deepEqual({ code, kind }, { code: 'leader_mismatch', kind: 'refused' });
});
