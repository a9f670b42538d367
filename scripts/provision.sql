-- Creates the two roles of a TeeSQL cluster and gives them their privileges on
-- schema public of the current database. Run it as a superuser in each database
-- that the roles may use, and again whenever the passwords change:
--
--   TEESQL_PG_PASSWORD_READ=… TEESQL_PG_PASSWORD_READWRITE=… \
--     psql -X -f scripts/provision.sql -d <database>
--
-- The passwords are those that the sidecar injects. They come from the
-- environment, because arguments can be read by everybody on the machine.

\set ON_ERROR_STOP on
\set QUIET on
\getenv read_password TEESQL_PG_PASSWORD_READ
\getenv readwrite_password TEESQL_PG_PASSWORD_READWRITE
\if :{?read_password}
\else
DO $$ BEGIN RAISE EXCEPTION 'TEESQL_PG_PASSWORD_READ is not set'; END $$;
\endif
\if :{?readwrite_password}
\else
DO $$ BEGIN RAISE EXCEPTION 'TEESQL_PG_PASSWORD_READWRITE is not set'; END $$;
\endif

-- The statements below contain passwords: keep them out of the server's log.
SET log_statement = 'none';
SET log_min_duration_statement = -1;
SET log_min_error_statement = 'panic';

BEGIN;

-- Roles belong to all databases: wait for whoever provisions another one just now.
LOCK TABLE pg_authid IN SHARE ROW EXCLUSIVE MODE;

SELECT format('CREATE ROLE %I', wanted)
  FROM unnest(ARRAY['teesql_read', 'teesql_readwrite']) AS wanted
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted)
\gexec

ALTER ROLE teesql_read
  LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS
  PASSWORD :'read_password';
ALTER ROLE teesql_readwrite
  LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS
  PASSWORD :'readwrite_password';

-- Before PostgreSQL 15 everybody might create tables in public.
REVOKE CREATE ON SCHEMA public FROM PUBLIC, teesql_read;
GRANT USAGE ON SCHEMA public TO teesql_read;
GRANT USAGE, CREATE ON SCHEMA public TO teesql_readwrite;

-- What is there already.
GRANT SELECT ON ALL TABLES IN SCHEMA public TO teesql_read;
GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO teesql_read;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO teesql_readwrite;
GRANT SELECT, USAGE ON ALL SEQUENCES IN SCHEMA public TO teesql_readwrite;

-- What this superuser will create there.
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO teesql_read;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON SEQUENCES TO teesql_read;
ALTER DEFAULT PRIVILEGES IN SCHEMA public
  GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO teesql_readwrite;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, USAGE ON SEQUENCES TO teesql_readwrite;

-- What teesql_readwrite will create there; it owns that, teesql_read reads it.
ALTER DEFAULT PRIVILEGES FOR ROLE teesql_readwrite IN SCHEMA public
  GRANT SELECT ON TABLES TO teesql_read;
ALTER DEFAULT PRIVILEGES FOR ROLE teesql_readwrite IN SCHEMA public
  GRANT SELECT ON SEQUENCES TO teesql_read;

COMMIT;
