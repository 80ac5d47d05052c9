"""`make model`: searches every configuration of the protocol's model with spin, and says what became of each property.

A property must hold where it is asked for, what is not promised must be seen to happen, and each
mutant must be caught by the property that it should break. What spin says of a run is in `.model/<run>`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.model.configurations import (
    CONFIGURATIONS,
    MUTANTS,
    NOT_PROMISED,
    OPTIONAL,
    PROPERTIES,
    Configuration,
    Mutant,
    NotPromised,
)

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / ".model"
FORMULA = "ltl ends { <>[] (row.status == COMPLETED || row.status == COMPENSATED || row.parked) }\n"
MEMORY_MB = 6_000  # of one run; two go side by side
DEPTH_MAX = 100_000
SEARCH_LIMIT_S = 900


@dataclasses.dataclass(frozen=True)
class Run:
    """One search. ``only``: the one property that is asked for; None: all that the configuration does not leave out."""

    name: str
    flags: Mapping[str, int]
    formula: bool = False
    only: int | None = None
    shortest: bool = False
    is_quick: bool = False  # it ends soon, so that compiling it well would take longer than what that saves

    @property
    def folder(self) -> Path:
        """Where everything of it is."""
        return BUILD / re.sub(r"\W+", "-", self.name)

    @property
    def options(self) -> list[str]:
        """For spin, to make the search and to tell a counterexample's story."""
        flags = {**self.flags, **({"ONLY": self.only} if self.only is not None else {})}
        return [f"-D{name}={value}" for name, value in flags.items()]


@dataclasses.dataclass(frozen=True)
class Result:
    """What spin found. ``violated``: a property's number; -1: something of the model's own, such as a queue too short."""

    run: Run
    violated: int | None
    is_exhaustive: bool
    states: int
    depth: int
    took_s: float
    output: str


def call(command: Sequence[str], folder: Path, limit_s: float = 300) -> str:
    """Runs a command in ``folder``; what it wrote. Raises on its failure, with its words."""
    done = subprocess.run(
        command, cwd=folder, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit_s
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} in {folder}:\n{done.stdout}")
    return done.stdout


def search(run: Run) -> Result:
    """Compiles one search and runs it to its end."""
    began_s = time.monotonic()
    shutil.rmtree(run.folder, ignore_errors=True)
    run.folder.mkdir(parents=True)
    for source in HERE.glob("*.pml"):
        shutil.copy(source, run.folder)
    if run.formula:
        with (run.folder / "saga.pml").open("a", encoding="utf-8") as model:
            model.write(FORMULA)
    call(["spin", "-a", *run.options, "saga.pml"], run.folder)
    how = ["-DNOFAIR"] if run.formula else ["-DSAFETY", *(["-DBFS"] if run.shortest else [])]
    flags = ["-O0" if run.is_quick else "-O1", "-w", "-DCOLLAPSE", f"-DMEMLIM={MEMORY_MB}", "-DVECTORSZ=1024", *how]
    call(["gcc", *flags, "-o", "pan", "pan.c"], run.folder)
    options = [*(["-a"] if run.formula else []), f"-m{DEPTH_MAX}", "-E", "-n"]
    output = call(["./pan", *options], run.folder, SEARCH_LIMIT_S)
    (run.folder / "search.txt").write_text(output, encoding="utf-8")
    result = _read(run, output, time.monotonic() - began_s)
    if result.violated is not None:
        _tell(run)
    return result


def _read(run: Run, output: str, took_s: float) -> Result:
    def number(pattern: str) -> int:
        found = re.search(pattern, output)
        return int(float(found[1])) if found else 0

    violated = None
    if number(r"errors: (\d+)"):
        found = re.search(
            r"assertion violated .*&&(\d{3})\)&&",
            output.replace(" ", "").replace("assertionviolated", "assertion violated "),
        )
        violated = int(found[1]) if found else 703 if run.formula and "acceptance cycle" in output else -1
    is_exhaustive = "Search not completed" not in output and "max search depth too small" not in output
    return Result(
        run,
        violated,
        is_exhaustive,
        number(r"([\d.e+]+) states, stored"),
        number(r"depth reached (\d+)"),
        took_s,
        output,
    )


def _tell(run: Run) -> None:
    """The counterexample in words: what each process did, in order."""
    lines = call(["spin", "-t", *run.options, "saga.pml"], run.folder).splitlines()
    story = [
        line.strip() for line in lines if not re.match(r"\s*(\d+:\s+proc|\S+(\[\d+\])? = |[\w.]+(\[\d+\])? =)", line)
    ]
    (run.folder / "story.txt").write_text("\n".join(story) + "\n", encoding="utf-8")


# --- what is asked ----------------------------------------------------------------------------------------------------


def asked(configuration: Configuration) -> list[int]:
    """The properties that a search of this configuration asks for."""
    if configuration.formula:
        return [703]
    flags = configuration.flags
    left_out = {number for number, flag in OPTIONAL.items() if not flags.get(flag)} | {703}
    left_out |= set() if flags.get("BARRIER") else {801, 802, 803}
    return [number for number in PROPERTIES if number not in left_out]


def run_of(configuration: Configuration) -> Run:
    """The search of a whole configuration."""
    return Run(configuration.name, configuration.flags, configuration.formula)


def run_of_mutant(mutant: Mutant) -> Run:
    """The search that must catch a mutant: for its property alone."""
    flags = {**mutant.flags, f"MUTANT_{mutant.name}": 1}
    name, number = f"mutant {mutant.name} {mutant.caught_by}", mutant.caught_by
    return Run(name, flags, number == 703, number, shortest=number != 703, is_quick=True)


def run_of_the_other(one: NotPromised) -> Run:
    """The search that must find something that is not promised."""
    where = one.configuration
    return Run(f"not promised {where.name} {one.broken}", where.flags, only=one.broken, shortest=True)


def check_names() -> None:
    """Each mutant of the model is in the table, and nothing else."""
    defined = set(re.findall(r"#ifndef MUTANT_(\w+)", (HERE / "mutants.pml").read_text(encoding="utf-8")))
    listed = {mutant.name for mutant in MUTANTS}
    if defined != listed:
        raise SystemExit(f"mutants.pml and configurations.py differ in {', '.join(sorted(defined ^ listed))}")
    uncaught = set(PROPERTIES) - {mutant.caught_by for mutant in MUTANTS} - {one.broken for one in NOT_PROMISED}
    if uncaught:
        raise SystemExit(f"nothing breaks {sorted(uncaught)}: what shows that they can fail?")


def install_spin() -> None:
    """Spin and a C compiler: found, or installed where that is ours to do; else says what is missing."""
    missing = [program for program in ("spin", "gcc") if shutil.which(program) is None]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise SystemExit(
            f"the model needs {' and '.join(missing)}: apt-get install spin gcc libc6-dev, or your system's like"
        )
    print("installing spin", flush=True)
    call(["apt-get", "-qq", "update"], HERE)
    call(["apt-get", "-qq", "-y", "install", "spin", "gcc", "libc6-dev"], HERE)


# --- what is said -----------------------------------------------------------------------------------------------------


def figures(results: Sequence[Result]) -> str:
    """Of one search, or of several together."""
    states, depth = sum(result.states for result in results), max(result.depth for result in results)
    whole = all(result.is_exhaustive or result.violated for result in results)
    return f"{states:>11,} states, depth {depth}{'' if whole else ', NOT EXHAUSTIVE'}"


def story(result: Result) -> str:
    """Where to read on: the counterexample, or what spin said."""
    told = result.run.folder / ("story.txt" if result.violated is not None else "search.txt")
    return f"    {os.path.relpath(told)}"


def say_properties(results: Sequence[Result], configurations: Sequence[Configuration]) -> bool:
    """One line for each property; whether all held."""
    is_content = True
    for number, words in PROPERTIES.items():
        there = [result for result, one in zip(results, configurations, strict=True) if number in asked(one)]
        if not there:
            continue
        broken = [result for result in there if result.violated == number]
        is_partly = not all(result.is_exhaustive for result in there)
        verdict = "VIOLATED" if broken else "PARTLY" if is_partly else "ok"
        print(f"{number} {words:<77} {verdict:<8} {figures(there)}, in {len(there)} configurations")
        print("".join(f"{story(result)}\n" for result in broken), end="")
        is_content &= verdict == "ok"
    for result in results:
        if result.violated == -1:
            is_content = False
            print(f"the model itself is broken in {result.run.name!r}:\n{story(result)}")
    return is_content


def say_not_promised(one: NotPromised, result: Result) -> bool:
    """A line for what is not promised; whether it was found."""
    is_found = result.violated == one.broken
    print(f"{result.run.name}: {'found' if is_found else 'NOT found'}, {figures([result])}: {one.words}", flush=True)
    print(story(result))
    return is_found


def say_mutant(mutant: Mutant, result: Result) -> bool:
    """A line for one mutant; whether it was caught by the property that it breaks."""
    is_caught = result.violated == mutant.caught_by
    verdict = "caught by" if is_caught else "NOT caught by"
    print(f"mutant {mutant.name}: {verdict} {mutant.caught_by}, {figures([result])}", flush=True)
    return is_caught


def wanted(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="make model ARGS=", description=__doc__)
    parser.add_argument("--mutants", action="store_true", help="only the mutants")
    parser.add_argument("--not-promised", action="store_true", help="only what is not promised")
    parser.add_argument(
        "--only", metavar="NAME", choices=[one.name for one in CONFIGURATIONS], help="one configuration"
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="searches side by side (default 2; each takes up to 1.8 GB)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what was asked for; 1 if anything is not as expected."""
    options = wanted(arguments)
    check_names()
    install_spin()
    BUILD.mkdir(exist_ok=True)
    (BUILD / ".gitignore").write_text("*\n", encoding="utf-8")
    everything = not (options.mutants or options.not_promised or options.only)
    configurations = [one for one in CONFIGURATIONS if everything or one.name == options.only]
    not_promised = NOT_PROMISED if everything or options.not_promised else ()
    mutants = MUTANTS if everything or options.mutants else ()
    began_s, is_content = time.monotonic(), True
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        searches = [pool.submit(search, run_of(one)) for one in configurations]
        of_others = [pool.submit(search, run_of_the_other(one)) for one in not_promised]
        of_mutants = [pool.submit(search, run_of_mutant(mutant)) for mutant in mutants]
        for future in concurrent.futures.as_completed(searches):
            result = future.result()
            print(f"searched {result.run.name!r}: {figures([result])}, {result.took_s:.0f} s", flush=True)
        is_content &= say_properties([future.result() for future in searches], configurations)
        for one, future in zip(not_promised, of_others, strict=True):
            is_content &= say_not_promised(one, future.result())
        for mutant, future in zip(mutants, of_mutants, strict=True):
            is_content &= say_mutant(mutant, future.result())
    print(f"=== model: {'as expected' if is_content else 'NOT as expected'}, {time.monotonic() - began_s:.0f} s")
    return 0 if is_content else 1


if __name__ == "__main__":
    sys.exit(main())
