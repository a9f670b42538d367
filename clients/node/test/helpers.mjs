// What several tests use: the cluster's address, children, and waiting for conditions.
import { execFileSync, spawn } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { createServer as createTlsServer } from 'node:tls';

import pg from 'pg';

/** libpq's variables, which a shell has that has sourced the file `env` of `dev`. Programs of the documentation run with them. */
export const libpq = Object.fromEntries(Object.entries(process.env).filter(([name]) => name.startsWith('PG')));
// Other drivers must take everything from the URL.
for (const name of Object.keys(libpq)) delete process.env[name];

export const url = process.env.DATABASE_URL;
export const { hostname: host, port } = new URL(url);
export const certificate = readFileSync(libpq.PGSSLCERT, 'utf8');
export const key = readFileSync(libpq.PGSSLKEY, 'utf8');
export const guestAgent = process.env.TEESQL_GUEST_AGENT;

/** The sidecar in simulator mode. It wants no certificate, and its evidence is genuine. */
export const simulator = `127.0.0.1:${process.env.TEESQL_DEV_SIMULATOR_PORT}`;

/** A certificate in DER as Node's class, which would find PEM inside: the certificates of the quote. */
export function x509(der) {
  const lines = der.toString('base64').match(/.{1,64}/g).join('\n');
  return new X509Certificate(`-----BEGIN CERTIFICATE-----\n${lines}\n-----END CERTIFICATE-----\n`);
}

/** A self-signed certificate without evidence, and its key. */
export function plainCertificate() {
  const request = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', '-', '-days', '2'];
  const pem = execFileSync('openssl', [...request, '-subj', '/CN=localhost'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
  return { certificate: pem.slice(pem.indexOf('-----BEGIN CERTIFICATE')), key: pem.slice(0, pem.indexOf('-----BEGIN CERTIFICATE')) };
}

/** The port of a server that does TLS and presents no evidence. */
export async function serverWithoutEvidence(t) {
  const { certificate: cert, key } = plainCertificate();
  const sockets = new Set();
  const server = createTlsServer({ cert, key, ALPNProtocols: ['postgresql'] }, (socket) => socket.on('error', () => {}));
  server.on('connection', (socket) => sockets.add(socket)).on('tlsClientError', () => {});
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    server.close();
    for (const socket of sockets) socket.destroy();
  });
  return server.address().port;
}

/** The user that a connection to `dsn` gets. */
export async function currentUser(dsn) {
  const client = new pg.Client({ connectionString: dsn });
  await client.connect();
  try {
    return (await client.query('select current_user')).rows[0].current_user;
  } finally {
    await client.end();
  }
}

/** The names of this process's threads that are not Node's. */
export function foreignThreads(process = 'self') {
  const names = readdirSync(`/proc/${process}/task`).map((id) => {
    try {
      return readFileSync(`/proc/${process}/task/${id}/comm`, 'utf8').trim();
    } catch {
      return null; // It has just ended.
    }
  });
  const isNodes = /^(node|V8Worker|DelayedTask|libuv-worker|MainThread|SignalInspect|WorkerThread)/;
  return names.filter((name) => name !== null && !isNodes.test(name)).sort();
}

export const descriptors = () => readdirSync('/proc/self/fd').length;

/** Waits until `condition` holds, for at most `timeout` milliseconds. */
export async function until(condition, what, timeout = 10_000) {
  const deadline = Date.now() + timeout;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`not within ${timeout} ms: ${what}`);
    await sleep(20);
  }
}

/** A TCP server with a handler of sockets, on a free port of 127.0.0.1 or on a path, and its port. */
export async function listen(t, onSocket, at = { port: 0, host: '127.0.0.1' }) {
  const sockets = new Set();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    onSocket?.(socket);
  });
  await new Promise((resolve) => server.listen(at, resolve));
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return { server, port: server.address()?.port };
}

/** A folder for one test, in which packages are found. */
export function temporaryFolder(t) {
  const folder = mkdtempSync(`${process.cwd()}/tmp-`);
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Runs a program's text to its end: exit code, signal, and what it has printed. */
export async function run(t, text, { extension = 'mjs', args = [], arguments: own = [], env = {}, timeout = 60_000, inspect } = {}) {
  const file = `${temporaryFolder(t)}/program.${extension}`;
  writeFileSync(file, text);
  const child = spawn(process.execPath, [...args, file, ...own], { env: { ...process.env, ...env }, timeout, killSignal: 'SIGKILL' });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (data) => (stdout += data));
  child.stderr.setEncoding('utf8').on('data', (data) => (stderr += data));
  const ended = new Promise((resolve) => child.on('close', (code, signal) => resolve({ code, signal })));
  await inspect?.(child, () => stdout);
  return { ...(await ended), stdout, stderr };
}
