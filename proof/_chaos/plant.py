"""Faults to plant into the SQL, so that one can see whether the judge finds them."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Break:
    """A fault to plant.

    Attributes:
        function: in which SQL function.
        right: regular expression of what stands there.
        wrong: what to put in its place.
    """

    function: str
    right: str
    wrong: str

    def in_file(self, text: str) -> str | None:
        """Return the file with the fault, or None where it does not define the function."""
        start = text.find(f"create or replace function krai_core.{self.function}(")
        if start < 0:
            return None
        end = text.index("\n$$;", start)
        broken, count = re.subn(self.right, self.wrong, text[start:end])
        assert count, f"{self.function} holds no {self.right!r} any more: plant the fault where it is done now"
        return text[:start] + broken + text[end:]
