"""``bugurt mirror``: copy a hub model into the bucket once; from then on nothing asks the hub for it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Annotated

import typer

from cli import options
from cli.options import OPTIONS


def register(root: typer.Typer) -> None:
    """Add the command."""
    root.command("mirror")(mirror)


def mirror(
    model: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="A causal model of the Hugging Face hub.")],
    revision: Annotated[str, typer.Option("--revision", help="Branch, tag or commit.")] = "main",
    force: Annotated[bool, typer.Option("--force", help="Fetch it again.")] = False,
) -> None:
    """Download a hub model on this machine, convert it to safetensors, and keep it in the bucket."""
    from importlib.util import find_spec

    from cli.assemble import mirrored_ref
    from cli.output import next_commands, say
    from cli.places import open_store, s3_env
    from jobs.specs import ConfigError

    if find_spec("torch") is None or find_spec("transformers") is None:
        raise ConfigError("mirroring needs torch and transformers on this machine: pip install 'bugurt[train]'")
    settings = options.settings()
    open_store(settings, making=True)
    command = [sys.executable, "-m", "jobs.train.mirror", "--model", model, "--revision", revision]
    command += ["--force"] * force + ["--debug"] * OPTIONS.debug
    done = subprocess.run(command, env={**os.environ, **s3_env(settings)}, check=False)
    if done.returncode != 0:
        raise typer.Exit(done.returncode if done.returncode > 0 else 70)
    ref = mirrored_ref(model, revision)
    say(f"{model} is {ref}")
    if not OPTIONS.quiet:
        next_commands(f"bugurt submit pipeline --source EXPORT --model {model} --wait")
