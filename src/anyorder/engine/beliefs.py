"""What a network believed of a canvas, for its next pass to read (`Outputs.belief`).

Shape suffixes: M rows, W width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import cast

import torch

from anyorder.core.batch import SelfConditionedNetwork
from anyorder.engine.roles import Role
from anyorder.engine.run import Job


def believe(role: Role, rows: Seq[tuple[Job, int]], logits_MV: torch.Tensor) -> None:
    """Store the beliefs that were asked for in their jobs, by row."""
    asked = [index for index, (job, _) in enumerate(rows) if job.request.outputs.belief is not None]
    if not asked:
        return
    network = cast(SelfConditionedNetwork, role.network)
    temperatures = [rows[index][0].request.outputs.belief for index in asked]
    scores_MV = logits_MV[asked] / torch.tensor(temperatures, device=logits_MV.device)[:, None]
    shares_MV = scores_MV.softmax(-1)
    entropies = torch.special.entr(shares_MV).sum(-1).tolist()
    embeddings_MW = network.mean_embedding(shares_MV)
    for index, entropy, embedding_W in zip(asked, entropies, embeddings_MW, strict=True):
        job, row = rows[index]
        job.beliefs[row] = entropy, embedding_W
