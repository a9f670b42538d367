"""Refuses to start a service unless the server runs the application that is expected."""

import os
import sys

import teesql

try:
    verified = teesql.verify_server(os.environ["PGHOST"], int(os.environ["PGPORT"]))
except teesql.Error as error:
    sys.exit(f"{error.code}: {error}")
print(f"app {verified.claims.app_id}, compose hash {verified.claims.compose_hash}, {verified.claims.tcb_status}")
