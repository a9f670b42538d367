// Each driver and ORM through a forwarder, by its own client.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';

import { PrismaPg } from '@prisma/adapter-pg';
import { sql } from 'drizzle-orm';
import { drizzle as drizzleOverPg } from 'drizzle-orm/node-postgres';
import { drizzle as drizzleOverPostgres } from 'drizzle-orm/postgres-js';
import knex from 'knex';
import pg from 'pg';
import postgres from 'postgres';
import { forward, Forwarder } from 'teesql';

import { PrismaClient } from '../generated/client.js';
import { currentUser, until, url } from './helpers.mjs';

let forwarder;
before(async () => {
  forwarder = await forward(url, { env: true });
});
after(() => forwarder.close());

test('a forwarder says where it is', () => {
  assert(forwarder instanceof Forwarder);
  assert.equal(forwarder.host, '127.0.0.1');
  assert(forwarder.port > 0);
  const dsn = new URL(forwarder.dsn);
  const given = new URL(url);
  assert.equal(dsn.port, String(forwarder.port));
  assert.equal(dsn.username, given.username);
  assert.equal(dsn.password, given.password);
  assert.equal(dsn.pathname, given.pathname);
  assert.equal(dsn.searchParams.get('sslmode'), 'disable');
  assert.equal(forwarder.closed, false);
  assert.equal(forwarder.lastFailure, null);
});

test('node-postgres', async () => {
  assert.equal(await currentUser(forwarder.dsn), 'teesql_readwrite');
});

test('postgres.js', async () => {
  const db = postgres(forwarder.dsn, { max: 3 });
  const [{ user }] = await db`select current_user as user`;
  await db.end();
  assert.equal(user, 'teesql_readwrite');
});

test('Prisma, with its driver adapter', async () => {
  const prisma = new PrismaClient({ adapter: new PrismaPg({ connectionString: forwarder.dsn }) });
  await prisma.$executeRaw`create table if not exists greeting (id int primary key, words text not null)`;
  await prisma.greeting.deleteMany();
  await prisma.greeting.create({ data: { id: 1, words: 'hello' } });
  await prisma.$transaction([
    prisma.greeting.create({ data: { id: 2, words: 'through' } }),
    prisma.greeting.update({ where: { id: 1 }, data: { words: 'Hello' } }),
  ]);
  const found = await prisma.greeting.findMany({ orderBy: { id: 'asc' } });
  await prisma.$disconnect();
  assert.deepEqual(found, [{ id: 1, words: 'Hello' }, { id: 2, words: 'through' }]);
});

test('Drizzle over node-postgres and over postgres.js', async () => {
  const overPg = drizzleOverPg(forwarder.dsn);
  const { rows } = await overPg.execute(sql`select current_user as user`);
  await overPg.$client.end();
  assert.equal(rows[0].user, 'teesql_readwrite');
  const overPostgres = drizzleOverPostgres(forwarder.dsn);
  const [{ user }] = await overPostgres.execute(sql`select current_user as user`);
  await overPostgres.$client.end();
  assert.equal(user, 'teesql_readwrite');
});

test('Knex', async () => {
  const db = knex({ client: 'pg', connection: forwarder.dsn });
  const { rows } = await db.raw('select current_user as user');
  await db.destroy();
  assert.equal(rows[0].user, 'teesql_readwrite');
});

test('another role, by another connection URL', async () => {
  const read = `postgresql://teesql_read:${process.env.TEESQL_DEV_READ_SECRET}@anywhere:1/postgres`;
  assert.equal(await currentUser(forwarder.rewrite(read)), 'teesql_read');
});

test('a statement is cancelled', async () => {
  const db = postgres(forwarder.dsn, { max: 2 });
  const sleeping = db`select pg_sleep(60)`.execute();
  const ended = assert.rejects(sleeping, { code: '57014' });
  const isActive = () => db`select from pg_stat_activity where state = 'active' and query = 'select pg_sleep(60)'`;
  await until(async () => (await isActive()).length > 0, 'the statement is executed');
  sleeping.cancel();
  await ended;
  await db.end();
});

test('100 connections at the same time', async () => {
  const pool = new pg.Pool({ connectionString: forwarder.dsn, max: 100 });
  // The server may allow fewer.
  const limit = (await pool.query("select rolconnlimit from pg_roles where rolname = 'teesql_readwrite'")).rows[0].rolconnlimit;
  const count = limit < 0 ? 100 : Math.min(100, limit - 5);
  const clients = await Promise.all(Array.from({ length: count }, () => pool.connect()));
  const pids = await Promise.all(clients.map(async (client) => (await client.query('select pg_backend_pid() as pid')).rows[0].pid));
  for (const client of clients) client.release();
  await pool.end();
  assert.equal(new Set(pids).size, count);
});

test('CommonJS has the same objects', async () => {
  const require = createRequire(import.meta.url);
  const commonjs = require('teesql');
  const modules = await import('teesql');
  assert.deepEqual(Object.keys(commonjs).sort(), Object.keys(modules).filter((name) => name !== 'default').sort());
  for (const [name, value] of Object.entries(commonjs)) assert.equal(value, modules[name], name);
  const prismaCommonjs = require('teesql/prisma');
  const prismaModules = await import('teesql/prisma');
  for (const [name, value] of Object.entries(prismaCommonjs)) assert.equal(value, prismaModules[name], name);
});
