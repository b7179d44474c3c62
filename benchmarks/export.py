"""Check that exported agents act like the agent itself: `python benchmarks/export.py [folder]`.

The script trains small agents, unless the folder already holds runs of these names, and shows 1,000 random observations
to each of their forms: the agent in JAX, in NumPy, as StableHLO and as ONNX. The record `results/export.json` holds the
share of equal actions, the largest difference of Q-values and the size of the file. It also holds the time to load a
form and to act on one observation, in a process of its own with one thread.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from records import RESULTS, circumstances

import qlax

COMMANDS = {  # trained, because the Q-values of random weights lie further apart, which is no test
    "cartpole": "cartpole-fast --total-steps 50000",
    "breakout": "minatar/breakout --total-steps 100000",
    "memory-chain": "memory-chain --total-steps 20000",
}
ROWS, STEPS, ACTS = 20, 50, 1_000  # 1,000 observations, which are 20 parallel episodes for an agent with memory


def observations(info: dict) -> list[np.ndarray]:
    """Return random observations of all steps, `[STEPS, ROWS, ...]`; an observation is a single array."""
    ((dtype, shape),) = info["obs"]
    random = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return random.normal(size=(STEPS, ROWS, *shape)).astype(dtype)
    return random.integers(2 if dtype == "bool" else 256, size=(STEPS, ROWS, *shape)).astype(dtype)


def player(form: str, run: str):
    """Return a function from `obs, first` to Q-values that computes in this form and keeps the memory.

    Only the libraries that the form needs are imported.
    """
    if form in ("jax", "numpy"):
        return qlax.load(run, numpy_only=form == "numpy").q_values
    memory = []
    if form == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(f"{run}/agent.onnx", options)
        inputs = [(given.name, given.shape[1:]) for given in session.get_inputs()]

        def look(obs, first):
            shapes = [(name, shape) for name, shape in inputs if name.startswith("memory/")]
            before = memory or [np.zeros((len(obs), *shape), np.float32) for _, shape in shapes]
            named = dict(zip([name for name, _ in shapes], before, strict=True))
            q, *memory[:] = session.run(None, {"obs": obs, **named, **({"first": first} if shapes else {})})
            return q

        return look
    import jax.export

    exported = jax.export.deserialize(bytearray(Path(run, "agent.stablehlo").read_bytes()))
    call = jax.jit(exported.call)
    description = json.loads(Path(run, "agent.stablehlo.json").read_text())
    shapes = [given["shape"][1:] for given in description["inputs"] if given["name"].startswith("memory/")]

    def look(obs, first):
        if not shapes:
            return np.asarray(call(obs))
        before = memory[0] if memory else tuple(np.zeros((len(obs), *shape), np.float32) for shape in shapes)
        q, after = call(before, obs, first)
        memory[:] = [after]
        return np.asarray(q)

    return look


def measure(form: str, run: str, out: str) -> dict[str, float]:
    """Write the Q-values of all observations to `out`; return the seconds to load and the microseconds to act.

    It has to be called in a process of its own, because imports are part of loading.
    """
    begun = time.perf_counter()
    look = player(form, run)
    info = json.loads(Path(run, "agent.stablehlo.json").read_text())
    obs, random = observations(info), np.random.default_rng(1)
    look(obs[0, :1], np.ones(1, bool)).argmax(-1)
    loaded = time.perf_counter() - begun
    times = []
    for number in range(ACTS):
        begun = time.perf_counter()
        look(obs[number % STEPS, :1], np.zeros(1, bool)).argmax(-1)
        times.append(time.perf_counter() - begun)
    look = player(form, run)
    np.save(out, [look(each, random.random(ROWS) < (0.1 if step else 1.1)) for step, each in enumerate(obs)])
    return {"load_seconds": round(loaded, 2), "microseconds_an_act": round(1e6 * float(np.median(times)))}


def compared(run: Path) -> dict[str, dict[str, float]]:
    """Measure every form of the agent of one run, and compare it with the form in JAX."""
    files = {"jax": run / "agents" / "0.safetensors"}
    files["numpy"] = files["jax"]
    for form in ("stablehlo", "onnx"):
        files[form] = run / f"agent.{form}"
        if not files[form].exists():
            qlax.export(run, format=form)
    found, q = {}, {}
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    for form, file in files.items():
        command = [sys.executable, __file__, "--measure", form, str(run), str(run / f"{form}.npy")]
        said = subprocess.run(command, env=os.environ | one_thread, check=True, capture_output=True, text=True).stdout
        q[form] = np.load(run / f"{form}.npy")
        found[form] = {
            "equal_actions": float((q[form].argmax(-1) == q["jax"].argmax(-1)).mean()),
            "largest_difference": float(np.abs(q[form] - q["jax"]).max()),
            "bytes": file.stat().st_size,
            **json.loads(said),
        }
    largest = float(np.abs(q["jax"]).max())
    return {"largest_q": largest, "actions_taken": np.unique(q["jax"].argmax(-1)).tolist(), "forms": found}


def main(folder: Path) -> None:
    """Train the agents that the folder lacks, and compare the forms of each."""
    record = circumstances("python benchmarks/export.py") | {"agents": {}}
    for name, command in COMMANDS.items():
        run = folder / name
        if not (run / "summary.json").exists():
            words = ["train", *command.split(), "--out", str(run)]
            subprocess.run([sys.executable, "-m", "qlax", *words], check=True)
        record["agents"][name] = {"trained_by": f"qlax train {command}", **compared(run)}
        (RESULTS / "export.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record["agents"], indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(*sys.argv[2:])))
    elif sys.argv[1:]:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
