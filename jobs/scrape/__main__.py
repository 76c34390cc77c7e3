"""``python -m jobs.scrape``: what the scrape container runs."""

from __future__ import annotations

import gc
import importlib

# Nothing of what is imported is garbage, and looking for it takes a sixth of a start's time; see ``run``.
gc.disable()

from jobs.specs import ScrapeSpec  # noqa: E402
from jobs.stage import StageContext, main  # noqa: E402

#: New objects after which Python looks for cycles among them. Posts and messages make none, and are freed without
#: being looked for; by Python's own 700, looking through every page anew takes a tenth of a scrape's time.
YOUNG = 20_000


def prepare(spec: ScrapeSpec) -> None:
    """Import the heavy packages of a channel's scrape, while the bucket is asked for what is there."""
    if spec.channel is not None:
        importlib.import_module("jobs.scrape.telegram")


def run(ctx: StageContext[ScrapeSpec]) -> str | None:
    """Dispatch to the source; the heavy packages are imported after the first log line."""
    if ctx.spec.channel is not None:
        from jobs.scrape.telegram import run as scrape
    else:
        from jobs.scrape.files import run as scrape
    gc.freeze()  # what was imported stays for good: no need to look at it ever again
    gc.set_threshold(YOUNG, 10, 10)
    gc.enable()
    return scrape(ctx)


if __name__ == "__main__":
    main(ScrapeSpec, run, prepare=prepare)
