"""Answers for rows of networks that draw patches of tokens instead of giving logits.

What is random comes from the request's seed and the row's place, so a patch does not depend on its
company. All rows that want equally many draws are drawn in one call of the network, or in a few,
and counted in one.

Shape suffixes: M rows, S draws of each, Z width of noise, N numbers of it for all draws of a row,
W width, K tokens of a patch.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from anyorder.core.forward import PatchDraw
from anyorder.core.vectors import PatchNetwork
from anyorder.engine.roles import Role
from anyorder.sampling.draws import uniform, uniforms
from anyorder.sampling.patches import choose_patches
from anyorder.sampling.row import RowResult

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anyorder.engine.runner import Question

_DRAWS_AT_A_TIME = 1024
"""Bounds memory where many rows want many draws."""


def draw_patches(role: Role, questions: Seq[Question]) -> None:
    """Draw the patches that follow these rows and store them in their jobs."""
    groups: dict[int, list[Question]] = {}
    for question in questions:
        groups.setdefault(_wanted(question).candidates, []).append(question)
    for num_draws, group in groups.items():
        keys = [_key(question) for question in group]
        patches = choose_patches(
            _draws(role, [question.hidden_W for question in group], keys, num_draws),
            temperatures=[
                (question.job.request.sampling or question.job.run.request).temperature
                for question in group
            ],
            begins=[_wanted(question).begins for question in group],
            uniforms=[uniform(*key) for key in keys],
        )
        for question, patch in zip(group, patches, strict=True):
            question.job.rows[question.row] = RowResult(patch=patch)


def _draws(
    role: Role, hidden: list[torch.Tensor], keys: Seq[tuple[int, ...]], num_draws: int
) -> NDArray[np.int64]:
    """[M, S, K] draws of the patches that follow, not too many at a time."""
    network = cast(PatchNetwork, role.network)
    at_a_time = max(1, _DRAWS_AT_A_TIME // num_draws)
    found = list[torch.Tensor]()
    for first in range(0, len(hidden), at_a_time):
        hidden_MW = torch.stack(hidden[first : first + at_a_time])
        noise_MN = uniforms(num_draws * network.noise_width, keys[first : first + at_a_time])
        noise_MSZ = noise_MN.reshape(len(noise_MN), num_draws, -1) - 0.5
        found.append(network.next_patches(hidden_MW, torch.from_numpy(noise_MSZ).to(hidden_MW)))
    tokens_MSK: NDArray[np.int64] = torch.cat(found).cpu().numpy()
    return tokens_MSK


def _wanted(question: Question) -> PatchDraw:
    wanted = question.job.request.outputs.patch
    assert wanted is not None, "only such questions come here"
    return wanted


def _key(question: Question) -> tuple[int, ...]:
    """Seed and counter key of what is drawn after a row."""
    job, request = question.job, question.job.request
    position = request.start + job.depths[question.row] + 1
    stream = zlib.crc32((request.stream or request.role).encode())
    return (request.sampling or job.run.request).seed, job.run.choice, stream, position
