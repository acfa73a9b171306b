"""Which of several processes this one is, where a launcher started several (torchrun, accelerate launch).

    this_process()   ->  Place(rank=0, world=1)        alone
                         Place(rank=3, world=8)        the fourth of eight

Launchers say so in the environment, before any of them has a connection to the others.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """This is number `rank` (0 is the first) of `world` processes, and number `local` on its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this one writes what is written once."""
        return self.rank == 0


def this_process() -> Place:
    """The place of this process."""
    rank, world, local = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Place(rank, world or 1, local)
