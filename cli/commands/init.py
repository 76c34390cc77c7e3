"""``bugurt init``: write a ``bugurt.toml`` to begin with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

HEAD = """\
# Settings of bugurt: defaults < this file < environment BUGURT_* < options.
# Secrets do not belong here: set BUGURT_S3_SECRET_ACCESS_KEY or use an AWS profile; `bugurt login` keeps Telegram's.

"""
LOCAL = """\
[cluster]
kind = "local"          # processes on this machine; "kubernetes": Jobs

[s3]
# Nothing here: an embedded S3 server over .bugurt/bucket.
{bucket}# endpoint = "https://s3.example.com"
# prefix = "my-channel"
# region = "us-east-1"
"""
KUBERNETES = """\
[cluster]
kind = "kubernetes"     # Jobs; "local": processes on this machine
namespace = "bugurt"
# registry = "registry.example.com/bugurt"      # where the images were pushed to; unset: loaded into all nodes
# image_pull_secret = "registry"
# queue = "bugurt"      # a Kueue LocalQueue

[cluster.train]
gpu = 1                 # 0: on CPUs
# cpu = "3"             # of 4 unless set: a node of 4 cores wants "2" or "3", for its own pods take some
# runtime_class = "nvidia"      # on k3s

[s3]
# The bucket must be there. No endpoint: AWS.
{bucket}# endpoint = "https://s3.example.com"                        # as this machine reaches it
# endpoint_in_cluster = "http://minio.storage.svc:9000"      # as pods reach it, where that differs
# ca_bundle = "ca.pem"          # of a server with a certificate of your own authority
# prefix = "my-channel"
# region = "us-east-1"
"""
STAGES = """\

[preprocess]
profile = "bugurt"      # or "plain", or --profile FILE.toml

[train]
# epochs = 3
# learning_rate = 5e-4

[generate]
count = 200
"""


def register(root: typer.Typer) -> None:
    """Add the command."""
    root.command("init")(init)


def init(
    folder: Annotated[Path, typer.Argument(help="Where to write it.")] = Path(),
    kubernetes: Annotated[bool, typer.Option("--kubernetes", help="For a cluster instead of this machine.")] = False,
    bucket: Annotated[str | None, typer.Option("--bucket", help="Name of the bucket.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a bugurt.toml."""
    from cli.output import next_commands, say
    from jobs.specs import ConfigError, SpecError

    path = folder / "bugurt.toml"
    if path.exists() and not force:
        raise ConfigError(f"{path} is there already; edit it, or give --force")
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}")
    # Names of buckets, as S3 and MinIO take them; anything else could also be no TOML.
    if bucket is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]{1,253}[A-Za-z0-9]", bucket, re.ASCII):
        raise SpecError(f"--bucket {bucket!r}: a bucket's name is of letters, digits, '-' and '.', and has at least 3")
    line = f'bucket = "{bucket}"\n' if bucket else '# bucket = "bugurt"\n'
    text = HEAD + (KUBERNETES if kubernetes else LOCAL).format(bucket=line) + STAGES
    path.write_text(text, encoding="utf-8")
    say(f"wrote {path}")
    if kubernetes:
        next_commands("bugurt install --s3-secret", "bugurt doctor", "bugurt submit pipeline --source EXPORT")
    else:
        next_commands("bugurt doctor", "bugurt submit pipeline --source EXPORT --wait")
