"""Copy a hub model into the bucket, once: ``python -m jobs.train.mirror --model OWNER/NAME [--revision R]``.

From then on training needs no internet: the ``model`` artefact holds the weights in safetensors, the configuration
and the tokenizer. Weights that the hub has as a pickle only are read with ``weights_only`` (nothing in them is run)
and written as safetensors; no pickle ever gets into the bucket. The process is a stage in all but name: the bucket
from ``BUGURT_S3_*``, a lease, progress and log in ``runs/RUN/mirror/``, the stages' exit codes.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, Field

from jobs.specs import BugurtError, ConfigError, DataError, StageSpec, canonical_json
from jobs.stage import StageContext
from jobs.stage import main as stage_main

WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")
SMALL = ("*.json", "*.txt", "*.model", "README.md", "LICENSE*")


def _hub_name(text: str) -> str:
    if not re.fullmatch(r"([\w.-]+/)?[\w.-]+", text):
        raise ValueError("give a model of the hub as OWNER/NAME")
    return text


class MirrorSpec(StageSpec):
    """Copy a model of the Hugging Face hub into the bucket."""

    stage: Literal["mirror"] = "mirror"
    model: Annotated[str, AfterValidator(_hub_name)] = Field(min_length=1, max_length=200, description="OWNER/NAME")
    revision: str = Field("main", min_length=1, max_length=100, description="branch, tag or commit")

    def identity(self) -> dict[str, Any]:
        """What the id is made of; ``submit`` makes it, too, to see whether a hub model is mirrored."""
        return {"model": self.model, "revision": self.revision}


def run(ctx: StageContext[MirrorSpec]) -> None:
    """Fetch, convert, commit. Raises ConfigError when the hub cannot give the model."""
    from jobs.train.models import explain_loading

    spec = ctx.spec
    ctx.progress.update(message=f"fetching {spec.model}")
    try:
        folder, commit = _fetch(spec, ctx.workdir / "hub")
        ctx.check_stop()
        ctx.progress.update(message="converting to safetensors")
        facts = _convert(folder, ctx.workdir / "model")
    except BugurtError:
        raise
    except OSError as error:
        if error.errno is not None and error.filename is not None:
            raise  # the disk, not the hub
        raise explain_loading(error, spec.model, spec.revision, local=False) from error
    except Exception as error:  # the hub's client raises some thirty kinds
        raise explain_loading(error, spec.model, spec.revision, local=False) from error
    ctx.check_stop()
    ctx.progress.update(message="uploading")
    writer = ctx.writer()
    writer.put_folder(ctx.workdir / "model")
    info = {"name": spec.model, "revision": spec.revision, "commit": commit, **facts}
    ctx.commit(writer, counts={"parameters": facts["parameters"]}, info=info)
    ctx.log.info("%s@%s is %s: train with it by 'base_model'", spec.model, commit[:12], ctx.ref)


def _fetch(spec: MirrorSpec, cache: Path) -> tuple[Path, str]:
    """Download what is needed of the repository; returns its folder and the commit's hash."""
    from huggingface_hub import HfApi, snapshot_download

    found = HfApi().model_info(spec.model, revision=spec.revision, files_metadata=False)
    names = [s.rfilename for s in found.siblings or []]
    has_safetensors = any(n in ("model.safetensors", "model.safetensors.index.json") for n in names)
    if not has_safetensors and not any(n in ("pytorch_model.bin", "pytorch_model.bin.index.json") for n in names):
        raise ConfigError(f"{spec.model} has no weights for PyTorch (model.safetensors or pytorch_model.bin)")
    commit = str(found.sha)
    folder = snapshot_download(
        spec.model,
        revision=commit,
        cache_dir=cache,
        allow_patterns=[*SMALL, *(WEIGHTS if has_safetensors else PICKLES)],
    )
    return Path(folder), commit


def _convert(folder: Path, out: Path) -> dict[str, Any]:
    """Load the causal model and its tokenizer and write them as safetensors; returns facts for the manifest."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from jobs.train.loop import quiet_transformers

    quiet_transformers()
    model, report = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype="auto",
        trust_remote_code=False,
        local_files_only=True,
        weights_only=True,
        output_loading_info=True,
    )
    missing = sorted(report.get("missing_keys", ()))
    if missing:
        raise DataError(f"this is no whole causal language model: the weights lack {missing[0]}")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    for name in ("README.md", "LICENSE", "LICENSE.txt"):
        if (folder / name).is_file():
            (out / name).write_bytes((folder / name).read_bytes())
    return {
        "architecture": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "pickled_at_the_hub": not any(folder.glob("*.safetensors")),
    }


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.train.mirror", description=__doc__)
    parser.add_argument("--model", required=True, help="OWNER/NAME on the hub")
    parser.add_argument("--revision", default="main", help="branch, tag or commit")
    parser.add_argument("--force", action="store_true", help="fetch it again although the artefact is there")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and debug messages")
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    spec = canonical_json({"stage": "mirror", "model": options.model, "revision": options.revision})
    flags = [f"--{name}" for name in ("force", "debug") if getattr(options, name)]
    stage_main(MirrorSpec, run, argv=["--spec", spec, *flags], description=__doc__ or "")


if __name__ == "__main__":
    main()
