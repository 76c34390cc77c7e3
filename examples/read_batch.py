"""Read artefacts from Python: ``python examples/read_batch.py [KIND/ID]`` in a project's folder.

Without an argument it lists what is in the bucket; with one it prints the texts of a batch, or a manifest's counts.
"""

from __future__ import annotations

import json
import sys

from cli.places import s3_env
from cli.settings import load
from jobs.artifacts import ArtifactStore
from jobs.specs import BugurtError


def main() -> None:
    # A stage's own way is ArtifactStore.from_env() with BUGURT_S3_*; here bugurt.toml says where the bucket is.
    store = ArtifactStore.from_env(s3_env(load()))
    if len(sys.argv) < 2:
        for manifest in store.list():
            print(manifest.ref, manifest.counts)
        return
    manifest = store.manifest(store.resolve(sys.argv[1]))
    print(manifest.ref, manifest.counts)
    for entry in manifest.matching("part-*.jsonl"):
        with store.open(manifest.ref, entry) as lines:  # verified while it is read
            for line in lines:
                print(json.loads(line)["text"], end="\n\n")


if __name__ == "__main__":
    try:
        main()
    except BugurtError as error:
        sys.exit(f"error: {error}")
