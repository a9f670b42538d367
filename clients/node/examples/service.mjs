// An HTTP service with a pool of attested connections: /greeting asks the database, /ready says whether it can, and SIGTERM
// ends it without a lost request. Settings come from the environment, as for teesql-forward: DATABASE_URL and TEESQL_….
import { createServer } from 'node:http';

import pg from 'pg';
import { forward, setLogger, TeesqlError } from 'teesql';

setLogger({ error: console.error, warn: console.warn });

const forwarder = await forward(process.env.DATABASE_URL, { env: true }).catch((error) => {
  if (!(error instanceof TeesqlError)) throw error;
  console.error(`${error.code}:`, ...error.messages);
  process.exit(78);
});
const pool = new pg.Pool({ connectionString: forwarder.dsn, connectionTimeoutMillis: 10_000 });
// Of a connection in the pool that has ended. The pool opens another one.
pool.on('error', (error) => console.warn('connection lost:', error.message));

const answers = {
  '/greeting': async () => {
    const { rows } = await pool.query("select 'hello, ' || current_user as greeting");
    return rows[0].greeting;
  },
  '/ready': async () => {
    await pool.query('select 1');
    return 'ready';
  },
};

const server = createServer(async (request, response) => {
  const answer = answers[request.url];
  try {
    response.statusCode = answer ? 200 : 404;
    response.end(answer ? await answer() : 'not found');
  } catch (error) {
    // The forwarder knows why a connection was refused; other errors are PostgreSQL's.
    const code = forwarder.lastFailure?.code ?? error.code;
    response.statusCode = 503;
    response.end(`unavailable: ${code}`);
  }
});
server.listen(process.env.PORT ?? 8000, '127.0.0.1', () => console.log(`http://127.0.0.1:${server.address().port}`));

process.once('SIGTERM', async () => {
  await new Promise((resolve) => server.close(resolve));
  await pool.end();
  await forwarder.close();
});
