// An application that writes without pause and goes on through failovers, run by `scripts/cluster --applications`.
//
// It prints the number and the time of each acknowledged write. When the file that it is given exists it ends: with an open
// pool and an open forwarder, as an application does.
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
// Of a connection that ended while it was idle. The pool opens another one.
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
