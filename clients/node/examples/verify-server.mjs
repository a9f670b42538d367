// Verifies a server without connecting a driver, as a deployment's check does, and prints what it has proved. Settings come
// from the environment, as for teesql-forward: TEESQL_…. Usage: node verify-server.mjs HOST PORT
import { TeesqlError, verifyServer } from 'teesql';

const [host, port] = process.argv.slice(2);
try {
  const { claims, fingerprint, validUntil } = await verifyServer(host, Number(port), { env: true });
  console.log(JSON.stringify({ ...claims, fingerprint, validUntil }, null, 2));
} catch (error) {
  if (!(error instanceof TeesqlError)) throw error;
  console.error(`${error.code}: ${error.message}`);
  process.exitCode = error.kind === 'refused' ? 1 : 75;
}
