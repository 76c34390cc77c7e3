"""Posts that passed the gates when their part had no more need of them: they stand in for posts that turn out to be
near-duplicates of posts in other parts, so that mostly nothing has to be drawn anew for a few of them.

Which one stands in for which follows from the parts' contents alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jobs.generate.parts import Plan
from jobs.generate.prompts import Prompts
from jobs.generate.records import to_line


class Spares:
    """The spare posts of the parts of a plan, in one JSON Lines file a part."""

    def __init__(self, plan: Plan, prompts: Prompts) -> None:
        self._plan, self._prompts = plan, prompts
        self._files: dict[int, Path] = {}
        self._taken: dict[int, set[int]] = {}

    def put(self, part: int, file: Path) -> None:
        """Name the file of a part's spare posts."""
        self._files[part] = file

    def take(self, indexes: Sequence[int], file: Path) -> int:
        """Write records for those of these indexes (rising) whose part has a spare post left that begins as theirs;
        returns how many."""
        count, number = 0, -1
        posts: list[dict[str, object]] = []
        with file.open("wb") as output:
            for index in indexes:
                part = self._plan.part_of(index).number
                if part not in self._files:
                    continue
                if part != number:
                    number = part
                    with self._files[part].open("rb") as stream:
                        posts = [json.loads(line) for line in stream]
                prompt, taken = self._prompts[index].given, self._taken.setdefault(part, set())
                for place, post in enumerate(posts):
                    if place not in taken and post["prompt"] == prompt:
                        taken.add(place)
                        output.write(to_line({**post, "index": index}))
                        count += 1
                        break
        return count
