"""``python -m jobs.scrape``: what the scrape container runs."""

from __future__ import annotations

import os

from jobs.specs import ScrapeSpec
from jobs.stage import StageContext, main


def run(ctx: StageContext[ScrapeSpec]) -> str | None:
    """Dispatch to the source; the heavy packages are imported after the first log line."""
    # Arrow's own pool keeps what it has had: some 40 MiB more here than the system's, and growing with the shards.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    if ctx.spec.channel is not None:
        from jobs.scrape.telegram import run as scrape
    else:
        from jobs.scrape.files import run as scrape
    return scrape(ctx)


if __name__ == "__main__":
    main(ScrapeSpec, run)
