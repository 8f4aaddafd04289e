"""A seeded simulator of the market: what must hold of every fen, whatever crashes, tears, doubles, is lost or late.

`world`     a market in memory on the shipped decisions, shipped journal bytes and shipped lease arithmetic
`machine`   its nodes: kill -9, power cuts, torn tails, wrong clocks, lost and doubled questions
`oracle`    what must be true, counted apart from the code under test
`plants`    known mistakes, each of which must be caught
`real`      the same kind of history on SQLite or PostgreSQL, with the real desk, journals and ingest

    python -m tests.simulator --steps 1000000 --seeds 100
    python -m tests.simulator --store sqlite --steps 100000 --seeds 10
    python -m tests.simulator --plants
"""
