"""How long training will take and what memory it needs, before it is done: pure arithmetic, marked as such.

Formulas:

- work: 6·N floating-point operations a token (2·N forward, 4·N backward), Kaplan et al. 2020, arXiv:2001.08361,
  section 2.1; 8·N with gradient checkpointing (the forward pass is done twice); 4·N with LoRA (no gradients of the
  frozen weights);
- memory of activations: 34·s·b·h bytes a layer in 16 bits, Korthikanti et al. 2022, arXiv:2205.05198, equation 2,
  without the attention matrices, which fused attention does not keep; 66·s·b·h in fp32, for all but the two masks of
  dropout, of a byte each, take twice as much;
- memory of the weights: 16 bytes a trained parameter (fp32 weight and gradient, two moments of AdamW), 4 bytes a
  frozen one.

Peaks are those of NVIDIA's data sheets: the dense 16-bit tensor figure, with fp32 accumulation, and the one of fp32
without tensor cores (torch leaves TF32 off). Which of them counts is decided as the train stage decides on its
precision. Nobody reaches a peak. The share that is reached (``utilisation``) is an assumption, 30 % unless you know
better: a measured speed is worth more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from jobs.specs import SpecError, TrainSpec

TERA = 1e12
GIB = 2**30
UTILISATION = 0.30
CHARACTERS_PER_TOKEN = 3.5  # of Russian posts with ruGPT-3's tokenizer; a dataset's own count replaces it
CONTEXT_BYTES = 0.8 * GIB  # CUDA context, libraries and workspaces


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet: peaks in FLOP/s, ``memory`` in bytes; ``bf16``: whether it multiplies that itself."""

    name: str
    peak16: float
    peak32: float
    memory: int
    bf16: bool

    def peak(self, precision: str) -> float:
        """The peak that counts in ``fp32``, ``bf16`` or ``fp16``; bf16 that is emulated is no faster than fp32."""
        fast = precision == "fp16" or (precision == "bf16" and self.bf16)
        return self.peak16 if fast else self.peak32


def _gpu(name: str, tera16: float, tera32: float, gigabytes: int, *, bf16: bool = True) -> Gpu:
    return Gpu(name, tera16 * TERA, tera32 * TERA, gigabytes * 10**9, bf16)


GPUS: dict[str, Gpu] = {
    g.name.lower(): g
    for g in (
        _gpu("T4", 65, 8.1, 16, bf16=False),
        _gpu("V100", 125, 15.7, 32, bf16=False),
        _gpu("A10", 125, 31.2, 24),
        _gpu("A100", 312, 19.5, 80),
        _gpu("L4", 121, 30.3, 24),
        _gpu("L40S", 362, 91.6, 48),
        _gpu("H100", 989, 67, 80),
        _gpu("H200", 989, 67, 141),
        _gpu("RTX3090", 71, 35.6, 24),
        _gpu("RTX4090", 165, 82.6, 24),
        _gpu("A6000", 155, 38.7, 48),
    )
}


def computes_in(precision: str, on: Gpu | None) -> str:
    """What a train spec's ``precision`` comes to on a GPU, as the stage decides it; bf16 where no GPU was named."""
    if precision != "auto":
        return precision
    return "bf16" if on is None or on.bf16 else "fp32"


def gpu(name: str) -> Gpu:
    """A GPU by its name, however it is written. Raises SpecError with the names there are."""
    plain = name.lower().replace("nvidia", "").replace("geforce", "").translate(str.maketrans("", "", " -_"))
    found = GPUS.get(plain)
    if found is None:
        raise SpecError(f"GPU {name!r} is not known; there are {', '.join(g.name for g in GPUS.values())}")
    return found


@dataclass(frozen=True)
class Shape:
    """A GPT-2 style model: layers, width, size of the vocabulary, positions."""

    layers: int
    width: int
    vocab: int
    positions: int

    @property
    def parameters(self) -> int:
        """Weights with tied embeddings: V·d + P·d + L·(12·d² + 13·d) + 2·d."""
        d = self.width
        return self.vocab * d + self.positions * d + self.layers * (12 * d * d + 13 * d) + 2 * d


#: Models whose shapes are known without the network: ruGPT-3 by their config.json on the hub.
SHAPES: dict[str, Shape] = {
    "rugpt3small_based_on_gpt2": Shape(12, 768, 50264, 2048),
    "rugpt3medium_based_on_gpt2": Shape(24, 1024, 50257, 2048),
    "rugpt3large_based_on_gpt2": Shape(24, 1536, 50257, 2048),
    "gpt2": Shape(12, 768, 50257, 1024),
    "gpt2-medium": Shape(24, 1024, 50257, 1024),
    "gpt2-large": Shape(36, 1280, 50257, 1024),
}


#: Layers and width of models that start from nothing, as ``jobs.train.models`` builds them (a test compares).
SCRATCH: dict[str, tuple[int, int]] = {"tiny": (3, 128), "small": (4, 256)}
SCRATCH_POSITIONS = 512
#: (preset, from nothing) -> epochs and batch size, as ``jobs.train.presets`` has them (a test compares).
PRESETS: dict[tuple[str, bool], tuple[float, int]] = {
    ("reference", False): (5.0, 8),
    ("reference", True): (5.0, 8),
    ("default", False): (5.0, 8),
    ("default", True): (10.0, 4),
    ("tiny", False): (3.0, 8),
    ("tiny", True): (20.0, 8),
}


def known_shape(model: str, *, vocab_size: int = 8192, block_size: int = 256) -> Shape | None:
    """The shape of a model by its name: of ``scratch:SIZE``, or of a hub model, whoever's copy it is."""
    if model.startswith("scratch:"):
        size = SCRATCH.get(model.removeprefix("scratch:"))
        return Shape(*size, vocab_size, max(block_size, SCRATCH_POSITIONS)) if size else None
    return SHAPES.get(model.rpartition("/")[2].lower())


def shape_of(parameters: int, vocab: int = 50_257, positions: int = 1024) -> Shape:
    """A usual shape with about so many weights, for models of which no more is known: a width of 64 a layer."""
    layers = 1
    while Shape(layers, 64 * layers, vocab, positions).parameters < parameters and layers < 200:
        layers += 1
    return Shape(layers, 64 * layers, vocab, positions)


@dataclass(frozen=True)
class Work:
    """What is to be trained on: tokens of one epoch and how they are cut into steps."""

    tokens: int
    epochs: float
    block_size: int
    batch_size: int
    accumulation: int = 1
    processes: int = 1
    max_steps: int | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps: whole batches of packed blocks, the last one of an epoch perhaps not full."""
        if self.max_steps is not None:
            return self.max_steps
        blocks = math.ceil(self.tokens / self.block_size)
        an_epoch = math.ceil(blocks / (self.batch_size * self.accumulation * self.processes))
        return math.ceil(an_epoch * self.epochs)

    @property
    def total_tokens(self) -> int:
        """Tokens seen in the whole training."""
        a_step = self.block_size * self.batch_size * self.accumulation * self.processes
        return min(self.steps * a_step, math.ceil(self.tokens * self.epochs)) if self.max_steps is None else (
            self.steps * a_step
        )  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """The answer. ``basis`` says where the speed comes from; memory is in bytes, on each GPU."""

    parameters: int
    work: Work
    tokens_per_second: float
    hours: float
    basis: str
    memory: dict[str, float]
    gpu: Gpu | None
    assumptions: tuple[str, ...]

    @property
    def memory_total(self) -> float:
        """Bytes on each GPU."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool | None:
        """Whether it fits into the GPU, with a tenth to spare; None when no GPU was named."""
        return None if self.gpu is None else self.memory_total <= 0.9 * self.gpu.memory

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "parameters": self.parameters,
            "tokens": self.work.total_tokens,
            "steps": self.work.steps,
            "tokens_per_second": round(self.tokens_per_second, 1),
            "hours": round(self.hours, 3),
            "basis": self.basis,
            "measured": self.basis.startswith("measured"),
            "memory_bytes": {**{k: round(v) for k, v in self.memory.items()}, "total": round(self.memory_total)},
            "gpu": self.gpu.name if self.gpu else None,
            "fits": self.fits,
            "assumptions": list(self.assumptions),
        }

    def rows(self) -> list[tuple[str, str]]:
        """For people: a name and a value a line."""
        fits = {True: "fits", False: "does NOT fit: smaller batch_size, gradient_checkpointing, or LoRA", None: ""}
        room = f" of {self.gpu.memory / 1e9:.0f} GB: {fits[self.fits]}" if self.gpu else ""
        parts = ", ".join(f"{k} {v / 1e9:.1f}" for k, v in self.memory.items())
        return [
            ("model", f"{self.parameters / 1e6:.0f} M parameters"),
            ("tokens", f"{self.work.total_tokens:,} ({self.work.epochs:g} epochs of {self.work.tokens:,})"),
            ("steps", f"{self.work.steps:,} of {self.work.batch_size * self.work.accumulation} blocks"),
            ("speed", f"{self.tokens_per_second:,.0f} tokens/s, {self.basis}"),
            ("time", f"{_span(self.hours)}, {self.basis}"),
            ("memory", f"{self.memory_total / 1e9:.1f} GB{room} ({parts}), computed, not measured"),
            *(("assumed", text) for text in self.assumptions),
        ]


def _span(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.1f} h"


def operations_per_token(parameters: int, *, checkpointing: bool = False, lora: bool = False) -> float:
    """Floating-point operations of one training step, a token; see the module's docstring."""
    forward, backward = 2.0 * parameters, (2.0 if lora else 4.0) * parameters
    return forward * (2 if checkpointing else 1) + backward


def lora_parameters(shape: Shape, rank: int) -> int:
    """Adapters of rank r on all linear layers of a GPT-2 block: (3+1)·d, d·d, d·4d, 4d·d matrices."""
    d = shape.width
    return shape.layers * rank * ((d + 3 * d) + (d + d) + (d + 4 * d) + (4 * d + d))


def memory(
    shape: Shape,
    *,
    batch_size: int,
    block_size: int,
    checkpointing: bool = False,
    lora_rank: int | None = None,
    precision: str = "bf16",
) -> dict[str, float]:
    """Bytes on each GPU, by what they are for; see the module's docstring."""
    full = precision == "fp32"
    trained = shape.parameters if lora_rank is None else lora_parameters(shape, lora_rank)
    frozen = 0 if lora_rank is None else shape.parameters
    tokens = batch_size * block_size
    layer = (66.0 if full else 34.0) * tokens * shape.width
    between = (4.0 if full else 2.0) * tokens * shape.width
    kept = between * shape.layers + layer if checkpointing else layer * shape.layers
    return {
        "weights and optimiser": 16.0 * trained + 4.0 * frozen,
        "activations": kept,
        "logits": (8.0 if full else 10.0) * tokens * shape.vocab,  # 16-bit, a copy in fp32, and its gradient
        "context": CONTEXT_BYTES,
    }


def estimate(
    shape: Shape,
    work: Work,
    *,
    on: Gpu | None = None,
    measured_tokens_per_second: float | None = None,
    utilisation: float = UTILISATION,
    checkpointing: bool = False,
    lora_rank: int | None = None,
    precision: str = "auto",
    assumptions: tuple[str, ...] = (),
) -> Estimate:
    """Put it together. Needs a GPU or a measured speed (of one process); raises SpecError without either."""
    precision = computes_in(precision, on)
    if measured_tokens_per_second is not None:
        if measured_tokens_per_second <= 0:
            raise SpecError("a measured speed must be greater than 0 tokens/s")
        speed, basis = measured_tokens_per_second * work.processes, "measured before"
    elif on is not None:
        if not 0 < utilisation <= 1:
            raise SpecError(f"utilisation must lie between 0 and 1 (got {utilisation})")
        flops = operations_per_token(shape.parameters, checkpointing=checkpointing, lora=lora_rank is not None)
        speed = on.peak(precision) * utilisation * work.processes / flops
        basis = f"computed from {on.name}'s data sheet at {utilisation:.0%} of its peak in {precision}, not measured"
    else:
        raise SpecError("an estimate needs a GPU's name or a measured speed in tokens/s")
    return Estimate(
        parameters=shape.parameters,
        work=work,
        tokens_per_second=speed,
        hours=work.total_tokens / speed / 3600,
        basis=basis,
        memory=memory(
            shape,
            batch_size=work.batch_size,
            block_size=work.block_size,
            checkpointing=checkpointing,
            lora_rank=lora_rank,
            precision=precision,
        ),
        gpu=on,
        assumptions=assumptions,
    )


def estimate_training(
    spec: TrainSpec,
    *,
    tokens: int | None = None,
    characters: int | None = None,
    block_size: int = 256,
    vocab_size: int = 8192,
    shape: Shape | None = None,
    gpu_name: str | None = None,
    measured_tokens_per_second: float | None = None,
    processes: int = 1,
) -> Estimate:
    """An estimate for a train spec. ``tokens`` of the dataset's training part, or the posts' ``characters``.

    What is not known is assumed, and said so in ``assumptions``. Raises SpecError when it cannot be told at all.
    """
    assumed: list[str] = []
    if tokens is None:
        if characters is None:
            raise SpecError("an estimate needs a dataset (its tokens) or the posts' characters")
        tokens = math.ceil(characters / CHARACTERS_PER_TOKEN)
        assumed.append(f"{CHARACTERS_PER_TOKEN:g} characters a token")
    shape = shape or known_shape(spec.model, vocab_size=vocab_size, block_size=block_size)
    epochs, batch_size = PRESETS[spec.preset, spec.model.startswith("scratch:")]
    if shape is None:
        raise SpecError(f"the size of model {spec.model!r} is not known here; give its number of parameters")
    if spec.epochs is None and spec.max_steps is None:
        assumed.append(f"all {epochs:g} epochs of preset {spec.preset}; early stopping may end it before")
    work = Work(
        tokens=tokens,
        epochs=spec.epochs or epochs,
        block_size=block_size,
        batch_size=spec.batch_size or batch_size,
        accumulation=spec.gradient_accumulation_steps or 1,
        processes=processes,
        max_steps=spec.max_steps,
    )
    on = gpu(gpu_name) if gpu_name else None
    if on is not None and not on.bf16 and spec.precision == "auto":
        assumed.append(f'fp32, for {on.name} has no bf16; train.precision = "fp16" would use its tensor cores')
    return estimate(
        shape,
        work,
        on=on,
        measured_tokens_per_second=measured_tokens_per_second,
        checkpointing=spec.gradient_checkpointing,
        lora_rank=spec.lora.r if spec.lora else None,
        precision=spec.precision,
        assumptions=tuple(assumed),
    )
