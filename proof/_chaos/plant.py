"""Faults to plant into the SQL, so that one can see whether the judge finds them."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Break:
    """A fault to plant.

    Attributes:
        function: in which SQL function; of schema krai_core unless another is named.
        right: regular expression of what stands there.
        wrong: what to put in its place.
    """

    function: str
    right: str
    wrong: str

    def definitions(self, text: str) -> tuple[str, str] | None:
        """Return the statement that makes the function, as it stands in a file and with the fault.

        None where the file does not define the function.
        """
        name = self.function if "." in self.function else f"krai_core.{self.function}"
        start = text.find(f"create or replace function {name}(")
        if start < 0:
            return None
        end = text.index("\n$$;", start) + len("\n$$;")
        sound = text[start:end]
        broken, count = re.subn(self.right, self.wrong, sound)
        assert count, f"{name} holds no {self.right!r} any more: plant the fault where it is done now"
        return sound, broken
