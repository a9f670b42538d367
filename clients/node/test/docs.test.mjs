// The programs in README and in the page about Node.js run as they stand: each block of JavaScript that imports or requires
// something. The package's types compile under `tsc --strict`.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';

import { libpq, run, temporaryFolder } from './helpers.mjs';

for (const page of ['README.md', 'use-the-node-package.md']) {
  const blocks = readFileSync(page, 'utf8').split('```').filter((_, index) => index % 2 === 1);
  const programs = blocks.filter((block) => /^js\n(import |const .* = require)/.test(block)).map((block) => block.slice(3));
  test(`${page} has programs`, () => assert(programs.length > 0));
  programs.forEach((program, index) => {
    test(`${page}, program ${index + 1}`, async (t) => {
      const extension = program.includes('require(') ? 'cjs' : 'mjs';
      const { code, stdout, stderr } = await run(t, program, { extension, env: libpq });
      assert.equal(code, 0, stderr);
      assert.equal(stdout, 'teesql_readwrite\n', stderr);
    });
  });
}

const USE = `
await using forwarder: Forwarder = await forward(new URL('postgresql://h/d'), {
  env: true, target: ['a:1', 'b:2'] as const, identity: { certificate: Buffer.alloc(1), key: '' },
  policy: { mrtd: ['ab'], settings: { kms_root: 'own', revocation_grace: 5, x: ['a', 'b'] } },
  verifier: async ({ claims, quote }, { signal }) => quote.length > 0 && claims.appId !== null && !signal.aborted,
});
const dsn: string = forwarder.dsn;
const failure = forwarder.lastFailure;
if (failure?.kind === 'refused') console.log(failure.code.length, failure.at.getTime(), failure instanceof TeesqlError);
const verified = await verifyServer('h', 1, { policy: { appId: 'x' }, dangerousVerifierInsteadOfDcap: { verify: () => ({ tcbStatus: 'UpToDate' }) } });
const mrtd: string = verified.claims.rtmr[3];
const quote: Buffer | null = extractTdxQuote(verified.chain[0]);
const epoch: bigint = (await resolveLeader('d', new Uint8Array(20), { dnsServer: '::1' })).epoch;
setLogger(console);
// @ts-expect-error: a misspelt key
await forward(null, { policy: { mrtds: 'x' } });
// @ts-expect-error: a verifier that forgets its answer
await forward(null, { verifier: () => {} });
// @ts-expect-error: made by forward only
new Forwarder();
const adapter = await withRaTls(dsn, { verifier: new NoopVerifier(), allowedMrTd: [mrtd] });
new PrismaClient({ adapter });
const own: RaTlsVerifier = { verify: async (bytes: Buffer, options: VerifyOptions): Promise<VerificationResult> => new NoopVerifier().verify(bytes, options) };
const { manifest }: ManifestConnection = await connectViaManifest('d', dsn, new Uint8Array(20), { verifier: own });
const number: number = manifest.epoch + (new ManifestError('x', { kind: 'manifest', code: 'x' })).code.length;
export { quote, epoch, number };
`;
const NAMES = '{ extractTdxQuote, forward, Forwarder, resolveLeader, setLogger, TeesqlError, verifyServer }';
const PRISMA = '{ connectViaManifest, ManifestError, NoopVerifier, withRaTls }';
const TYPES = 'ManifestConnection, RaTlsVerifier, VerificationResult, VerifyOptions';

test('types, from an ES module and from CommonJS', { timeout: 120_000 }, (t) => {
  const folder = temporaryFolder(t);
  writeFileSync(
    `${folder}/module.mts`,
    `import ${NAMES} from 'teesql';\nimport ${PRISMA} from 'teesql/prisma';\nimport type { ${TYPES} } from 'teesql/prisma';\n` +
      `import { PrismaClient } from '../generated/client.js';\n${USE}`,
  );
  const statements = USE.replace('await using', 'const').replace(/^export .*$/m, '');
  writeFileSync(
    `${folder}/commonjs.cts`,
    `import teesql = require('teesql');\nimport prisma = require('teesql/prisma');\n` +
      `const ${NAMES} = teesql;\nconst ${PRISMA} = prisma;\ntype Forwarder = teesql.Forwarder;\n` +
      TYPES.split(', ').map((name) => `type ${name} = prisma.${name};\n`).join('') +
      `declare const PrismaClient: new (options: object) => object;\nasync function main() {${statements}}\nmain();\n`,
  );
  const options = {
    strict: true, noEmit: true, module: 'nodenext', target: 'es2022', lib: ['es2022', 'esnext.disposable'], types: ['node'],
    exactOptionalPropertyTypes: true, noUncheckedIndexedAccess: false,
  };
  writeFileSync(`${folder}/tsconfig.json`, JSON.stringify({ compilerOptions: options, files: ['module.mts', 'commonjs.cts'] }));
  try {
    execFileSync('npx', ['tsc', '-p', folder], { encoding: 'utf8' });
  } catch (error) {
    assert.fail(error.stdout || error.message);
  }
});
