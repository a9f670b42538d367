// Signed manifests, and a name server that serves them.
import { execFileSync } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { writeFileSync } from 'node:fs';

import { temporaryFolder } from './helpers.mjs';

export const CLUSTER = `0x${'c1'.repeat(20)}`;

/** The address of a key, and a function that signs manifests with it. */
export function signer(t, { leaderInstance = 'ab'.repeat(20) } = {}) {
  const folder = temporaryFolder(t);
  const file = `${folder}/manifest.key`;
  writeFileSync(file, `${'11'.repeat(32)}\n`, { mode: 0o600 });
  const sign = (epoch, validUntil = Math.floor(Date.now() / 1000) + 600, leaderUrl = 'https://leader.example:8443') =>
    execFileSync(process.env.TEESQL_TEST_FORWARD, [
      'manifest', 'sign', '--key', file, '--cluster', CLUSTER, '--leader-instance', leaderInstance, '--leader-url', leaderUrl,
      '--epoch', String(epoch), '--valid-until', String(validUntil),
    ], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
  // Of the key 11…11.
  return { sign, address: '0x19e7e376e7c213b7e7e7e46cc70a5dd086daff2a' };
}

/** A name server that answers every question for TXT with these records, which may be kept for a second. */
export async function nameServer(t, records) {
  const socket = createSocket('udp4');
  socket.on('message', (question, { address, port: from }) => {
    let end = 12;
    while (question[end] !== 0) end += question[end] + 1;
    const answers = records().map((text) => {
      const chunks = text.match(/.{1,255}/g).map((chunk) => Buffer.from(`${String.fromCharCode(chunk.length)}${chunk}`, 'latin1'));
      const data = Buffer.concat(chunks);
      const header = Buffer.from([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 1, data.length >> 8, data.length & 255]);
      return Buffer.concat([header, data]);
    });
    const isTxt = question.readUInt16BE(end + 1) === 16;
    const count = isTxt ? answers.length : 0;
    const header = Buffer.from([question[0], question[1], 0x85, 0x80, 0, 1, 0, count, 0, 0, 0, 0]);
    socket.send(Buffer.concat([header, question.subarray(12, end + 5), ...(isTxt ? answers : [])]), from, address);
  });
  return bound(t, socket);
}

/** A name server that never answers. */
export const silentNameServer = (t) => bound(t, createSocket('udp4'));

/** Binds a socket for the time of a test, and returns its address. */
async function bound(t, socket) {
  await new Promise((resolve) => socket.bind(0, '127.0.0.1', resolve));
  t.after(() => socket.close());
  return `127.0.0.1:${socket.address().port}`;
}
