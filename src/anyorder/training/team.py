"""The processes of a run, what they tell each other, and their parts of tensors.

Alone, a process is a team of one and nothing here touches torch.distributed. Messages are JSON
text in tensors; torch's own functions for objects would pickle them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist

from anyorder.core.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Team:
    """A process among those of its run."""

    rank: int = 0
    size: int = 1
    tensor: int = 1
    """How many neighbours share every matrix; they work on the same sequences."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where messages lie."""
    mesh: DeviceMesh | None = None
    """[data, tensor]; None: alone."""

    @property
    def leads(self) -> bool:
        """Does this process write the files?"""
        return self.rank == 0

    @property
    def num_shares(self) -> int:
        """Into how many shares a step's sequences are dealt."""
        return self.size // self.tensor

    @property
    def share(self) -> int:
        """Which of them is this process's."""
        return self.rank // self.tensor

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, a JSON object, in the order of ranks; all must ask."""
        if self.size == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(text)], device=self.device))
        sizes = [int(length) for length in lengths]
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(text)] = text
        texts = [torch.empty_like(padded, device=self.device) for _ in range(self.size)]
        dist.all_gather(texts, padded.to(self.device))
        pairs = zip(texts, sizes, strict=True)
        return [json.loads(bytes(found[:size].tolist())) for found, size in pairs]

    def gather_shares(self, value: Any) -> list[Any]:
        """One value for each share of the sequences, from the first process that works on it."""
        return self.gather(value)[:: self.tensor]

    def lead(self, action: Callable[[], T]) -> T | None:
        """Have the leading process do something while the others wait; a UserError is everybody's.
        The leader gets the result."""
        result, message = None, None
        if self.leads:
            try:
                result = action()
            except UserError as error:
                if self.size == 1:
                    raise
                message = str(error)
        message = self.gather(message)[0]
        if message is not None:
            raise UserError(message)
        return result


@torch.no_grad()
def whole(tensor: torch.Tensor, order: torch.Tensor | None = None) -> torch.Tensor:
    """A parameter, or a state of one, as a process alone would have it; all that have parts of it
    must ask. `order`: which of its rows comes where in the parts."""
    if is_spread(tensor):
        tensor = cast("DTensor", tensor).full_tensor()
    if order is not None:
        tensor = tensor[order.argsort().to(tensor.device)]
    return tensor


@torch.no_grad()
def part_of(
    tensor: torch.Tensor, like: torch.Tensor, order: torch.Tensor | None = None
) -> torch.Tensor:
    """The reverse: this process's part of a whole tensor, spread like a parameter."""
    tensor = tensor.to(like.device)
    if order is not None:
        tensor = tensor[order.to(tensor.device)]
    if is_spread(like):
        from torch.distributed.tensor import distribute_tensor

        spread = cast("DTensor", like)
        return distribute_tensor(tensor, spread.device_mesh, spread.placements, src_data_rank=None)
    return tensor


def is_spread(tensor: torch.Tensor) -> bool:
    """Are its parts with several processes? (To import DTensor takes as long as all of torch.)"""
    return hasattr(tensor, "device_mesh")
