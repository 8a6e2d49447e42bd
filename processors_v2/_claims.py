"""The claims of get_next_document, which the later calls of the same tracker act for. No I/O."""

import uuid
from collections import OrderedDict

# What nobody ever closes is forgotten at last; its lease ends by itself.
_MOST = 10_000


class ClaimIds:
    """Claim ids by document id and stage name; may be shared by threads.

    A claim is there to be started once: two callers who start the same stage must not both be told that it is theirs.
    """

    def __init__(self) -> None:
        self._all: OrderedDict[tuple[str, str], uuid.UUID] = OrderedDict()
        self._unstarted: dict[tuple[str, str], uuid.UUID] = {}

    def remember(self, document: str, stage: str, claim_id: uuid.UUID) -> None:
        """Keep a claim."""
        self._all[document, stage] = self._unstarted[document, stage] = claim_id
        if len(self._all) > _MOST:
            oldest, _ = self._all.popitem(last=False)
            self._unstarted.pop(oldest, None)

    def of(self, document: str, stage: str) -> uuid.UUID | None:
        """Return the claim to act for, or None."""
        return self._all.get((document, stage))

    def start(self, document: str, stage: str) -> uuid.UUID | None:
        """Return the claim to start the stage with, once."""
        return self._unstarted.pop((document, stage), None)

    def start_later(self, document: str, stage: str, claim_id: uuid.UUID) -> None:
        """Take back a start that did not come about."""
        self._unstarted[document, stage] = claim_id

    def take(self, document: str, stage: str) -> uuid.UUID | None:
        """Return the claim to start the stage with, once; whoever takes it acts for it from now on."""
        claim_id = self.start(document, stage)
        self.forget(document, stage, claim_id)
        return claim_id

    def forget(self, document: str, stage: str, claim_id: uuid.UUID | None) -> None:
        """Forget a claim that is over."""
        if claim_id is not None and self._all.get((document, stage)) == claim_id:
            self._all.pop((document, stage), None)
            self._unstarted.pop((document, stage), None)
