"""Answers for rows of networks that draw patches of tokens instead of giving logits.

What is random comes from the request's seed and the row's place, so a patch does not depend on its
company. All rows that want equally many draws are drawn in one call of the network.

Shape suffixes: M rows, S draws of each, Z width of noise, W width, K tokens of a patch.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from anyorder.core.vectors import PatchNetwork
from anyorder.engine.roles import Role
from anyorder.sampling.draws import uniform, uniforms
from anyorder.sampling.patches import choose_patch
from anyorder.sampling.row import RowResult

if TYPE_CHECKING:
    from anyorder.engine.runner import Question

_DRAWS_AT_A_TIME = 1024
"""Bounds memory where many rows want many draws."""


def draw_patches(role: Role, questions: Seq[Question]) -> None:
    """Draw the patches that follow these rows and store them in their jobs."""
    network = cast(PatchNetwork, role.network)
    for num_draws, part in _by_draws(questions):
        noise_MSZ = np.stack(
            [
                uniforms(num_draws * network.noise_width, *_key(question)).reshape(num_draws, -1)
                for question in part
            ]
        )
        hidden_MW = torch.stack([question.hidden_W for question in part])
        tokens_MSK = network.next_patches(
            hidden_MW, torch.from_numpy(noise_MSZ - 0.5).to(hidden_MW)
        )
        for question, draws_SK in zip(part, tokens_MSK.cpu().numpy(), strict=True):
            request = question.job.request
            wanted = request.outputs.patch
            assert wanted is not None, "only such questions come here"
            patch = choose_patch(
                draws_SK,
                temperature=(request.sampling or question.job.run.request).temperature,
                begins=wanted.begins,
                uniform=uniform(*_key(question)),
            )
            question.job.rows[question.row] = RowResult(patch=patch)


def _by_draws(questions: Seq[Question]) -> Iterator[tuple[int, list[Question]]]:
    """Questions that want equally many draws, not too many at a time."""
    groups: dict[int, list[Question]] = {}
    for question in questions:
        wanted = question.job.request.outputs.patch
        assert wanted is not None, "only such questions come here"
        groups.setdefault(wanted.candidates, []).append(question)
    for num_draws, group in groups.items():
        count = max(1, _DRAWS_AT_A_TIME // num_draws)
        for first in range(0, len(group), count):
            yield num_draws, group[first : first + count]


def _key(question: Question) -> tuple[int, ...]:
    """Seed and counter key of what is drawn after a row."""
    job, request = question.job, question.job.request
    position = request.start + job.depths[question.row] + 1
    stream = zlib.crc32((request.stream or request.role).encode())
    return (request.sampling or job.run.request).seed, job.run.choice, stream, position
