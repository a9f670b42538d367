"""A verifier in asyncio, which asks something else whether a server may be used."""

import asyncio
import os

import asyncpg

import teesql

known: dict[str, bool] = {}


async def is_known(compose_hash: str) -> bool:
    await asyncio.sleep(0.01)  # a request to a service of yours
    return known.setdefault(compose_hash, True)


async def verifier(evidence: teesql.Evidence) -> None:
    compose_hash = evidence.claims.compose_hash
    if compose_hash is None or not await is_known(compose_hash):
        raise teesql.Refused("not deployed by us")


async def main() -> None:
    async with teesql.forward(os.environ["DATABASE_URL"], verifier=verifier, verifier_timeout=2) as dsn:
        connection = await asyncpg.connect(dsn)
        print(await connection.fetchval("select current_user"))
        await connection.close()


asyncio.run(main())
