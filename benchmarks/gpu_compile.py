"""Count the operations of programs for a GPU, on a machine without one: `python benchmarks/gpu_compile.py`.

XLA compiles a program for a device that is only described, in `benchmarks/devices/`. From its list of what the device
and the host will do, this script counts operations: kernels, and copies within the device's memory. For one agent, and
for small networks in general, the time of an update on a GPU is mostly the number of its operations times the few
microseconds that it takes to launch one. **Nothing runs, so nothing here is a speed.**

A case is a preset with a number of agents, as in `cartpole:10`, and settings, as in `cartpole:10,cuda_graph=true`. Each
is compiled in a process of its own. The record has for each case:

- operations per step of all environments of all agents (`step`), per minibatch and per update. Those of loops inside
  are included, once for each turn; a loop whose number of turns is known only when it runs counts as one turn, and of
  the branches of a condition all count;
- launches by the host per update: of CUDA graphs, and of operations outside of them. 0 if the chunk is one graph;
- operations for which the device has to wait for the host;
- temporary memory per agent, grouped convolutions, and seconds of compilation;
- the lines of qlax that most operations of a step and of a minibatch come from.

For environments on the host, the learner alone is compiled.

It needs the CUDA plugin of JAX and the compiler that it calls, 1.4 GB, but neither a driver nor cuDNN:

    pip install jax==0.10.2
    pip install --no-deps jax-cuda13-plugin==0.10.2 jax-cuda13-pjrt==0.10.2 nvidia-cuda-nvcc nvidia-nvvm
"""

import argparse
import collections
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from records import RESULTS, circumstances

CASES = (
    *("cartpole:1", "cartpole:10", "cartpole:128", "minatar/breakout:1", "minatar/breakout:10"),
    *("memory-chain:1", "atari/Pong:1", "craftax-classic:1"),
    *("cartpole:1,cuda_graph=true", "minatar/breakout:10,cuda_graph=true", "craftax-classic:1,cuda_graph=true"),
)
DEVICES = Path(__file__).parent / "devices"
COMPILER = ("jax-cuda13-plugin", "nvidia-cuda-nvcc", "nvidia-nvvm")
GROUPS = ("kCommandBuffer", "kSequential", "kConditional", "kAsyncStart")  # in XLA's list: these contain others
WAITS = re.compile("Host|Infeed|Outfeed|Send|Recv")  # kinds of operations between device and host
WRITTEN = ("gpu_after_optimizations", "thunk_sequence_after_thunk_passes", "thunk_metadata")  # files that XLA writes
NOWHERE = ("elsewhere", "")  # origin of instructions that XLA has added
COUNTS = ("step", "minibatch", "update", "host_launches", "host_waits", "grouped_convolutions")


def main() -> None:
    """Compile every case, print the table and add it to the record."""
    parser = argparse.ArgumentParser(description="Compile for a GPU without one, and count operations.")
    parser.add_argument("cases", nargs="*", default=CASES, help="as in minatar/breakout:10,cuda_graph=true")
    parser.add_argument("--device", default="h100", help="name of a file in benchmarks/devices/ (default h100)")
    parser.add_argument("--label", default="today", help="state of the code, under which the record keeps the counts")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu_compile.json", help="record to add the counts to")
    parser.add_argument("--compile", help=argparse.SUPPRESS)  # case of a child process
    options = parser.parse_args()
    if options.compile:
        print(json.dumps(compiled(options.compile, options.device)))
        return
    record = json.loads(options.out.read_text()) if options.out.exists() else {"states": {}}
    record |= circumstances("python " + " ".join(sys.argv)) | {"device": options.device}
    try:
        record["versions"] |= {name: importlib.metadata.version(name) for name in COMPILER}
    except importlib.metadata.PackageNotFoundError as error:
        sys.exit(f"{error.name} is not installed; the docstring of this script says how to install the compiler")
    state = record["states"].setdefault(options.label, {})
    for case in options.cases:
        state[case] = in_a_process(case, options.device)
        print(case, {name: state[case][name] for name in COUNTS}, file=sys.stderr)
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(table({case: state[case] for case in options.cases}))


def in_a_process(case: str, device: str) -> dict:
    """Return the result of `compiled`, called in a process of its own with the options that users have."""
    command = [sys.executable, __file__, "--compile", case, "--device", device]
    # With JAX_PLATFORMS=cuda, JAX would look for a GPU. A program from a cache would not be listed.
    own = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    with tempfile.TemporaryDirectory() as folder:
        own["XLA_FLAGS"] = f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=jit_(chunk|learn)"
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | own).stdout
        return json.loads(found.splitlines()[-1]) | counts(Path(folder))


def compiled(case: str, device: str) -> dict:
    """Compile the program of a case, whose list of operations XLA writes to a file; return what it takes."""
    from jax.experimental import topologies

    from qlax.config.configure import configure
    from qlax.training import device_runs, placement, plan

    description = (DEVICES / f"{device}.txtpb").read_text()
    described = topologies.get_topology_desc("", "cuda", target_config=description, topology="1x1x1").devices
    placement._devices = lambda: list(described)
    preset, _, rest = case.partition(":")
    agents, *settings = rest.split(",")
    named = dict(setting.split("=", 1) for setting in settings)
    texts = ("compute_dtype", "matmul_precision")  # other settings are JSON
    values = {name: value if name in texts else json.loads(value) for name, value in named.items()}
    planned = plan.make(configure(preset, seeds=int(agents), **values), {})
    begun = time.perf_counter()
    with planned.precision():
        lowered = learner(planned) if planned.vec is None else device_runs.DeviceRuns(planned, ()).lowered_chunk()
    program = planned.placement.compile(lowered)
    return {
        "agents": int(agents),
        "compile_seconds": round(time.perf_counter() - begun, 1),
        "temporary_mebibytes_per_agent": round(program.memory_analysis().temp_size_in_bytes / int(agents) / 2**20, 2),
    }


def learner(planned: Any) -> Any:
    """Trace the program that learns from a rollout, for environments on the host."""
    import jax

    def learn(state, record, rollout):
        return jax.vmap(planned.learn)(state, record, rollout)

    rollout = jax.eval_shape(jax.vmap(planned.rollout), planned.shapes)[1]
    return planned.placement.lower(learn, planned.shapes, planned.new_record(), rollout)


@dataclass
class Entry:
    """Entry of XLA's list: an operation, or a group or loop of others.

    Attributes:
      kind: XLA's kind, such as `kCustomKernel`.
      name: Name of the instruction in the optimised program.
      in_graph: Whether it is part of a CUDA graph.
      inside: Operations of the group, or of the loop's body; without the condition of a loop.
    """

    kind: str
    name: str
    in_graph: bool = False
    inside: list["Entry"] = field(default_factory=list)


class Program(NamedTuple):
    """Optimised program, as far as it says where operations come from.

    Attributes:
      turns: Number of turns of each loop for which it is known.
      origins: Line and function of qlax that each instruction comes from, `("pqn.py:253", "make.<locals>.rollout")`.
      grouped_convolutions: Number of convolutions that compute each group of channels apart.
    """

    turns: dict[str, int]
    origins: dict[str, tuple[str, str]]
    grouped_convolutions: int


def counts(folder: Path) -> dict:
    """Return the counts of the program that XLA wrote to a folder."""
    text, listed, described = (next(folder.glob(f"*{name}.txt")).read_text() for name in WRITTEN)
    program, entries = read_program(text), read_list(listed, described)
    loops = [entry for entry, _ in within(entries, program) if entry.kind == "kWhile"]

    def body(function: str) -> list[Entry]:
        """Return the body of the loop in a function of qlax; nothing if XLA removed the loop, as it has one turn."""
        found = (loop.inside for loop in loops if program.origins.get(loop.name, NOWHERE)[1].endswith(function))
        return next(found, [])

    update, step, minibatch = body("chunk") or entries, body("rollout"), body("epoch")
    return {
        "step": operations(step, program),
        "minibatch": operations(minibatch, program),
        "update": operations(update, program),
        "host_launches": launches(update, program),
        "host_waits": sum(bool(WAITS.search(entry.kind)) for entry, _ in within(entries, program)),
        "grouped_convolutions": program.grouped_convolutions,
        "lines_of_step": lines(step, program),
        "lines_of_minibatch": lines(minibatch, program),
    }


def read_list(listed: str, described: str) -> list[Entry]:
    """Read XLA's list of operations, which shows groups and loops by indentation, and its list of their names."""
    names = {number: name for name, number in re.findall(r'annotation: "([^"]*)"\s+thunk_id: (\d+)', described)}
    top = Entry("program", "")
    around = [(-1, top)]  # entries that hold the current one, with their indentation; the innermost comes last
    condition_of = None  # indentation of the loop whose condition is being read
    for line in listed.splitlines():
        indentation = len(line) - len(line.lstrip())
        if line.strip() == "condition:":
            condition_of = around[-1][0]
        elif line.strip() == "body:":
            condition_of = None
        elif (found := re.match(r" *0*(\d+): (k\w+)", line)) and (condition_of is None or indentation <= condition_of):
            while around[-1][0] >= indentation:
                around.pop()
            holder = around[-1][1]
            entry = Entry(found[2], names.get(found[1], ""), holder.in_graph or holder.kind == "kCommandBuffer")
            holder.inside.append(entry)
            around.append((indentation, entry))
    return top.inside


def read_program(text: str) -> Program:
    """Read the text of an optimised program."""
    tables = {
        name: dict(re.findall(r"^(\d+) (.*)$", re.search(rf"^{name}\n((?:\d+ .*\n)+)", text, re.M)[1], re.M))
        for name in ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
    }

    def origin(frame: str) -> tuple[str, str]:
        while frame != "0":
            location, caller = re.findall(r"=(\d+)", tables["StackFrames"][frame])
            file, function, line = re.findall(r"=(\d+)", tables["FileLocations"][location])[:3]
            _, inside, path = tables["FileNames"][file].strip('"').rpartition("/qlax/")
            if inside:
                return f"{path}:{line}", tables["FunctionNames"][function].strip('"')
            frame = str(int(caller) - 1)
        return NOWHERE

    turns, origins = {}, {}
    for name, rest in re.findall(r"^ *(?:ROOT )?%?([\w.-]+) = (.*)$", text, re.M):
        if frame := re.search(r"stack_frame_id=(\d+)", rest):
            origins[name] = origin(frame[1])
        if count := re.search(r'known_trip_count":{"n":"(\d+)"', rest):
            turns[name] = int(count[1])
    return Program(turns, origins, len(re.findall(r"^.* = .*(?:feature|batch)_group_count=(?!1\b)", text, re.M)))


def within(entries: list[Entry], program: Program, times: int = 1) -> Iterator[tuple[Entry, int]]:
    """Yield operations and loops, those inside of groups and loops too, with the number of times that they are done."""
    for entry in entries:
        if entry.kind not in GROUPS:
            yield entry, times
        if entry.kind in (*GROUPS, "kWhile"):
            yield from within(entry.inside, program, times * turns_of(entry, program))


def operations(entries: list[Entry], program: Program) -> int:
    """Return the number of operations of the device."""
    return sum(times for entry, times in within(entries, program) if entry.kind != "kWhile")


def launches(entries: list[Entry], program: Program) -> int:
    """Return the number of operations and graphs that the host launches."""
    return sum(
        turns_of(entry, program) * launches(entry.inside, program)
        if entry.kind in ("kWhile", *GROUPS) and entry.kind != "kCommandBuffer"
        else not entry.in_graph
        for entry in entries
    )


def turns_of(entry: Entry, program: Program) -> int:
    """Return the number of times that everything inside of a loop or group is done; 1 if it is not known."""
    return program.turns.get(entry.name, 1) if entry.kind == "kWhile" else 1


def lines(entries: list[Entry], program: Program) -> dict[str, int]:
    """Return the lines of qlax that most operations come from, with their numbers of operations."""
    found: collections.Counter[str] = collections.Counter()
    for entry, times in within(entries, program):
        if entry.kind != "kWhile":
            line, function = program.origins.get(entry.name, NOWHERE)
            found[f"{line} {function.rpartition('.<locals>.')[2]}".strip()] += times
    return dict(found.most_common(8))


def table(cases: dict[str, dict]) -> str:
    """Return the table of counts as Markdown."""
    rows = [
        "| case | operations per step | per minibatch | per update | launches by the host per update | "
        "temporary MiB per agent | grouped convolutions | compilation |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows += [
        f"| `{case}` | {x['step'] or '-'} | {x['minibatch']} | {x['update']:,} | {x['host_launches']:,} | "
        f"{x['temporary_mebibytes_per_agent']} | {x['grouped_convolutions']} | {x['compile_seconds']:.0f} s |"
        for case, x in cases.items()
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    main()
