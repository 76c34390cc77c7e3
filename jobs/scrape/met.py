"""Which numbers a file has had so far: to tell a post from a newer version of one that came before."""

from __future__ import annotations

from array import array


class Met:
    """Counts numbers; eight bytes each as long as they ascend, as they do in an export."""

    def __init__(self) -> None:
        self._ascending = array("q")
        self._times: dict[int, int] | None = None  # once they do not

    def before(self, number: int) -> int:
        """How many times this number (of 64 bits) came before; it is counted from now on."""
        if self._times is None:
            if not self._ascending or number > self._ascending[-1]:
                self._ascending.append(number)
                return 0
            self._times = dict.fromkeys(self._ascending, 1)
            self._ascending = array("q")
        times = self._times.get(number, 0)
        self._times[number] = times + 1
        return times
