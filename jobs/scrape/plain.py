"""Plain files as posts: JSON Lines with the fields of Post, or text with a line between the posts."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.record import Post
from jobs.scrape.desktop import clean
from jobs.scrape.met import Met
from jobs.scrape.tolerant import Opener
from jobs.specs import DataError, describe

MAX_RECORD = 4 * 1024 * 1024  # bytes of one line or post


class _Entity(BaseModel):
    type: str = Field(max_length=64)
    offset: int = Field(ge=0, lt=2**31)
    length: int = Field(ge=0, lt=2**31)
    url: str | None = None


class _Reaction(BaseModel):
    emoji: str = Field(max_length=200)
    count: int = Field(ge=0, lt=2**63)


_Count = Field(None, ge=0, lt=2**63)
_Number = Field(None, ge=-(2**63), lt=2**63)


class _Record(BaseModel):
    """A line of a JSON Lines file: ``text``, and whatever else of Post is known. Other fields are not ours."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    text: str
    id: int | None = Field(None, ge=1, lt=2**63)
    channel: str | None = None
    channel_id: int | None = _Number
    date: datetime | None = None
    edit_date: datetime | None = None
    entities: list[_Entity] | None = None
    links: list[str] | None = None
    views: int | None = _Count
    forwards: int | None = _Count
    replies: int | None = _Count
    reactions: list[_Reaction] | None = None
    reply_to: int | None = _Number
    album_id: int | None = _Number
    media: str | None = None
    media_count: int | None = Field(None, ge=0, lt=2**31)
    forwarded_from: str | None = None
    via_bot: str | None = None
    poll: bool | None = None
    invoice: bool | None = None
    service: str | None = None
    author: str | None = None
    permalink: str | None = None


def _lines(raw: BinaryIO, where: str, advance: Callable[[int], None]) -> Iterator[tuple[int, str]]:
    """(number, text without its line end) of every line. Raises DataError for what is not UTF-8 or far too long."""
    read = number = 0
    while line := raw.readline(MAX_RECORD + 1):
        number += 1
        read += len(line)
        if number == 1:
            if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise DataError(f"{where} is in UTF-16; save it as UTF-8")
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) > MAX_RECORD:
            raise DataError(f"{where}, line {number}: longer than {MAX_RECORD} bytes; that is no post")
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            place = f"{where}, line {number}, byte {error.start + 1}"
            raise DataError(f"{place}: not UTF-8 text; save the file as UTF-8") from error
        advance(read)
        yield number, text.rstrip("\r\n")


def read_jsonl(opener: Opener, where: str, channel: str, *, advance: Callable[[int], None]) -> Iterator[Post]:
    """One post a line. Lines without ``id`` are numbered from 1; without ``channel`` they belong to ``channel``."""
    with opener() as raw:
        position = 0
        met = Met()
        for number, line in _lines(raw, where, advance):
            if not line.strip():
                continue
            position += 1
            place = f"{where}, line {number}"
            try:
                data = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = "a number without an end" if isinstance(error, ValueError) else "nested too deep"
                reason = error.msg if isinstance(error, json.JSONDecodeError) else reason
                column = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
                raise DataError(f"{place}{column}: not valid JSON: {reason}") from error
            if isinstance(data, str):  # a line that is just a text
                data = {"text": data}
            if not isinstance(data, dict):
                raise DataError(f"{place}: a line must be an object with a 'text', not {type(data).__name__}")
            post = _record(data, place, channel, position)
            if met.before(post.id):
                raise DataError(
                    f"{place}: another line has the number {post.id}, too; a line without an 'id' is numbered by its "
                    "place, so give all lines an 'id' of their own, or none"
                )
            yield post


def _record(data: dict[str, Any], place: str, channel: str, position: int) -> Post:
    try:
        record = _Record.model_validate({k: _clean(v) for k, v in data.items() if k in _Record.model_fields})
    except RecursionError as error:
        raise DataError(f"{place}: nested too deep") from error
    except ValidationError as error:
        raise DataError(describe(error, place)) from error
    given = {k: v for k, v in record.model_dump().items() if v is not None}
    post = Post(**{"id": position, "channel": channel, **given})
    post.date, post.edit_date = _utc(post.date, f"{place}: date"), _utc(post.edit_date, f"{place}: edit_date")
    size = len(post.text)
    for entity in post.entities:  # it may be about another text than this one
        entity["offset"] = min(entity["offset"], size)
        entity["length"] = min(entity["length"], size - entity["offset"])
    return post


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [_clean(v) for v in value]
    if isinstance(value, dict):
        return {k: _clean(v) for k, v in value.items()}
    return value


def _utc(time: datetime | None, place: str) -> datetime | None:
    if time is None:
        return None
    try:
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC).replace(microsecond=0)
    except OverflowError as error:
        raise DataError(f"{place}: the moment {time.isoformat()} lies outside the calendar") from error


def read_text(
    opener: Opener, where: str, channel: str, separator: str | None, *, advance: Callable[[int], None]
) -> Iterator[Post]:
    """Posts between lines that hold only ``separator`` (an empty line when None); their numbers count from 1."""
    mark = (separator or "").strip()
    with opener() as raw:
        lines: list[str] = []
        size = position = 0
        for number, line in _lines(raw, where, advance):
            if "\0" in line:
                raise DataError(f"{where}, line {number}: a zero byte; this is no text file")
            if line.strip() != mark:
                lines.append(line)
                size += len(line)
                if size > MAX_RECORD:
                    hint = "an empty line" if separator is None else repr(mark)
                    raise DataError(
                        f"{where}, line {number}: a post of more than {MAX_RECORD} characters; is {hint} the separator?"
                    )
                continue
            if text := "\n".join(lines).strip("\n"):
                position += 1
                yield Post(position, channel, text)
            lines, size = [], 0
        if text := "\n".join(lines).strip("\n"):
            yield Post(position + 1, channel, text)
