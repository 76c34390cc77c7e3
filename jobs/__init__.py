"""The data plane: what runs inside the containers."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("bugurt")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
