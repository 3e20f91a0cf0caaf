"""One pass of one model: pack, run, and turn the rows that need it into answers."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch

from anyorder.engine.batch import pack
from anyorder.engine.roles import Role
from anyorder.engine.run import Job
from anyorder.engine.scheduler import Piece
from anyorder.sampling.guidance import above_floor, classifier_free
from anyorder.sampling.sampler import Row, sample

MAX_LOGIT_ROWS = 128
"""Rows of logits made at once; bounds memory when a whole prompt is scored."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """One row of a pass that somebody wants an answer to."""

    job: Job
    row: int
    """Offset into the job's own request."""
    hidden_W: torch.Tensor
    """Its final hidden state; a view."""


def run_pass(role: Role, pieces: Seq[Piece]) -> list[Question]:
    """Run the pieces on the role's model; their keys and values are cached when this returns."""
    batch, ordered = pack(pieces, role.store, role.network.device)
    role.pool.prepare(batch)
    hidden_NW = role.network.hidden(batch, role.pool)
    questions, first = [], 0
    for piece in ordered:
        job = piece.job
        role.store.commit(job.sequence, piece.tokens, piece.attention)
        for row in piece.rows:
            own = piece.start - job.request.start + row
            questions.append(Question(job=job, row=own, hidden_W=hidden_NW[first + row]))
        if not piece.replay:
            job.num_done += len(piece.tokens)
        # A prompt is final from the start; other tokens once the method has moved past them.
        role.store.publish(job.sequence, max(len(job.run.prompt), job.request.start))
        first += len(piece.tokens)
    return questions


def answer(role: Role, questions: Seq[Question]) -> None:
    """Compute what was asked of these rows and store it in their jobs.

    Rows of contrasted jobs only leave their logits; `contrast` answers them.
    """
    for first in range(0, len(questions), MAX_LOGIT_ROWS):
        part = questions[first : first + MAX_LOGIT_ROWS]
        logits_MV = role.network.logits(torch.stack([q.hidden_W for q in part]))
        now: list[int] = []
        for index, question in enumerate(part):
            job, row = question.job, question.row
            if job.request.outputs.hidden:
                job.hidden[row] = question.hidden_W.clone()
            if job.request.outputs.logits:
                job.logits[row] = logits_MV[index].clone()
            if job.is_twin:
                job.held[row - job.row_shift] = logits_MV[index : index + 1]
            elif job.twin is not None and row >= job.first_contrasted_row:
                job.held[row] = logits_MV[index : index + 1]
            else:
                now.append(index)
        if len(now) < len(part):
            logits_MV = logits_MV[now]
        rows = [_sampler_row(part[index].job, part[index].row) for index in now]
        for index, result in zip(now, sample(logits_MV, rows), strict=True):
            part[index].job.rows[part[index].row] = result


def contrast(jobs: Iterable[Job]) -> None:
    """Answer the rows whose conditional and unconditional logits have both arrived."""
    for job in jobs:
        if job.twin is None:
            continue
        for row in [row for row in job.held if row in job.twin.held]:
            conditional_1V, other_1V = job.held.pop(row), job.twin.held.pop(row)
            request = job.run.request
            processed_1V = classifier_free(conditional_1V, other_1V, request.guidance_scale)
            if request.contrast_floor:
                processed_1V = above_floor(processed_1V, conditional_1V, request.contrast_floor)
            (job.rows[row],) = sample(conditional_1V, [_sampler_row(job, row)], processed_1V)


def _sampler_row(job: Job, row: int) -> Row:
    """Everything the sampler must know of one row of a request."""
    request, run = job.request, job.run
    outputs = request.outputs
    position = request.start + row + 1
    history: Seq[int] = ()
    if outputs.token or outputs.best:
        history = job.sequence.tokens
        if position < len(history):
            history = history[:position]
    return Row(
        request=request.sampling or run.request,
        outputs=outputs,
        history=history,
        num_prompt=len(run.prompt),
        draw=(run.choice, zlib.crc32(request.role.encode()), position),
        end_tokens=run.prepared.end_tokens,
        banned=run.prepared.banned,
        guide=run.guide,
        given=None if outputs.given is None else outputs.given[job.row_order[row]],
    )
