// An application that writes about 20 rows a second and survives failovers, run by `scripts/cluster --applications`.
//
// It prints the number and the time of each acknowledged write. Its argument is a path: when a file exists there, it closes its
// pool. The forwarder stays open, and must not keep the process from exiting.
import { existsSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

import pg from 'pg';
import { forward } from 'teesql';

const { TEESQL_DEV_SIDECARS: hosts, TEESQL_DEV_READWRITE_SECRET: secret, TEESQL_DEV_GUEST_AGENT: guestAgent } = process.env;
const [, , stop] = process.argv;

const forwarder = await forward(`postgresql://teesql_readwrite:${secret}@${hosts}/postgres`, {
  env: true,
  identity: { guestAgent },
});
const pool = new pg.Pool({ connectionString: forwarder.dsn, max: 2, connectionTimeoutMillis: 40_000 });
// An idle connection has failed. Without this handler the process would exit; the pool opens another connection.
pool.on('error', (error) => console.error('idle:', error.message));

for (let number = 1; !existsSync(stop); number += 1) {
  try {
    await pool.query('INSERT INTO written_node VALUES ($1)', [number]);
    console.log(number, (Date.now() / 1000).toFixed(3));
  } catch (error) {
    console.error(`${(Date.now() / 1000).toFixed(1)} ${number}: ${error.message}`);
  }
  await sleep(50);
}
await pool.end();
