"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) by peft: small trained matrices beside frozen weights."""

from __future__ import annotations

from typing import Any

from jobs.specs import LoraSettings, SpecError


def adapted(model: Any, settings: LoraSettings, name: str) -> Any:
    """The model with adapters on ``target_modules``, by default on all linear layers but the head.

    ``name``: what the adapter's configuration calls the model. Raises SpecError when there is no such module.
    """
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers.pytorch_utils import Conv1D

    targets = list(settings.target_modules) if settings.target_modules else "all-linear"
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in model.modules()),  # GPT-2 stores its matrices transposed
    )
    try:
        made = get_peft_model(model, config)
    except ValueError as error:
        names = ", ".join(sorted({n.rpartition(".")[2] for n, m in model.named_modules() if hasattr(m, "weight")})[:12])
        raise SpecError(f"the spec: lora.target_modules: the model has no such modules; it has {names}") from error
    for one in made.peft_config.values():
        one.base_model_name_or_path = name  # the folder that it was loaded from is gone tomorrow
    return made
