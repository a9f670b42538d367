// The package from CommonJS.
const assert = require('node:assert/strict');
const { test } = require('node:test');

const { Client } = require('pg');
const { forward } = require('teesql');

test('require', async () => {
  const forwarder = await forward(process.env.DATABASE_URL, { env: true });
  const client = new Client(forwarder.dsn);
  await client.connect();
  const { rows } = await client.query('select current_user');
  await client.end();
  await forwarder.close();
  assert.equal(rows[0].current_user, 'teesql_readwrite');
});
