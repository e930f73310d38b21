"""Runs random programs eagerly and lazily: `python fuzz/programs.py --seconds 60`.

A program is some dozens of lines of PyTorch (tests/lib/random_programs): factories, draws, views,
writes, `out=`, resizes, hooks, copies, modules, calls that eager refuses. After it has run lazily,
its tensors are materialized in a random order, from one thread or several, and everything visible
is compared with eager: bits, geometry, versions, graphs, gradients, generators, and which calls
raised what.

Programs run in a child process that says which seed is next, so a crash or a hang has a seed, too.
What fails is made smaller and printed once for each kind of failure.

    python fuzz/programs.py --only 17 --show        # the program of a seed
    python fuzz/programs.py --only 17               # run it, and make it smaller if it fails
    python fuzz/programs.py --file program.txt      # the same for a program from a file
"""

from __future__ import annotations

import argparse
import faulthandler
import functools
import json
import os
import re
import resource
import selectors
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "lib"))
from random_programs.check import Verdict, check
from random_programs.generate import generate
from random_programs.minimize import minimize
from random_programs.program import Program, parse

SEEDS_APART = 1_000_000  # between two values of --seed
HANG_SECONDS = 45.0  # more than random_programs.run.THREAD_SECONDS
LARGEST_PROCESS = 8 << 30  # bytes: a program that goes wrong must not take the machine with it
MINIMIZE_SECONDS = 90.0


def say(**facts: Any) -> None:
    """One line for the parent process."""
    print(json.dumps(facts), flush=True)


def verdict_facts(verdict: Verdict) -> dict[str, Any]:
    """What the parent wants to know."""
    failure = verdict.failure
    return {
        "unsteady": verdict.unsteady,
        "refused": verdict.refused,
        "lazy": verdict.lazy_bytes,
        "bytes": verdict.nbytes,
        **({"kind": failure.kind, "text": failure.text} if failure else {}),
    }


def work(first: int, count: int, threads: int) -> None:
    """The child: so many seeds, one after the other.

    What follows a step that raised in one run only is tried again without that step.
    """
    faulthandler.enable()
    for seed in range(first, first + count):
        say(seed=seed, stage="eager")
        program = generate(seed, threads)
        lazily = functools.partial(say, seed=seed, stage="lazy")
        verdict = check(program, lazily)
        say(seed=seed, stage="done", steps=len(program.steps), **verdict_facts(verdict))
        while verdict.failure is not None and verdict.failure.step is not None:
            at = verdict.failure.step
            program = replace(program, steps=program.steps[:at] + program.steps[at + 1 :])
            verdict = check(program, lazily)
            if failure := verdict.failure:
                say(
                    seed=seed,
                    stage="more",
                    kind=failure.kind,
                    text=failure.text,
                    program=str(program),
                )


def lines_of(command: list[str], **options: Any) -> Iterator[dict[str, Any]]:
    """What a child says; at its end how it ended: `ended` is its status, or None after a hang."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    assert child.stdout is not None
    assert child.stderr is not None
    errors, buffer = b"", b""
    with selectors.DefaultSelector() as ready:
        ready.register(child.stdout, selectors.EVENT_READ)
        ready.register(child.stderr, selectors.EVENT_READ)
        try:
            while ready.get_map():
                found = ready.select(HANG_SECONDS)
                if not found:
                    child.send_signal(6)  # faulthandler shows where it hangs
                    break
                for key, _ in found:
                    data = os.read(key.fd, 1 << 16)
                    if not data:
                        ready.unregister(key.fileobj)
                    elif key.fileobj is child.stderr:
                        errors = (errors + data)[-20_000:]
                    else:
                        *whole, buffer = (buffer + data).split(b"\n")
                        yield from (json.loads(line) for line in whole if line.startswith(b"{"))
            hung = bool(ready.get_map())
            rest = child.communicate(timeout=10)[1] if hung else b""
            yield {"ended": None if hung else child.wait(), "stderr": (errors + rest).decode()}
        finally:
            child.kill()
            child.wait()


def this_script(*arguments: object) -> list[str]:
    """The command that runs this file."""
    return [sys.executable, str(Path(__file__).resolve()), *map(str, arguments)]


@dataclass
class Tally:
    """What came of all programs."""

    counts: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, list[int]] = field(default_factory=dict)
    programs: dict[str, str] = field(default_factory=dict)

    def fails(self, seed: int, kind: str, text: str, program: str) -> None:
        """Notes a failure; the first of each kind is printed."""
        step = re.search(r"'(.*?)' raised", text)
        called = re.findall(r"[\w.]*?(\w+)\(", step[1]) if step else []
        kind = " ".join([kind, *called[:1]])
        self.kinds.setdefault(kind, []).append(seed)
        if kind not in self.programs:
            self.programs[kind] = program
            print(f"seed {seed}: {kind}: {text}", flush=True)

    def add(self, facts: dict[str, Any]) -> None:
        """Notes a program that ran to its end."""
        self.counts["programs"] += 1
        for name in ("steps", "unsteady", "refused", "lazy", "bytes"):
            self.counts[name] += facts[name]
        if "kind" in facts:
            self.fails(facts["seed"], facts["kind"], facts["text"], "")

    def crashes(self, seed: int, stage: str, line: dict[str, Any]) -> None:
        """Notes how a child died; in eager only PyTorch can have crashed."""
        if stage == "lazy":
            self.counts["programs"] += 1
            self.fails(seed, *crash_of(line), "")
        elif "Fatal Python error" in line["stderr"]:
            self.counts["crashed in eager"] += 1
            print(f"seed {seed}: PyTorch alone: {crash_of(line)[0]}", flush=True)
        else:
            sys.exit(f"seed {seed}: {line['stderr']}")


def crash_of(line: dict[str, Any]) -> tuple[str, str]:
    """The kind of a child's death, and its stack."""
    if line["ended"] is None:
        return "hang", line["stderr"]
    fatal = re.search(r"Fatal Python error: (.*)", line["stderr"])
    name = fatal[1] if fatal else f"status {line['ended']}"
    return f"crash ({name})", line["stderr"]


def run(first: int, count: int | None, seconds: float, threads: int) -> Tally:
    """Runs seeds from `first` on, so many or for so long."""
    tally = Tally()
    end = time.monotonic() + seconds
    seed = first
    last = None if count is None else first + count

    def more() -> bool:
        return seed < last if last is not None else time.monotonic() < end

    while more():
        stage = ""
        batch = 200 if last is None else last - seed
        for line in lines_of(this_script("--threads", threads, "--child", seed, batch)):
            if "ended" in line:
                if line["ended"] != 0:
                    tally.crashes(seed, stage, line)
                seed += 1
                break
            seed, stage = line["seed"], line["stage"]
            if stage == "eager" and not more():
                break
            if stage == "done":
                tally.add(line)
            elif stage == "more":
                tally.fails(seed, line["kind"], line["text"], line["program"])
    return tally


def smaller(program: Program) -> tuple[Program, str]:
    """A smaller program that fails in the same way, and how; crashes are tried in processes."""

    def outcome(candidate: Program) -> tuple[str, str]:
        for line in lines_of(
            this_script("--file", "-", "--child", 0, 0), stdin=text_file(candidate)
        ):
            if "ended" in line:
                return ("", "") if line["ended"] == 0 else crash_of(line)
            if line.get("stage") == "done":
                return line.get("kind", ""), line.get("text", "")
        return "", ""

    kind, text = outcome(program)
    if not kind:
        return program, ""
    end = time.monotonic() + MINIMIZE_SECONDS
    apart = kind == "hang" or kind.startswith("crash")

    def fails(candidate: Program) -> bool:
        if time.monotonic() > end:
            return False
        if apart:
            return outcome(candidate)[0] == kind
        failure = check(candidate).failure
        return failure is not None and failure.kind == kind

    small = minimize(program, fails)
    return small, ": ".join(outcome(small)) if small != program else f"{kind}: {text}"


def text_file(program: Program) -> Any:
    """A file to read the program's text from."""
    read, write = os.pipe()
    with os.fdopen(write, "w") as out:
        out.write(str(program))
    return os.fdopen(read)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--programs", type=int, help="programs to run, instead of --seconds")
    parser.add_argument("--seed", type=int, default=0, help="another sequence of programs")
    parser.add_argument("--only", type=int, help="the seed of one program")
    parser.add_argument("--file", help="a program's text, instead of a seed")
    parser.add_argument("--threads", type=int, default=3, help="threads of a program, at most")
    parser.add_argument("--show", action="store_true", help="print the program and stop")
    parser.add_argument("--keep", action="store_true", help="print failing programs as they are")
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.file:
        text = sys.stdin.read() if options.file == "-" else Path(options.file).read_text()
        program = parse(text)
        if options.child:
            faulthandler.enable()
            verdict = check(program)
            if verdict.unsteady:
                print("eager reads memory that nobody wrote", file=sys.stderr)
            say(stage="done", **verdict_facts(verdict))
            return
    elif options.child:
        resource.setrlimit(resource.RLIMIT_AS, (LARGEST_PROCESS, LARGEST_PROCESS))
        first, count = options.child
        work(first, count, options.threads)
        return
    elif options.only is not None:
        program = generate(options.only, options.threads)
    else:
        tally = run(options.seed * SEEDS_APART, options.programs, options.seconds, options.threads)
        report(tally, options.threads, keep=options.keep)
        return
    if options.show:
        print(program)
        return
    small, how = smaller(program)
    print(f"{small}\n# {how}" if how else "no difference")
    sys.exit(1 if how else 0)


def report(tally: Tally, threads: int, *, keep: bool) -> None:
    """Prints what came of a run; the exit status is 1 if anything differed."""
    counts = tally.counts
    share = counts["lazy"] / counts["bytes"] if counts["bytes"] else 0.0
    print(
        f"{counts['programs']} programs of {counts['steps']} steps, {counts['refused']} of them "
        f"refused by eager; {share:.0%} of the bytes were lazy; {counts['unsteady']} programs read "
        f"unwritten memory in eager, {counts['crashed in eager']} crashed there"
    )
    for kind, seeds in sorted(tally.kinds.items(), key=lambda found: -len(found[1])):
        print(f"\n{len(seeds)} x {kind}: seeds {seeds[:8]}")
        if not keep:
            text = tally.programs[kind]
            small, how = smaller(parse(text) if text else generate(seeds[0], threads))
            print(f"{small}\n# {how[:3000]}", flush=True)
    if tally.kinds:
        sys.exit(1)


if __name__ == "__main__":
    main()
