'use strict';
// Connection URLs, as prisma-ra-tls reads and rewrites them.

/** For a URL without a password: drivers require one. */
const PLACEHOLDER_PASSWORD = 'ratls';

/** Parameters with which a driver would bypass the forwarder, or request TLS. */
const NOT_KEPT = /^(host|hostaddr|port|ssl.*|gssencmode|channel_binding)$/i;

function parse(dsn) {
  if (typeof dsn !== 'string' || !/^postgres(ql)?:\/\//.test(dsn)) {
    throw new Error('prisma-ra-tls v0.3 requires a URI-form DSN (postgresql://user:pw@host:port/db)');
  }
  return urlOf(dsn);
}

/** As a URL. Node's own error would carry the text, and with it the secret. */
function urlOf(dsn) {
  if (!URL.canParse(dsn)) throw new Error('DSN is not a valid URL');
  return new URL(dsn);
}

/** The server that a URL names. */
function parseDsnTarget(dsn) {
  const { hostname, port } = parse(dsn);
  if (!hostname) throw new Error('DSN has no host');
  return { host: hostname.replace(/^\[|\]$/g, ''), port: port ? Number(port) : 5432 };
}

/** The URL with another server, and with `sslmode=disable`. */
function rewriteDsnToForwarder(dsn, localHost, localPort) {
  const url = parse(dsn);
  // A URL without a host cannot have a user, and takes none.
  const from = url.hostname ? url : urlOf(dsn.replace(/^([a-z]+:\/\/)([^/?@]*@)?/, '$1$2localhost'));
  from.password = from.password || PLACEHOLDER_PASSWORD;
  from.hostname = localHost;
  from.port = String(localPort);
  for (const name of [...from.searchParams.keys()]) {
    if (NOT_KEPT.test(name)) from.searchParams.delete(name);
  }
  from.searchParams.set('sslmode', 'disable');
  return from.toString();
}

module.exports = { parseDsnTarget, rewriteDsnToForwarder };
