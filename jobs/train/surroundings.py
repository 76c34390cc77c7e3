"""What a training finds on its machine: how numbers are computed, whether they can be compiled, when memory ends."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from jobs import gpus
from jobs.specs import ConfigError, TrainSpec

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

#: What allocators and libraries say for want of memory, besides what accelerate knows of.
_NO_MEMORY = ("bad_alloc", "out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED", "create a memory object")

#: What oneDNN says when its code or scratch space finds no room; of what it cannot do it says "primitive descriptor".
_NO_PRIMITIVE = "could not create a primitive"

#: What CUDA says where a library has no code for the GPU, or only code that the driver cannot translate for it.
_NO_KERNEL = ("no kernel image", "invalid device function", "unsupported toolchain")


def check_gpus() -> None:
    """See to it that a training does not fall to the CPU unnoticed, a hundred times slower.

    Raises ConfigError where the Job holds GPUs that torch cannot use; a machine of one's own that has one is told.
    """
    import torch

    if torch.cuda.is_available():
        return
    cuda: str | None = torch.version.cuda
    if gpus.held():
        raise gpus.unseen("train", _torch(), cuda)
    if gpus.in_sight():
        log.warning(
            "there is a GPU here, but %s cannot use it, so the CPU trains: %s",
            _torch(),
            gpus.driver_for(cuda) if cuda else "it is built for CPUs; install one for CUDA",
        )


def _torch() -> str:
    """torch and its version, without the name of the build."""
    import torch

    return f"torch {torch.__version__.partition('+')[0]}"


def check_kernels() -> None:
    """Have the GPU, where there is one, compute something small.

    CUDA tells of GPUs, and torch calls them available, that are older than those which this build has code for.
    Raises ConfigError for them, and where the GPU has no memory left at all.
    """
    import torch

    if not torch.cuda.is_available():
        return
    try:
        torch.ones(8, device="cuda").sum().item()
    except RuntimeError as error:
        name = torch.cuda.get_device_name()
        if out_of_memory(error):
            raise ConfigError(f"the GPU ({name}) has no memory left: end what else runs on it") from error
        if not any(words in str(error) for words in _NO_KERNEL):
            raise
        major, minor = torch.cuda.get_device_capability()
        raise ConfigError(
            f"{_torch()} (CUDA {torch.version.cuda}) has no code for this GPU ({name}, compute capability "
            f"{major}.{minor}): take a torch for an older CUDA (TORCH_INDEX when the train image is built), or set "
            "gpu = 0 in [cluster.train]"
        ) from error


def device_of(world: int) -> str:
    """What ``world`` processes, of which this is one, compute on, in words."""
    import torch

    if torch.cuda.is_available():
        found = str(torch.cuda.get_device_name())
    else:
        threads = torch.get_num_threads()
        found = f"CPU, {threads} thread{'s' * (threads > 1)}"
    return found if world == 1 else f"{world} processes with each {found}"


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory did not suffice, the accelerator's or the machine's."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    said = str(error)
    return bool(should_reduce_batch_size(error)) or said == _NO_PRIMITIVE or any(words in said for words in _NO_MEMORY)


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
    """``fp32``, ``bf16`` or ``fp16``; under ``auto`` bf16 where the hardware has it, else fp32."""
    import torch

    if spec.precision == "auto":
        return "bf16" if computes_bf16() else "fp32"
    if spec.precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("precision fp16 needs a GPU; take 'auto', 'fp32' or 'bf16'")
    return spec.precision


def computes_bf16() -> bool:
    """Whether the GPU, or where there is none the processor, multiplies bfloat16 itself: others are slower by it.

    Of processors that is measured for x86-64 with AVX-512's bf16, and taken to hold for AMX.
    """
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


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
