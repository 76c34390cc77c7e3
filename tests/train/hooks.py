"""What a test does to a training's process before it begins: the failures of other people's machines.

They are functions of a module because the forked process has to find them by name.
"""

from __future__ import annotations

from typing import Any


def memory_for_two_blocks() -> None:
    """A GPU that has room for two blocks: a larger batch raises what CUDA raises, in the forward pass."""
    import torch
    from transformers import GPT2LMHeadModel

    forward = GPT2LMHeadModel.forward

    def limited(self: Any, *args: Any, **kwargs: Any) -> Any:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if self.training and ids is not None and len(ids) > 2:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …"
            )
        return forward(self, *args, **kwargs)

    GPT2LMHeadModel.forward = limited


def no_memory_at_all() -> None:
    """Not even one block fits."""
    import torch
    from transformers import GPT2LMHeadModel

    forward = GPT2LMHeadModel.forward

    def refused(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.training:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …"
            )
        return forward(self, *args, **kwargs)

    GPT2LMHeadModel.forward = refused


def address_space_that_ends() -> None:
    """No more than 120 MiB beside what the process has when a batch comes: torch's own allocator fails."""
    import resource
    from pathlib import Path

    from transformers import GPT2LMHeadModel

    forward = GPT2LMHeadModel.forward
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = 0

    def bounded(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal most
        if not most:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + (120 << 20)
        # What comes after the last step has threads to start, which need room of their own.
        resource.setrlimit(resource.RLIMIT_AS, (most if self.training else hard, hard))
        return forward(self, *args, **kwargs)

    GPT2LMHeadModel.forward = bounded


def no_memory_for_the_model() -> None:
    """The weights alone are too large for the GPU."""
    import torch
    from transformers import Trainer

    def refused(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    Trainer._move_model_to_device = refused


def the_third_checkpoint_is_stuck() -> None:
    """Its upload never ends; the log tells when the training waits for it."""
    import threading
    from pathlib import Path

    from jobs.train import checkpoints

    upload, submit, settle = (getattr(checkpoints.Uploader, name) for name in ("_upload", "submit", "settle"))
    begun = submitted = 0

    def stuck(self: Any, folder: Path, step: int, best: Path | None) -> None:
        nonlocal begun
        begun += 1
        if begun == 3:
            threading.Event().wait()
        upload(self, folder, step, best)

    def counted(self: Any, *args: Any) -> None:
        nonlocal submitted
        submit(self, *args)
        submitted += 1

    def told(self: Any) -> None:
        if submitted == 3:
            checkpoints.log.info("waiting for the third checkpoint")
        settle(self)

    checkpoints.Uploader._upload, checkpoints.Uploader.submit, checkpoints.Uploader.settle = stuck, counted, told


def memory_ends_at_step_eight() -> None:
    """The batch fits at first and no more later, as with a longer post or a neighbour on the GPU."""
    import torch
    from transformers import GPT2LMHeadModel

    forward = GPT2LMHeadModel.forward
    calls = 0

    def limited(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if self.training:
            calls += 1
            if calls > 8 and len(kwargs["input_ids"]) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, *args, **kwargs)

    GPT2LMHeadModel.forward = limited


def weights_that_overflow() -> None:
    """At step 6 a weight becomes so large that its square overflows, as it does when a rate is far too high."""
    import torch
    from transformers import GPT2LMHeadModel

    forward = GPT2LMHeadModel.forward
    calls = 0

    def spoilt(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if self.training:
            calls += 1
            if calls == 6:
                with torch.no_grad():
                    self.transformer.h[0].mlp.c_fc.weight.fill_(3e38)
        return forward(self, *args, **kwargs)

    GPT2LMHeadModel.forward = spoilt


def compiled_by_nothing() -> None:
    """``torch.compile`` traces and differentiates as ever, but runs what it traced without compiling it."""
    import torch

    compiled = torch.compile

    def traced(*args: Any, **kwargs: Any) -> Any:
        return compiled(*args, **{**kwargs, "backend": "aot_eager"})

    torch.compile = traced


def signal_in_the_middle_of_step_six() -> None:
    """SIGTERM while the second of four batches of the sixth step is computed."""
    import os
    import signal

    from transformers import GPT2LMHeadModel

    forward = GPT2LMHeadModel.forward
    calls = 0

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if self.training:
            calls += 1
            assert calls <= 22, "it went on with the step"
            if calls == 22:
                os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, *args, **kwargs)

    GPT2LMHeadModel.forward = interrupted


def signal_in_the_first_step() -> None:
    """SIGTERM while the first of its batches is computed."""
    import os
    import signal

    from transformers import GPT2LMHeadModel

    forward = GPT2LMHeadModel.forward

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.training:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, *args, **kwargs)

    GPT2LMHeadModel.forward = interrupted


def signal_in_the_warm_start() -> None:
    """SIGTERM in its third step; there must be no fourth."""
    import os
    import signal

    from jobs.train.warm_start import Fit

    step = Fit.step
    calls = 0

    def interrupted(self: Fit, done: float) -> float:
        nonlocal calls
        calls += 1
        assert calls <= 3, "it went on"
        if calls == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, done)

    Fit.step = interrupted  # type: ignore[method-assign]


def dropout_is_told() -> None:
    """Each step logs its dropout, and how often the posts were seen before it."""
    import logging

    import torch

    from jobs.train.trainer import PostTrainer

    forward = PostTrainer.forward

    def told(self: Any, model: Any, inputs: Any) -> Any:
        (rate,) = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
        if model.training:
            passes = self.epochs(self.state.global_step)
            logging.getLogger("jobs.train").info("dropout %.1f after %.2f passes", rate, passes)
        return forward(model, inputs)

    PostTrainer.forward = told  # type: ignore[assignment, method-assign]
