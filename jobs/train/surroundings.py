"""What a training finds on its machine: how numbers are computed, whether they can be compiled, when memory ends."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from jobs.specs import ConfigError, TrainSpec

if TYPE_CHECKING:
    import torch

#: What allocators and libraries say for want of memory, besides what accelerate knows of.
_NO_MEMORY = ("bad_alloc", "out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED", "create a memory object")


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory did not suffice, the accelerator's or the machine's."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return bool(should_reduce_batch_size(error)) or any(words in str(error) for words in _NO_MEMORY)


def release_memory() -> None:
    """Give back what the accelerator's allocator holds in pieces that a smaller batch might not fit."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def memory_mib() -> int:
    """Peak memory of this process: the accelerator's where there is one, else the resident set's; MiB."""
    import torch

    return int(torch.cuda.max_memory_allocated() >> 20) if torch.cuda.is_available() else resident_mib()


def resident_mib() -> int:
    """Peak resident memory of this process, MiB.

    Linux's VmHWM: ``getrusage`` counts what the parent held when it started us, too.
    """
    import resource
    from pathlib import Path

    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) >> 10
    except OSError:
        pass  # another system
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak >> (20 if sys.platform == "darwin" else 10))


def precision_of(spec: TrainSpec) -> str:
    """``fp32``, ``bf16`` or ``fp16``. Under ``auto`` CPUs compute in fp32: bf16 is slower on most of them."""
    import torch

    gpu = torch.cuda.is_available()
    if spec.precision == "auto":
        return "bf16" if gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if spec.precision == "fp16" and not gpu:
        raise ConfigError("precision fp16 needs a GPU; take 'auto', 'fp32' or 'bf16'")
    return spec.precision


def check_compiling() -> None:
    """Compile a small function, as ``torch.compile`` will compile the model's.

    Raises ConfigError where that does not work: it needs a C++ compiler on CPUs, a C compiler and triton on GPUs.
    """
    import torch

    def small(x: torch.Tensor) -> torch.Tensor:
        return (2 * x + 1).relu()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        compiled: Any = torch.compile(small)
        compiled(torch.ones(8, device=device))
    except Exception as error:  # dynamo, inductor, triton and the compilers raise what they like
        cause = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
        raise ConfigError(
            f"torch_compile does not work here ({cause}): install a C++ compiler (g++), or leave torch_compile out"
        ) from error
