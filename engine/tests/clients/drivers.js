// Logs in with node-postgres, with TLS or through a forwarder (without TLS). The connection is that
// of libpq's variables. Run by scripts/drivers.
const fs = require("fs");
const { Client } = require("pg");
const { version } = require("pg/package.json");

async function logIn(enableChannelBinding) {
  const tls = process.env.PGSSLMODE !== "disable";
  const ssl = tls && {
    ca: fs.readFileSync(process.env.PGSSLROOTCERT),
    cert: fs.readFileSync(process.env.PGSSLCERT),
    key: fs.readFileSync(process.env.PGSSLKEY),
  };
  const client = new Client({ ssl, enableChannelBinding });
  await client.connect();
  const user = (await client.query("select current_user")).rows[0].current_user;
  await client.end();
  const how = tls && enableChannelBinding ? ", channel binding" : "";
  console.log(`node-postgres ${version}${how}: ${user}`);
  if (user !== process.env.PGUSER) process.exitCode = 1;
}

logIn(false).then(() => logIn(true)).catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
