"""One pass of one model: pack, run, and turn the rows that need it into answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F

from anyorder.cache.pool import Pool
from anyorder.core.batch import EditingNetwork, LinkedNetwork
from anyorder.core.forward import Outputs
from anyorder.engine.batch import pack
from anyorder.engine.beliefs import believe
from anyorder.engine.checks import check_drafts, contrast, sampler_row
from anyorder.engine.patches import draw_patches
from anyorder.engine.ragged import fits
from anyorder.engine.roles import Role
from anyorder.engine.run import Job
from anyorder.engine.scheduler import Piece
from anyorder.sampling.ratios import clean_logits
from anyorder.sampling.row import RowResult
from anyorder.sampling.sampler import sample

MAX_LOGIT_ROWS = 128
"""Rows of logits made at once; bounds memory when a whole prompt is scored."""


_STATES = Outputs(token=False, logprob=False, hidden=True)
_WITHOUT_LOGITS = (_STATES, Outputs(token=False, logprob=False, edits=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """One row of a pass that somebody wants an answer to."""

    job: Job
    row: int
    """Offset into the job's own request."""
    hidden_NW: torch.Tensor
    """The pass's final hidden states ..."""
    at: int
    """... and which of them is the row's."""

    @property
    def hidden_W(self) -> torch.Tensor:
        """Its final hidden state; a view."""
        return self.hidden_NW[self.at]


def run_pass(role: Role, pieces: Seq[Piece]) -> list[Question]:
    """Run the pieces on the role's model; their keys and values are cached when this returns."""
    batch, ordered = pack(
        pieces,
        role.store,
        role.network.device,
        num_layers=pieces[0].layers,
        is_ragged=role.attends_ragged and fits(pieces, role.has_windows),
    )
    role.pool.prepare()
    memories = [group.memory for group in batch.groups if group.memory is not None]
    if memories:
        pool = memories[0].pool
        assert isinstance(pool, Pool), "an encoder's role has a pool of its own"
        pool.prepare()
    hidden_NW = role.hidden(batch)
    questions, first = [], 0
    for piece in ordered:
        job = piece.job
        role.store.commit(job.sequence, piece.tokens, piece.attention)
        for row in piece.rows:
            own = piece.start - job.request.start + row
            questions.append(Question(job=job, row=own, hidden_NW=hidden_NW, at=first + row))
        if not piece.replay:
            job.num_done += len(piece.tokens)
            if job.request.outputs.features:
                taps = [batch.taps[layer] for layer in job.request.outputs.features]
                own_rows = slice(first, first + len(piece.tokens))
                job.features.append(
                    torch.cat([tap[own_rows] for tap in taps if tap is not None], -1)
                )
        # A prompt is final from the start; other tokens once the method has moved past them.
        role.store.publish(job.sequence, max(len(job.run.prompt), job.request.start))
        first += len(piece.tokens)
    return questions


def answer(role: Role, questions: Seq[Question]) -> None:
    """Compute what was asked of these rows and store it in their jobs.

    Rows of contrasted jobs and of draft checks only leave their logits; `settle` answers them.
    """
    drawn = [question for question in questions if question.job.request.outputs.patch is not None]
    draw_patches(role, drawn)
    if drawn:
        questions = [q for q in questions if q.job.request.outputs.patch is None]
    states = [question for question in questions if not _reads_logits(question)]
    for question in states:  # needs no logits, which are most of the work for a long prompt
        question.job.hidden[question.row] = question.hidden_W.clone()
        question.job.rows[question.row] = RowResult()
    if states:
        questions = [question for question in questions if _reads_logits(question)]
    for first in range(0, len(questions), MAX_LOGIT_ROWS):
        part = questions[first : first + MAX_LOGIT_ROWS]
        logits_MV = role.network.logits(_hidden(part))
        if role.abilities.tells_ratios:
            requests = [q.job.request for q in part]
            standing = [r.tokens[q.row] for r, q in zip(requests, part, strict=True)]
            logits_MV = clean_logits(logits_MV, standing, [r.noise or 0.0 for r in requests])
        on_canvas = [i for i, q in enumerate(part) if q.job.request.canvas is not None]
        if on_canvas and role.abilities.mask_token is not None:
            logits_MV[on_canvas, role.abilities.mask_token] = -torch.inf
        believe(role, [(question.job, question.row) for question in part], logits_MV)
        now: list[int] = []
        for index, question in enumerate(part):
            job, row = question.job, question.row
            outputs = job.request.outputs
            if outputs.hidden or outputs.heads or outputs.links:
                job.hidden[row] = question.hidden_W.clone()
            if outputs.logits:
                job.logits[row] = logits_MV[index].clone()
            if job.is_twin:
                job.held[row - job.row_shift] = logits_MV[index : index + 1]
                continue
            contrasted = job.twin is not None and row >= job.first_contrasted_row
            if contrasted or outputs.accepted is not None:
                job.held[row] = logits_MV[index : index + 1]
            else:
                now.append(index)
        if not now:
            continue
        if len(now) < len(part):
            logits_MV = logits_MV[now]
        rows = [sampler_row(part[index].job, part[index].row) for index in now]
        for index, result in zip(now, sample(logits_MV, rows), strict=True):
            part[index].job.rows[part[index].row] = result


def _hidden(questions: Seq[Question]) -> torch.Tensor:
    """Final hidden states [M, W] of the rows."""
    states_NW, places = questions[0].hidden_NW, [question.at for question in questions]
    if any(question.hidden_NW is not states_NW for question in questions):
        return torch.stack([question.hidden_W for question in questions])
    if places == list(range(places[0], places[0] + len(places))):
        return states_NW[places[0] : places[-1] + 1]
    return states_NW[torch.tensor(places, device=states_NW.device)]


def _reads_logits(question: Question) -> bool:
    return question.job.is_twin or question.job.request.outputs not in _WITHOUT_LOGITS


def decide(jobs: Iterable[Job]) -> None:
    """Answer contrasted rows and draft checks, which take several rows of logits each."""
    undecided = [job for job in jobs if job.held and not job.is_twin and job.verdict is None]
    if not undecided:
        return
    contrast(undecided)
    check_drafts(
        [job for job in undecided if job.request.outputs.accepted is not None and _all_held(job)]
    )


def settle(jobs: Seq[Job], roles: Mapping[str, Role]) -> None:
    """Answer what takes several rows: contrasted ones, draft checks, prediction heads, links."""
    decide(jobs)
    for job in jobs:
        if job.is_twin:
            continue
        outputs = job.request.outputs
        if outputs.heads and job.is_complete and not job.heads:
            rows = job.request.output_rows if job.verdict is None else (job.verdict.last,)
            for row in rows:
                job.heads[row] = _heads(roles[job.request.role], job, row)
        if outputs.links and job.is_complete and job.links is None:
            job.links = _links(roles[job.request.role], job)
        if outputs.edits and job.is_complete and job.hidden:
            _edit(roles[job.request.role], job)


def _all_held(job: Job) -> bool:
    """Have all logits that a draft check needs arrived?"""
    rows = job.request.output_rows
    if job.num_remaining or any(row not in job.held for row in rows):
        return False
    contrasted_rows = [row for row in rows if row >= job.first_contrasted_row]
    return job.twin is None or all(row in job.twin.held for row in contrasted_rows)


def _heads(role: Role, job: Job, row: int) -> list[list[tuple[int, float]]]:
    """The likeliest tokens of each further prediction head at one row."""
    logits_HV = role.network.heads(job.hidden[row][None])[0]
    outputs = Outputs(token=False, logprob=False, top=job.request.outputs.heads)
    plain = dataclasses.replace(sampler_row(job, row), outputs=outputs, given=None)
    return [result.top for result in sample(logits_HV, [plain] * len(logits_HV))]


def _links(role: Role, job: Job) -> torch.Tensor:
    """Where paths through the rows go on."""
    network = cast(LinkedNetwork, role.network)
    hidden_1LW = torch.stack([job.hidden[row] for row in job.request.output_rows])[None]
    num_vertices_1 = torch.tensor([hidden_1LW.shape[1]], device=hidden_1LW.device)
    return network.links(hidden_1LW, num_vertices_1)[0].cpu()


def _edit(role: Role, job: Job) -> None:
    """Tell what is missing behind the rows' tokens, and whether they belong."""
    network = cast(EditingNetwork, role.network)
    hidden_LW = torch.stack([job.hidden.pop(row) for row in job.request.output_rows])
    insertions_LC, deletions_L = network.edits(hidden_LW, F.pad(hidden_LW[1:], (0, 0, 0, 1)))
    tables, shares = insertions_LC.log_softmax(dim=1).tolist(), deletions_L.sigmoid().tolist()
    for row, table, share in zip(job.request.output_rows, tables, shares, strict=True):
        job.rows[row] = RowResult(insertions=table, deletion=share)
