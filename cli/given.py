"""From the options of ``bugurt submit`` to fields of the stages' specs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cli.settings import Settings
    from cli.sources import Uploads


def scrape_options(
    uploads: Uploads, source: str | None, since: datetime | None, until: datetime | None, limit: int | None,
    resync: int | None, *, required: bool,
) -> dict[str, Any]:  # fmt: skip
    """Fields of the scrape spec; a file is put on its way."""
    from jobs.specs import SpecError

    fields: dict[str, Any] = {
        "since": since.date() if since else None,
        "until": until.date() if until else None,
        "limit": limit,
        "resync_days": resync,
    }
    if source is None:
        if required:
            raise SpecError("--source is needed: an export (file, folder, zip), .jsonl, .txt, or a channel")
        return fields
    return {**fields, **source_fields(uploads, source)}


def source_fields(uploads: Uploads, source: str) -> dict[str, Any]:
    """The field of the scrape spec that says where the posts come from; a file is put on its way."""
    from cli.sources import parse_source

    found = parse_source(source)
    if found.channel:
        return {"channel": found.channel}
    assert found.file is not None
    return {"source": uploads.put(found.file)}


def check_distinct(sources: Sequence[str]) -> None:
    """Raises SpecError when one of several sources is named twice, in whatever way it is written."""
    from collections import Counter

    from cli.sources import channel_key
    from jobs.specs import SpecError

    for name, times in Counter(map(channel_key, sources)).items():
        if times > 1:
            raise SpecError(f"--source {name} is given {times} times; name each channel once")


def only(sources: list[str] | None) -> str | None:
    """The one source of a pipeline. Raises SpecError for several."""
    from jobs.specs import SpecError

    if sources and len(sources) > 1:
        raise SpecError(
            "a pipeline learns from one channel: give one --source; "
            "`bugurt submit scrape` reads several, and a pipeline of its own makes a model of each"
        )
    return sources[0] if sources else None


def profile_options(uploads: Uploads, profile: str | None) -> dict[str, Any]:
    """A built-in profile's name, or the artefact of a file."""
    from cli.sources import local_path
    from jobs.specs import SpecError

    if profile is None or not (profile.endswith(".toml") or "/" in profile):
        return {"profile": profile}
    path = local_path(profile)
    if not path.is_file():
        raise SpecError(f"there is no profile file {profile}")
    return {"profile": "custom", "profile_file": uploads.put(path)}


def generate_options(
    uploads: Uploads, count: int | None, prompts: list[str] | None, prompt_file: str | None,
    openings: bool | None, shards: int | None,
) -> dict[str, Any]:  # fmt: skip
    """Fields of the generate spec; a prompt file is put on its way."""
    from cli.sources import local_path
    from jobs.specs import SpecError

    fields: dict[str, Any] = {"count": count, "openings": openings, "shards": shards, "prompts": prompts or None}
    if prompt_file is not None:
        path = local_path(prompt_file)
        if not path.is_file():
            raise SpecError(f"there is no prompt file {prompt_file}")
        fields["prompts_file"] = uploads.put(path)
    return fields


def vocabulary_for(settings: Settings, model: str | None) -> int | None:
    """The vocabulary that goes with the tiny model, whose channels are small: 1,024 pieces.

    With as many pieces as so small a text bears (5,827 for the sample channel) the tiny model hardly learns where a
    line ends.
    """
    if "vocab_size" in settings.preprocess or preset_for(settings, model) is None:
        return None
    return 1024


def preset_for(settings: Settings, model: str | None) -> str | None:
    """The training preset that goes with a model when neither the options nor the settings name one."""
    if "preset" in settings.train:
        return None
    return "tiny" if (model or settings.train.get("model", "scratch:tiny")) == "scratch:tiny" else None
