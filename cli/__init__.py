"""The control plane: the command line, the driver, and the clusters that it submits to."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("bugurt")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
