"""Several processes for one run: started here, or by torchrun.

`launch` starts processes on this machine and waits for them. A process that torchrun started (on
one machine or many, which then share a file system) joins its team by itself. Messages go through
gloo on CPUs and through NCCL on GPUs, of which every process gets one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing.spawn import ProcessExitedException, start_processes

from anyorder.core.errors import AnyorderError, TrainingStopped, UserError
from anyorder.model.settings import settings
from anyorder.training.config import Recipe
from anyorder.training.setup import device_of
from anyorder.training.team import Team

Work = Callable[..., str]
"""Called in every process with its rank, the number of processes, a file for them to meet at, and
further arguments; says what the run came to. It must be importable by its name."""


def launch(work: Work, num_processes: int, *arguments: object) -> str:
    """Run `work` in so many new processes; returns what the leading one says.

    If one fails, the others are ended; its UserError or TrainingStopped is raised here."""
    # It reports every process that it ends, which a user need not know.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        outcomes = Path(folder)
        context = start_processes(  # type: ignore[no-untyped-call]
            _process,
            args=(work, num_processes, outcomes, arguments),
            nprocs=num_processes,
            join=False,
            start_method="spawn",
        )
        assert context is not None, "it is returned unless processes are joined"
        try:
            while not context.join():
                pass
        except ProcessExitedException:
            failures = [_read(outcomes, rank) for rank in range(num_processes)]
            for kind in (UserError, TrainingStopped):
                for failure in failures:
                    if kind.__name__ in failure:
                        raise kind(failure[kind.__name__]) from None
            raise
        finally:
            for process in context.processes:
                process.terminate()
        return str(_read(outcomes, 0)["result"])


def _process(
    rank: int, work: Work, num_processes: int, outcomes: Path, arguments: tuple[object, ...]
) -> None:
    if settings().num_threads is None:
        torch.set_num_threads(max(torch.get_num_threads() // num_processes, 1))
    outcome: dict[str, Any]
    try:
        outcome = {"result": work(rank, num_processes, outcomes / "meeting", *arguments)}
    except AnyorderError as error:
        kind = UserError if isinstance(error, UserError) else TrainingStopped
        outcome = {kind.__name__: str(error)}
    (outcomes / f"{rank}.json").write_text(json.dumps(outcome), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    # All is said and saved. Taken down the usual way, a process of which gloo still has a thread
    # aborts now and then ("terminate called without an active exception").
    os._exit(0 if "result" in outcome else 2)


def _read(outcomes: Path, rank: int) -> dict[str, Any]:
    path = outcomes / f"{rank}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@contextlib.contextmanager
def team_of(
    recipe: Recipe, *, rank: int = 0, size: int = 1, meeting: Path | None = None
) -> Iterator[Team]:
    """This process's team: the `size` processes that meet at a file, those of torchrun, or itself
    alone."""
    started = dist.is_available() and dist.is_torchelastic_launched()
    if meeting is None and not started:
        if recipe.run.tensor_parallel > 1:
            raise UserError(
                f"[run] tensor_parallel is {recipe.run.tensor_parallel}, but the run has one "
                "process; give --processes, a multiple of it."
            )
        yield Team()
        return
    kind = device_of(recipe).type
    if kind == "cuda" and meeting is not None and size > torch.cuda.device_count():
        raise UserError(
            f"{size} processes need a GPU each, and there are {torch.cuda.device_count()}; give "
            'fewer --processes, or device = "cpu" in [run].'
        )
    backend = "nccl" if kind == "cuda" else "gloo"
    if meeting is None:
        dist.init_process_group(backend)
    else:
        address = f"file://{meeting}"
        dist.init_process_group(backend, init_method=address, rank=rank, world_size=size)
    try:
        rank, size = dist.get_rank(), dist.get_world_size()
        device = torch.device("cpu")
        if kind == "cuda":
            device = torch.device("cuda", dist.get_node_local_rank(rank))
            torch.cuda.set_device(device)
        tensor = recipe.run.tensor_parallel
        if size % tensor:
            raise UserError(
                f"[run] tensor_parallel is {tensor}, and {size} processes cannot form groups of "
                "that size; start a multiple."
            )
        mesh = None
        if size > 1:
            shape = (size // tensor, tensor)
            mesh = init_device_mesh(kind, shape, mesh_dim_names=("data", "tensor"))
        yield Team(rank=rank, size=size, tensor=tensor, device=device, mesh=mesh)
    finally:
        dist.destroy_process_group()
