"""`anyorder serve` under load, and beside `transformers serve`: `python -m benchmarks.serving`.

Scenarios, on the default model and on this machine alone, each bounded:

streams      many clients at once, every method that the model supports among them; each answer is
             compared with the same request alone
disconnects  clients that hang up at random times, streaming and not; every page must be free after
slow         clients that never read, and how long others wait meanwhile
restart      kill -9 among open streams, then the same server again on the same port
memory       clients that come and go for some minutes, and the memory of the process
beside       time to first token and tokens/s for 1, 8, 32 and 128 clients; both servers stay up
             through the run and take turns; same weights, float32, greedy, same prompts
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from anyorder.model import catalog
from benchmarks.load import SUBJECTS, VERBS, alone, churn, compared, disconnects, mixed, stall
from benchmarks.load import together as all_at_once
from benchmarks.report import machine
from benchmarks.servers import ServerProcess, anyorder_server, free_port, transformers_server
from benchmarks.streams import Streamed, stream, until_idle

MODEL = "smollm2-135m-instruct"
POOL = 2048
"""Tokens that the cache holds where memory is measured."""
Figures = dict[str, Any]


def tell(what: str) -> None:
    """For those who watch."""
    print(what, file=sys.stderr, flush=True)


def started(model: str, *flags: str) -> ServerProcess:
    """This project's server."""
    port = free_port()
    return ServerProcess(anyorder_server(model, port, *flags), port)


# --------------------------------------------------------------------------------- load and faults
async def streams(options: argparse.Namespace) -> Figures:
    """Many at once, each compared with itself alone."""
    with started(options.model) as server:
        bodies = await mixed(server.port, options.num, max_tokens=options.max_tokens)
        began = time.perf_counter()
        seen = await all_at_once(server.port, bodies)
        seconds = time.perf_counter() - began
        freed = await until_idle(server.port)
        tell(f"{len(seen)} streams took {seconds:.0f} s")
        result = compared(seen, await alone(server.port, bodies, tell))
        return {
            "streams": result.num,
            "methods": len({body["method"] for body in bodies}),
            "lost": result.lost,
            "truncated": result.truncated,
            "different": [bodies[n]["method"] for n in result.different],
            "errors": sorted({answer.error for answer in seen if answer.error}),
            "seconds": seconds,
            "pages_free_after_seconds": freed,
            "exit_code": server.end(),
        }


async def hang_ups(options: argparse.Namespace) -> Figures:
    """Random disconnects."""
    with started(options.model) as server:
        bodies = await mixed(server.port, 60, max_tokens=200)
        freed = await disconnects(server.port, bodies, num=options.num, longest=20.0)
        answer = await stream(server.port, {**bodies[0], "max_tokens": 8})
        return {
            "disconnects": options.num,
            "pages_free_after_seconds": freed,
            "answers_after": answer.is_whole,
            "exit_code": server.end(),
        }


async def slow_readers(options: argparse.Namespace) -> Figures:
    """What others wait for while some never read."""
    with started(options.model) as server:
        heavy = {"prompt": "On and on", "max_tokens": 400, "ignore_eos": True, "logprobs": 20}
        light = {"prompt": "The sea is", "max_tokens": 16, "temperature": 0}
        await stream(server.port, light)
        free = [await stream(server.port, light) for _ in range(3)]
        stalled = [stall(server.port, {**heavy, "seed": n}) for n in range(options.num)]
        await asyncio.sleep(1)
        others = [await stream(server.port, light) for _ in range(3)]
        for one in stalled:
            one.close()
        freed = await until_idle(server.port)
        readers = [
            asyncio.ensure_future(stream(server.port, {**heavy, "seed": n}))
            for n in range(options.num)
        ]
        await asyncio.sleep(1)
        beside = [await stream(server.port, light) for _ in range(3)]
        for task in readers:
            task.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        assert {answer.text for answer in (*free, *others, *beside)} == {free[0].text}
        return {
            "stalled": options.num,
            "seconds_alone": median(free),
            "seconds_beside_stalled": median(others),
            "seconds_beside_readers": median(beside),
            "pages_free_after_seconds": freed,
        }


def median(answers: Sequence[Streamed]) -> float:
    """Of their times."""
    return statistics.median(answer.seconds for answer in answers)


async def restart(options: argparse.Namespace) -> Figures:
    """kill -9 in the middle."""
    with started(options.model) as server:
        bodies = await mixed(server.port, options.num, max_tokens=48)
        right = await stream(server.port, bodies[0])
        pending = asyncio.ensure_future(all_at_once(server.port, bodies))
        await asyncio.sleep(3)
        code = server.end(signal.SIGKILL)
        cut = sum(not answer.is_whole for answer in await pending)
        with ServerProcess(anyorder_server(options.model, server.port), server.port) as again:
            answer = await stream(again.port, bodies[0])
            return {
                "exit_code": code,
                "streams_open": len(bodies),
                "clients_told": cut,
                "ready_again_seconds": again.start_seconds,
                "same_answer": answer.text == right.text and answer.is_whole,
                "exit_code_after": again.end(),
            }


async def memory(options: argparse.Namespace) -> Figures:
    """Memory while clients come and go. A page of the pool takes its memory when it is first
    written, so one long prompt writes all of a small pool before the clock starts."""
    with started(options.model, "--cache-tokens", str(POOL)) as server:
        bodies = await mixed(server.port, 120, max_tokens=options.max_tokens)
        whole_pool = {"prompt": [1000 + n for n in range(POOL - 8)], "max_tokens": 1}
        await stream(server.port, whole_pool)
        await all_at_once(server.port, bodies[: options.num])
        samples: list[tuple[float, float]] = []

        def sample(now: float) -> None:
            samples.append((now, server.resident_mb))
            if len(samples) % 10 == 1:
                tell(f"{now:.0f} s: {samples[-1][1]:.0f} MB")

        done = await churn(
            server.port,
            bodies,
            clients=options.num,
            seconds=options.seconds,
            sample=sample,
            every=1.0,
        )
        freed = await until_idle(server.port)
        size = len(samples) / 10
        parts = [
            statistics.mean(mb for _, mb in samples[round(i * size) : round((i + 1) * size)])
            for i in range(10)
        ]
        return {
            **done,
            "mean_mb_by_tenth_of_the_time": parts,
            "last_half_above_first_mb": statistics.mean(parts[5:]) - statistics.mean(parts[:5]),
            "most_mb": max(mb for _, mb in samples),
            "pages_free_after_seconds": freed,
        }


# ----------------------------------------------------------------------- beside transformers serve
def prompts(num: int, salt: str) -> list[str]:
    """Different texts of about forty tokens."""
    rest = "and everybody who lived there at that time would tell you the same story about it"
    found = []
    for n in range(num):
        subject, verb = SUBJECTS[n % 6], VERBS[n // 6 % 6]
        found.append(f"Page {salt}-{n}. {subject} {verb} what it seemed to be, {rest}: once upon")
    return found


async def round_of(port: int, model: str, texts: Sequence[str], max_tokens: int) -> list[Streamed]:
    """One answer to each, all at once."""
    common = {"model": model, "max_tokens": max_tokens, "temperature": 0}
    if model == "model":
        common["stream_options"] = {"include_usage": True}  # the other one always tells
    answers = await all_at_once(port, [{**common, "prompt": text} for text in texts])
    for answer in answers:
        if answer.error or answer.reason is None:
            raise RuntimeError(f"{model}: {answer.error or 'a stream without an end'}")
    return answers


async def beside(options: argparse.Namespace) -> Figures:
    """Both servers in turns."""
    with tempfile.TemporaryDirectory(prefix="anyorder-benchmark-") as made:
        folder = Path(options.weights or made)
        if not (folder / "float32" / "config.json").exists():
            tell("writing the weights as safetensors for transformers")
            file = catalog.resolve(options.model).path
            command = [sys.executable, "-m", "benchmarks.weights", str(file), str(folder)]
            subprocess.run(command, check=True, capture_output=True)
        weights = folder / "float32"
        ports = [free_port() for _ in range(3)]
        commands = {
            "anyorder": anyorder_server(options.model, ports[0]),
            "transformers": transformers_server(weights, ports[1], batches=False),
            "transformers, continuous batching": transformers_server(
                weights, ports[2], batches=True
            ),
        }
        wanted = {
            name: (command, port)
            for (name, command), port in zip(commands.items(), ports, strict=True)
            if name not in options.without
        }
        servers = {name: ServerProcess(command, port) for name, (command, port) in wanted.items()}
        try:
            models = {name: str(weights) for name in servers} | {"anyorder": "model"}
            return await turns(servers, models, options)
        finally:
            for server in servers.values():
                server.__exit__(None, None, None)


async def turns(
    servers: Mapping[str, ServerProcess], models: Mapping[str, str], options: argparse.Namespace
) -> Figures:
    """Rounds in which the servers take turns; the first warms up with one client."""
    names = list(servers)
    figures: Figures = {}
    for name in names:
        await round_of(servers[name].port, models[name], prompts(2, "warm-up"), 8)
    for num in options.clients:
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        same: list[float] = []
        for number in range(options.rounds):
            texts, seen = prompts(num, f"{num}-{number}"), dict[str, list[Streamed]]()
            for name in [*names[number % len(names) :], *names[: number % len(names)]]:
                began = time.perf_counter()
                seen[name] = await round_of(
                    servers[name].port, models[name], texts, options.max_tokens
                )
                seconds = time.perf_counter() - began
                first = [answer.first or answer.seconds for answer in seen[name]]
                row = {
                    "tokens_per_second": sum(a.num_tokens for a in seen[name]) / seconds,
                    "first_median": statistics.median(first),
                    "first_worst": max(first),
                }
                rows[name].append(row)
                tell(f"{num} clients, round {number + 1}, {name}: {row}")
            pairs = [
                [a.text for a in seen["anyorder"]] == [a.text for a in seen[name]] for name in names
            ]
            same.append(sum(pairs) / len(pairs))
        figures[str(num)] = {"rounds": rows, "same_texts": same}
    return figures


def table(figures: Figures) -> str:
    """`beside` in Markdown: medians of the rounds."""
    lines = [
        "| clients | server | tokens/s | first token, median (s) | first token, worst (s) |",
        "|---|---|---|---|---|",
    ]
    for num, found in figures.items():
        for name, rows in found["rounds"].items():
            cells = [
                statistics.median(row[key] for row in rows)
                for key in ("tokens_per_second", "first_median", "first_worst")
            ]
            lines.append(f"| {num} | {name} | {cells[0]:.0f} | {cells[1]:.2f} | {cells[2]:.2f} |")
    return "\n".join(lines)


SCENARIOS: Mapping[str, Callable[[argparse.Namespace], Any]] = {
    "streams": streams,
    "disconnects": hang_ups,
    "slow": slow_readers,
    "restart": restart,
    "memory": memory,
    "beside": beside,
}
NUMBERS = {"streams": 200, "disconnects": 200, "slow": 20, "restart": 20, "memory": 16, "beside": 0}


def main(arguments: list[str]) -> int:
    """Run a scenario and print its figures as JSON, `beside` also as a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving")
    parser.add_argument("scenario", choices=list(SCENARIOS))
    parser.add_argument("--model", default=MODEL, help="catalog name or .gguf file")
    parser.add_argument("--num", type=int, help="streams, clients or disconnects")
    parser.add_argument("--max-tokens", type=int, default=24, help="of an answer [24]")
    parser.add_argument("--seconds", type=float, default=600.0, help="of memory [600]")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--rounds", type=int, default=3, help="of beside [3]")
    parser.add_argument("--weights", help="folder where beside keeps transformers' weights")
    parser.add_argument("--without", nargs="+", default=[], help="servers that beside leaves out")
    options = parser.parse_args(arguments)
    options.num = options.num or NUMBERS[options.scenario]
    figures = asyncio.run(SCENARIOS[options.scenario](options))
    print(json.dumps({"scenario": options.scenario, "machine": machine(), **figures}, indent=2))
    if options.scenario == "beside":
        print(table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
