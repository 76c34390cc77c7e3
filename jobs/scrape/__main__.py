"""``python -m jobs.scrape``: what the scrape container runs."""

from __future__ import annotations

from jobs.specs import ScrapeSpec
from jobs.stage import StageContext, main


def run(ctx: StageContext[ScrapeSpec]) -> str | None:
    """Dispatch to the source; the heavy packages are imported after the first log line."""
    if ctx.spec.channel is not None:
        from jobs.scrape.telegram import run as scrape
    else:
        from jobs.scrape.files import run as scrape
    return scrape(ctx)


if __name__ == "__main__":
    main(ScrapeSpec, run)
