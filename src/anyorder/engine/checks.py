"""What the sampler must know of a request's rows, and draft checks over several of them."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq

import torch

from anyorder.core.errors import RequestFailed
from anyorder.core.forward import Outputs, Verdict
from anyorder.engine.history import History
from anyorder.engine.run import Job
from anyorder.sampling.draws import uniform
from anyorder.sampling.guidance import above_floor, classifier_free
from anyorder.sampling.guide import GuideState
from anyorder.sampling.row import Row, RowResult
from anyorder.sampling.sampler import on_host, sample
from anyorder.sampling.verify import CannotAnswer, verify


def sampler_row(job: Job, row: int) -> Row:
    """Everything the sampler must know of one row of a request."""
    request, run, canvas = job.request, job.run, job.request.canvas
    outputs = request.outputs
    position = request.start + job.depths[row] + 1
    place = 0
    history: Seq[int] = () if canvas is None else job.canvas_history
    if canvas is not None:
        place = canvas.places[job.row_order[row]]
        position = len(run.prompt) + place
    elif outputs.token or outputs.best or outputs.accepted or outputs.distribution or outputs.draws:
        history = _history(job, row)
    return Row(
        request=request.sampling or run.request,
        outputs=outputs,
        history=history,
        num_prompt=len(run.prompt),
        draw=(run.choice, zlib.crc32((request.stream or request.role).encode()), position),
        end_tokens=run.prepared.end_tokens,
        banned=run.prepared.banned,
        forced=run.forced(position - len(run.prompt)),
        guide=run.guide if isinstance(run.guide, GuideState) else None,
        given=None if outputs.given is None else outputs.given[job.row_order[row]],
        canvas=None if canvas is None else canvas.text,
        place=place,
        length=0 if canvas is None else canvas.length or run.max_new_tokens,
        canvas_guide=run.canvas_guide if canvas is not None else None,
        blank=frozenset() if canvas is None else canvas.blank,
        cuts_off=canvas is not None and run.prepared.is_fixed_behind(place),
    )


def _history(job: Job, row: int) -> Seq[int]:
    """The tokens before what is drawn at a row: in a tree, those on its path."""
    start, tokens = job.request.start, job.sequence.tokens
    end = start + job.depths[row] + 1
    if job.depths[row] == row:
        return tokens if end >= len(tokens) else History(lambda: tokens[:end], end)

    def along_the_path() -> list[int]:
        path, at = list[int](), row
        while at >= 0:
            path.append(job.request.tokens[at])
            at = job.parents[at]
        return [*tokens[:start], *path[::-1]]

    return History(along_the_path, end)


def contrasted(
    job: Job, conditional_1V: torch.Tensor, unconditional_1V: torch.Tensor
) -> torch.Tensor:
    """Guided scores of one row."""
    request = job.run.request
    scores_1V = classifier_free(conditional_1V, unconditional_1V, request.guidance_scale)
    if request.contrast_floor:
        scores_1V = above_floor(scores_1V, conditional_1V, request.contrast_floor)
    return scores_1V


def contrast(jobs: Iterable[Job]) -> None:
    """Draw from guided scores what both a job and its twin have logits for, in one call."""
    asked = [
        (job, job.twin, row)
        for job in jobs
        if job.twin is not None and job.request.outputs.accepted is None
        for row in job.held
        if row in job.twin.held
    ]
    if not asked:
        return
    conditional_MV = torch.cat([job.held[row] for job, _, row in asked])
    processed_MV = torch.cat(
        [contrasted(job, job.held[row], twin.held[row]) for job, twin, row in asked]
    )
    # What both find impossible is: the mask token on a canvas.
    processed_MV.masked_fill_(conditional_MV == -torch.inf, -torch.inf)
    results = sample(conditional_MV, [sampler_row(job, row) for job, _, row in asked], processed_MV)
    for (job, twin, row), result in zip(asked, results, strict=True):
        del job.held[row], twin.held[row]
        job.rows[row] = result


class _Judge:
    """`sampling.verify.Judge` for one job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.places = list(job.request.output_rows)
        self._rows: dict[int, Row] = {}
        self._processed: dict[int, torch.Tensor | None] = {}
        self.drawn: dict[int, RowResult] = {}
        """Draws of all rows, where `draws_all`; see `draw_together`."""
        on_device = not all(on_host(logits_1V) for logits_1V in job.held.values())
        self.draws_all = on_device or job.request.outputs.token
        """On an accelerator, asking row by row would wait each time. In main memory it would only
        compute rows that nobody looks at."""

    def questions(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, Row]]:
        """Logits, guided scores and row of all that may be drawn, in order."""
        outputs = Outputs(top=self._job.request.outputs.top)
        for place in self.places:
            row = dataclasses.replace(self._row(place), outputs=outputs)
            yield self._job.held[place], self._source(place), row

    def answer(self, place: int, outputs: Outputs, given: int | None = None) -> RowResult:
        """See Judge."""
        if outputs.token and place in self.drawn:
            return self.drawn[place]
        row = dataclasses.replace(self._row(place), outputs=outputs, given=given)
        (result,) = sample(self._job.held[place], [row], self._source(place))
        return result

    def uniform(self, place: int, purpose: str, order: int = 0) -> float:
        """See Judge."""
        choice, _, position = self._row(place).draw
        return uniform(
            self._row(place).request.seed, choice, zlib.crc32(purpose.encode()), position, order
        )

    def ends(self, token: int) -> bool:
        """See Judge."""
        return token in self._job.run.prepared.end_tokens

    def _row(self, place: int) -> Row:
        if place not in self._rows:
            self._rows[place] = sampler_row(self._job, place)
        return self._rows[place]

    def _source(self, place: int) -> torch.Tensor | None:
        """The guided scores of a place, None where nothing guides it."""
        if place not in self._processed:
            twin, source = self._job.twin, None
            if twin is not None and place >= self._job.first_contrasted_row:
                source = contrasted(self._job, self._job.held[place], twin.held[place])
            self._processed[place] = source
        return self._processed[place]


def draw_together(judges: Seq[_Judge]) -> None:
    """Draw all rows of these jobs in one call: one copy to the host."""
    asked = [(judge, *question) for judge in judges for question in judge.questions()]
    if not asked:
        return
    logits_RV = torch.cat([logits_1V for _, logits_1V, *_ in asked])
    processed = None
    if any(source is not None for _, _, source, _ in asked):
        processed = torch.cat([plain if s is None else s for _, plain, s, _ in asked])
    results = iter(sample(logits_RV, [row for *_, row in asked], processed))
    for judge in judges:
        judge.drawn = dict(zip(judge.places, results, strict=False))


def check_drafts(jobs: Seq[Job]) -> None:
    """Decide drafts whose logits are all there, and leave in the cache what was accepted.

    RequestFailed if not even the first place of one has a token left; those before it are decided.
    """
    judges = [_Judge(job) for job in jobs]
    draw_together([judge for judge in judges if judge.draws_all])
    for job, judge in zip(jobs, judges, strict=True):
        job.verdict = _decide(job, judge)


def _decide(job: Job, judge: _Judge) -> Verdict:
    request, run = job.request, job.run
    check = request.outputs.accepted
    assert check is not None, "no draft to check"
    sampling = request.sampling or run.request
    try:
        verdict = verify(
            check,
            request.tokens,
            job.parents,
            judge,
            greedy=sampling.temperature == 0,
            top=request.outputs.top,
        )
    except CannotAnswer as error:
        raise RequestFailed(str(error)) from None
    offsets = [*range(check.first), *verdict.accepted]
    job.sequence.store.keep(job.sequence, request.start, offsets)
    if job.twin is not None:
        shift = job.twin.row_shift
        twin = job.twin.sequence
        kept = [*range(check.first + shift), *(offset + shift for offset in verdict.accepted)]
        twin.store.keep(twin, job.twin.request.start, kept)
    job.held.clear()
    job.rows = judge.drawn
    run.handle.num_checks += 1
    run.handle.num_checked += len(verdict.tokens)
    return verdict
