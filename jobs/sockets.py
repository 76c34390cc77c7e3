"""A place for multiprocessing's sockets, whatever the folder for temporary files is called.

multiprocessing puts Unix sockets below ``TMPDIR``, and the path of one may have 107 bytes only. On one machine
``TMPDIR`` is a folder of the Job below the user's project, which may well be longer.
"""

from __future__ import annotations

import multiprocessing.util
import os
import tempfile
from pathlib import Path

_ROOM = 60  # bytes that are left for what multiprocessing appends, with a margin


def make_room() -> None:
    """See to it that multiprocessing's sockets get paths that are short enough; cheap, and needed but once.

    A long folder is then named through this process's descriptor of it. What is made there is removed with the
    folder, as it would be without.
    """
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) <= 107 - _ROOM or not Path("/proc/self/fd").is_dir():
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # open for as long as this process lives
    before, tempfile.tempdir = tempfile.tempdir, f"/proc/{os.getpid()}/fd/{descriptor}"
    try:
        multiprocessing.util.get_temp_dir()  # which it makes once and keeps
    finally:
        tempfile.tempdir = before
