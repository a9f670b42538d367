"""What every version of CPython must be able to do, without pytest: `scripts/test-python` runs it."""

import asyncio
import os

import teesql

DSN = os.environ["DATABASE_URL"]


def verifier(evidence: teesql.Evidence) -> bool:
    return evidence.claims.tcb_status == "UpToDate"


async def verifier_async(evidence: teesql.Evidence) -> bool:
    await asyncio.sleep(0)
    return verifier(evidence)


async def main() -> None:
    async with await teesql.connect_async(DSN, verifier=verifier_async) as connection:
        cursor = await connection.execute("select 2")
        assert await cursor.fetchone() == (2,)


with teesql.connect(DSN, verifier=verifier) as connection:
    assert connection.execute("select 1").fetchone() == (1,)
asyncio.run(main())
refused = ""
try:
    teesql.connect(DSN, verifier=lambda _: False)
except teesql.RefusedError as error:
    refused = error.code
assert refused == "verifier_refused"
child = os.fork()
if child == 0:
    teesql.connect(DSN).close()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
# Left open: the interpreter must exit all the same.
left = teesql.connect(DSN)
