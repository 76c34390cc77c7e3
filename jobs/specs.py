"""What the stages are asked to do: the one vocabulary that the control plane and the data plane share.

One model per stage and one for a run, with the errors and exit codes that a stage may end in. This module
imports pydantic and the standard library only, so that both planes, and anybody's script, can use it.

Every field of a stage's spec has one of three roles:

- *identity* (the default): it changes what comes out, so it is part of the artefact's id;
- *input*: a reference to another artefact, which enters the id as such; the driver fills it in;
- *operational*: it changes how the work is done (workers, intervals), never what comes out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from enum import IntEnum
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    model_serializer,
    model_validator,
)

StageName = Literal["scrape", "preprocess", "train", "generate"]
STAGES: tuple[StageName, ...] = ("scrape", "preprocess", "train", "generate")

Kind = Literal["source", "posts", "dataset", "model", "batch"]
KINDS: tuple[Kind, ...] = ("source", "posts", "dataset", "model", "batch")
#: What each stage makes. ``source`` artefacts are files that a user handed in; ``submit`` uploads them.
MAKES: dict[str, Kind] = {
    "upload": "source",
    "scrape": "posts",
    "preprocess": "dataset",
    "train": "model",
    "mirror": "model",
    "generate": "batch",
}
#: Raise a stage's number when the same spec and inputs would now give another artefact.
STAGE_VERSIONS: dict[str, int] = {
    "upload": 1,
    "scrape": 1,
    "preprocess": 2,
    "train": 4,
    "mirror": 1,
    "generate": 2,
}
ID_LENGTH = 20  # hex digits of a SHA-256: 80 bits, and short enough for a Kubernetes label

ArtifactRef = Annotated[
    str, StringConstraints(pattern=rf"^(source|posts|dataset|model|batch)/[0-9a-f]{{{ID_LENGTH}}}$")
]
#: A run's name is part of Job names and of pod host names, which must fit 63 characters with the stage,
#: the spec's digest and the index of the pod behind it.
RUN_NAME = r"^[a-z0-9]([a-z0-9-]{0,29}[a-z0-9])?$"
RunName = Annotated[str, StringConstraints(pattern=RUN_NAME)]


def _utc(moment: datetime) -> datetime:
    try:
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError as error:
        raise ValueError("the moment lies outside the calendar") from error


#: One moment is one value, whatever the time zone in which it was written; without a zone it is UTC.
Moment = Annotated[datetime, AfterValidator(_utc)]


class ExitCode(IntEnum):
    """How a stage ends; 64, 65 and 78 (sysexits.h) mean that trying again is useless."""

    OK = 0
    BAD_SPEC = 64
    BAD_DATA = 65
    INTERNAL = 70
    TRY_AGAIN = 75
    BAD_CONFIG = 78
    INTERRUPTED = 143


FATAL_CODES: tuple[int, ...] = (ExitCode.BAD_SPEC, ExitCode.BAD_DATA, ExitCode.BAD_CONFIG)


class BugurtError(Exception):
    """An error with one clear sentence for the user; its class decides the exit code."""

    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL

    def __str__(self) -> str:
        """The sentence on one line: names out of foreign files may hold line breaks, terminals' commands and worse."""
        return "".join(c if c.isprintable() else " " for c in super().__str__())


class SpecError(BugurtError):
    """The spec, an option or a settings file is wrong."""

    exit_code = ExitCode.BAD_SPEC


class DataError(BugurtError):
    """The input data is wrong: a broken export, an empty dataset, an artefact that does not verify."""

    exit_code = ExitCode.BAD_DATA


class NotFoundError(DataError):
    """An artefact, a run or an object is not in the bucket."""


class ConfigError(BugurtError):
    """The surroundings are wrong: credentials, bucket, a Telegram session, a missing package."""

    exit_code = ExitCode.BAD_CONFIG


class TemporaryError(BugurtError):
    """Worth trying again later: the network, a flood wait, a full disk.

    ``retry_after``: seconds to wait before the next try, where the other side named a time.
    """

    exit_code = ExitCode.TRY_AGAIN

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class LeaseLostError(TemporaryError):
    """What this process held alone it does not hold (any more): it must not write to it."""


class Interrupted(BugurtError):  # noqa: N818  # it is no error of anybody
    """SIGTERM or SIGINT arrived; what could be saved has been saved."""

    exit_code = ExitCode.INTERRUPTED


def input_ref(description: str) -> Any:
    """A field that names another artefact."""
    return Field(default=None, description=description, json_schema_extra={"role": "input"})


def operational(default: Any, description: str, **limits: Any) -> Any:
    """A field that changes how the work is done and not what comes out."""
    return Field(default=default, description=description, json_schema_extra={"role": "operational"}, **limits)


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN, Unicode as it is."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def load_json(text: str | bytes) -> Any:
    """As ``json.loads``, for texts of others': one that is nested too deep is a ValueError like all that is no JSON."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def digest_id(kind: str, stage: str, version: int, identity: Any, inputs: dict[str, str]) -> str:
    """An artefact's id: a digest of what was asked for and of what it was made from."""
    text = canonical_json([kind, stage, version, identity, inputs])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:ID_LENGTH]


class Spec(BaseModel):
    """Base of the stages' specs: unknown fields are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_no_truths(cls, data: Any) -> Any:
        """Pydantic takes ``true`` for 1: ``epochs = true`` would be one epoch, which nobody has meant."""
        for name, field in cls.model_fields.items():
            kinds = {field.annotation, *get_args(field.annotation)}
            value = data.get(name) if isinstance(data, dict) else None
            if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
                raise ValueError(f"{name}: Input should be a number (got {value})")
        return data

    @classmethod
    def _with_role(cls, role: str) -> list[str]:
        found = []
        for name, field in cls.model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("role") == role:
                found.append(name)
        return found

    def inputs(self) -> dict[str, str]:
        """The artefacts that this one is made from, by field name."""
        return {n: v for n in self._with_role("input") if (v := getattr(self, n)) is not None}

    def identity(self) -> dict[str, Any]:
        """The fields that decide what comes out, as plain JSON values."""
        left_out = {*self._with_role("input"), *self._with_role("operational")}
        return self.model_dump(mode="json", exclude=left_out)


class StageSpec(Spec):
    """A spec of one of the four stages."""

    stage: str

    def ref(self) -> str:
        """The reference (``kind/id``) of the artefact that this spec makes."""
        kind = MAKES[self.stage]
        version = STAGE_VERSIONS[self.stage]
        return f"{kind}/{digest_id(kind, self.stage, version, self.identity(), self.inputs())}"

    def missing_inputs(self) -> list[str]:
        """Names of inputs that must be set before the stage can run."""
        return []


class ScrapeSpec(StageSpec):
    """Read a channel: from Telegram (``channel``) or from files that were handed in (``source``)."""

    stage: Literal["scrape"] = "scrape"
    source: ArtifactRef | None = input_ref("files handed in: a Desktop export, JSON Lines or text")
    parent: ArtifactRef | None = input_ref("the posts artefact that this scrape adds to")
    channel: str | None = Field(
        None, max_length=256, coerce_numbers_to_str=True, description="@name, t.me link, invite link or id"
    )
    as_of: Moment | None = Field(None, description="a live channel as it was then; set by submit")
    format: Literal["auto", "desktop", "jsonl", "text"] = "auto"
    chat: str | None = Field(
        None, max_length=256, coerce_numbers_to_str=True, description="name or id of a chat in an account's export"
    )
    separator: str | None = Field(
        None, max_length=64, description="text files: the line between posts; an empty line when unset"
    )
    since: date | None = Field(None, description="first day (UTC) to read")
    until: date | None = Field(None, description="first day (UTC) not to read any more")
    min_id: int | None = Field(None, ge=0, description="read posts with a greater id")
    max_id: int | None = Field(None, ge=1, description="read posts with a smaller id")
    limit: int | None = Field(None, ge=1, description="at most so many posts")
    resync_days: int = Field(0, ge=0, le=36500, description="walk so many days again for edits, deletions")
    takeout: bool = Field(False, description="use Telegram's takeout mode (lower flood limits)")
    shard_posts: int = Field(5000, ge=1, le=1_000_000, description="posts a Parquet file, at most")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.channel is not None and self.source is not None:
            raise ValueError("give 'channel' or 'source', not both")
        if self.since and self.until and self.since >= self.until:
            raise ValueError("'since' must lie before 'until'")
        if self.min_id is not None and self.max_id is not None and self.min_id + 1 >= self.max_id:
            raise ValueError("'min_id' must be smaller than 'max_id', with an id between them")
        return self

    def missing_inputs(self) -> list[str]:
        return [] if self.channel or self.source else ["source"]


class PreprocessSpec(StageSpec):
    """Posts in, a clean, split, tokenised and packed dataset out."""

    stage: Literal["preprocess"] = "preprocess"
    posts: ArtifactRef | None = input_ref("the posts")
    profile_file: ArtifactRef | None = input_ref("a profile of the user's own, instead of 'profile'")
    base_model: ArtifactRef | None = input_ref("a mirrored or trained model whose tokenizer is used")
    profile: str = Field("bugurt", pattern=r"^[a-z][a-z0-9_-]{0,39}$", description="a built-in profile")
    model: str = Field(
        "scratch:tiny", min_length=1, max_length=200, description="whose tokenizer: hub name, scratch:SIZE"
    )
    revision: str = Field("main", max_length=100, description="the hub model's revision")
    vocab_size: int = Field(
        8192,
        ge=300,
        le=200_000,
        description="of the BPE made for scratch models, at most: pairs that occur fewer than 10 times become no token",
    )
    case: Literal["auto", "keep", "lower"] = "auto"
    mask_pii: bool = Field(False, description="mask phone numbers, e-mail addresses and @mentions")
    near_duplicates: float = Field(
        0.8, ge=0.5, le=1.0, description="Jaccard similarity from which posts are duplicates; 1 = equal sets"
    )
    max_repeats: int = Field(1, ge=1, le=1000, description="posts kept of one cluster of duplicates")
    split: Literal["hash", "time"] = "hash"
    validation: float = Field(0.05, gt=0.0, lt=0.5, description="share of the posts that is held out")
    block_size: int = Field(256, ge=16, le=8192, description="tokens a packed block")
    seed: int = Field(0, ge=0, lt=2**32)
    workers: int = operational(0, "processes; 0 = as many as cores", ge=0, le=256)

    def missing_inputs(self) -> list[str]:
        return [] if self.posts else ["posts"]


class LoraSettings(Spec):
    """Low-rank adapters instead of full fine-tuning (peft)."""

    r: int = Field(16, ge=1, le=1024)
    alpha: int = Field(32, ge=1, le=4096)
    dropout: float = Field(0.05, ge=0.0, lt=1.0)
    target_modules: tuple[str, ...] | None = Field(None, description="unset: all linear layers but the head")


class TrainSpec(StageSpec):
    """Fine-tune a causal language model on a dataset. Unset values come from the preset."""

    stage: Literal["train"] = "train"
    dataset: ArtifactRef | None = input_ref("the dataset")
    base_model: ArtifactRef | None = input_ref("a mirrored or trained model to start from, instead of 'model'")
    model: str = Field("scratch:tiny", min_length=1, max_length=200, description="hub name, or scratch:SIZE")
    revision: str = Field("main", max_length=100, description="the hub model's revision")
    preset: Literal["default", "reference", "tiny"] = "default"
    epochs: float | None = Field(None, gt=0, le=10_000)
    max_steps: int | None = Field(None, ge=1, description="optimiser steps; wins over epochs")
    max_minutes: float | None = Field(None, gt=0, description="stop after so much training time")
    batch_size: int | None = Field(None, ge=1, le=4096, description="blocks a step and process")
    gradient_accumulation_steps: int | None = Field(None, ge=1, le=4096)
    learning_rate: float | None = Field(None, gt=0, le=1)
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] | None = None
    warmup_steps: int | None = Field(None, ge=0)
    warmup_ratio: float | None = Field(None, ge=0, lt=1)
    weight_decay: float | None = Field(None, ge=0, le=1)
    max_grad_norm: float | None = Field(None, gt=0)
    dropout: float | None = Field(None, ge=0, lt=1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    gradient_checkpointing: bool = False
    torch_compile: bool = Field(False, description="needs a C++ compiler, which the image does not have")
    attn_implementation: Literal["auto", "sdpa", "eager"] = "auto"
    lora: LoraSettings | None = None
    early_stopping_patience: int | None = Field(None, ge=1, description="evaluations without a better loss")
    eval_steps: int | None = Field(None, ge=1, description="steps between evaluations; unset: each epoch")
    warm_start_passes: float | None = Field(
        None,
        ge=0,
        le=1000,
        description="scratch:SIZE begins as a bigram model, fitted so long; 0: it does not",
    )
    soft_targets: float | None = Field(
        None,
        ge=0,
        le=1,
        description="scratch:SIZE learns so much of each token from counted trigrams; 0: from the posts alone",
    )
    seed: int = Field(0, ge=0, lt=2**32)
    checkpoint_steps: int | None = operational(None, "steps that a kill costs, at most; unset: by time only", ge=1)
    checkpoint_minutes: float = operational(10.0, "minutes that a kill costs, about, at most", gt=0)
    keep_checkpoints: int = operational(2, "newest checkpoints kept, besides the best", ge=1, le=100)

    def missing_inputs(self) -> list[str]:
        return [] if self.dataset else ["dataset"]


class GenerateSpec(StageSpec):
    """Write new posts with a model."""

    stage: Literal["generate"] = "generate"
    model: ArtifactRef | None = input_ref("the model")
    prompts_file: ArtifactRef | None = input_ref("a text file with one prompt a line, instead of 'prompts'")
    count: int = Field(100, ge=1, le=10_000_000, description="posts that pass the gates")
    prompts: tuple[Annotated[str, StringConstraints(min_length=1, max_length=10_000)], ...] = Field(
        (), max_length=10_000, description="beginnings, used in turn"
    )
    openings: bool = Field(False, description="draw beginnings from the training posts' first words")
    engine: Literal["ctranslate2", "transformers", "vllm"] = "ctranslate2"
    compute_type: Literal["auto", "float32", "float16", "bfloat16", "int8", "int8_float16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(1, ge=1, le=256, description="threads a micro-batch; it changes rounding")
    micro_batch: int = Field(160, ge=1, le=4096, description="posts drawn together from one random stream, at most")
    temperature: float = Field(1.0, gt=0, le=10)
    top_k: int = Field(50, ge=0, le=100_000, description="0 = all")
    top_p: float = Field(1.0, gt=0, le=1)
    min_p: float = Field(0.0, ge=0, lt=1, description="engines transformers and vllm")
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    no_repeat_ngram_size: int = Field(0, ge=0, le=100)
    max_new_tokens: int = Field(256, ge=1, le=100_000)
    seed: int = Field(0, ge=0, lt=2**32)
    min_characters: int = Field(20, ge=0, description="gate: shorter posts are refused")
    max_characters: int = Field(4096, ge=1, description="gate: longer posts are refused; Telegram's own limit")
    form: bool = Field(True, description="gate: the channel's form, by the profile of the dataset")
    max_overlap_words: int = Field(12, ge=1, description="gate: longest run of words shared with training")
    max_similarity: float = Field(0.8, gt=0, le=1, description="gate: Jaccard similarity with training posts")
    near_duplicates: float = Field(0.8, gt=0, le=1, description="gate: Jaccard similarity within the batch")
    refuse_pii: bool = Field(True, description="gate: phone numbers, e-mail addresses, @mentions, links")
    stop_words: tuple[str, ...] = Field((), max_length=10_000, description="gate: words not to occur")
    max_attempts: int = Field(10, ge=1, le=1000, description="draws for each post wanted, on average, at most")
    rerank: int = Field(1, ge=1, le=64, description="draw so many and keep the best by score a character")
    shards: int = operational(1, "parts made at the same time", ge=1, le=10_000)
    workers: int = operational(0, "micro-batches drawn at once by a process; 0 = by its cores", ge=0, le=256)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sum((bool(self.prompts), self.prompts_file is not None, self.openings)) > 1:
            raise ValueError("give one of 'prompts', 'prompts_file' and 'openings'")
        if self.min_characters > self.max_characters:
            raise ValueError("'min_characters' must not exceed 'max_characters'")
        return self

    def missing_inputs(self) -> list[str]:
        return [] if self.model else ["model"]


AnyStageSpec = ScrapeSpec | PreprocessSpec | TrainSpec | GenerateSpec
SPECS: dict[StageName, type[AnyStageSpec]] = {
    "scrape": ScrapeSpec,
    "preprocess": PreprocessSpec,
    "train": TrainSpec,
    "generate": GenerateSpec,
}
#: The field of each stage's spec that takes what the stage before it made.
CHAIN: dict[StageName, str] = {"preprocess": "posts", "train": "dataset", "generate": "model"}


class RunSpec(Spec):
    """A run: the stages to do, one after the other, each on what the one before it made.

    A run may read several channels, each into a posts artefact of its own; it then has no other stage, for a dataset
    is made of one of them.
    """

    scrape: ScrapeSpec | None = None
    also: tuple[ScrapeSpec, ...] = Field((), max_length=999, description="more channels to scrape")
    preprocess: PreprocessSpec | None = None
    train: TrainSpec | None = None
    generate: GenerateSpec | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = self.stages()
        if not names:
            raise ValueError("a run needs at least one stage")
        positions = [STAGES.index(n) for n in names]
        if positions != list(range(positions[0], positions[0] + len(positions))):
            raise ValueError(f"a run's stages must follow each other without a gap, not {', '.join(names)}")
        if self.also and names != ["scrape"]:
            raise ValueError("a run that reads several channels has the one stage 'scrape'")
        if len({s.ref() for s in self.scrapes()}) < len(self.scrapes()):
            raise ValueError("the same channel is asked for twice")
        return self

    @model_serializer(mode="wrap")
    def _plain(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A run of one channel is written as it was before there were several, so that older code reads it, too."""
        data: dict[str, Any] = handler(self)
        if not self.also:
            data.pop("also", None)
        return data

    def scrapes(self) -> tuple[ScrapeSpec, ...]:
        """What the run scrapes, in the order asked for."""
        return () if self.scrape is None else (self.scrape, *self.also)

    def pinned(self, how: Callable[[ScrapeSpec], Mapping[str, Any]]) -> Self:
        """The run with some fields of its live channels replaced: ``how`` gives them for each."""
        found = [s.model_copy(update=how(s)) if s.channel else s for s in self.scrapes()]
        return self.model_copy(update={"scrape": next(iter(found), None), "also": tuple(found[1:])})

    def steps(self) -> dict[str, AnyStageSpec]:
        """What is to be done, in its order: a stage by its name, further channels as ``scrape-2``, ``scrape-3``."""
        found: dict[str, AnyStageSpec] = {n: self.spec(n) for n in self.stages()}
        return found | {f"scrape-{number}": spec for number, spec in enumerate(self.also, 2)}

    def stages(self) -> list[StageName]:
        """The stages of this run in their order."""
        return [n for n in STAGES if getattr(self, n) is not None]

    def spec(self, stage: StageName) -> AnyStageSpec:
        """The spec of one stage; KeyError when the run does not have it."""
        found: AnyStageSpec | None = getattr(self, stage)
        if found is None:
            raise KeyError(stage)
        return found


def describe(error: ValidationError, where: str) -> str:
    """One sentence for a pydantic error: the first field, what is wrong with it, how many more."""
    errors = error.errors(include_url=False)
    first = errors[0]
    place = " ".join(".".join(str(p)[:60] for p in first["loc"][:8]).split())  # names may be anybody's, and any length
    message = re.sub(r"^Value error, ", "", first["msg"])
    message = re.sub(r"a valid dictionary( or instance of \w+)?", "a table of fields", message)
    message = message.replace("a valid tuple", "a list")
    value = first.get("input")
    if first["type"] == "extra_forbidden":
        message = "unknown field"
    elif isinstance(value, str | int | float | bool) and first["type"] != "missing":
        shown = repr(value)
        message += f" (got {shown if len(shown) <= 80 else shown[:77] + '...'})"
    more = f"; and {len(errors) - 1} more" if len(errors) > 1 else ""
    return f"{where}: {place + ': ' if place else ''}{message}{more}"


S = TypeVar("S", bound=Spec)  # Python 3.11 has no parameter lists on functions yet


def parse_spec(spec_type: type[S], data: Any, where: str) -> S:
    """Validate plain data; raises SpecError with one sentence that names ``where`` and the field."""
    try:
        return spec_type.model_validate(data)
    except ValidationError as error:
        raise SpecError(describe(error, where)) from error
