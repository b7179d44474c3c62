import csv
import json
import shlex
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from runs import CARTPOLE, SMALL, is_refused_in_one_line, stand_in_for_training

import qlax
from qlax.cli import main
from qlax.config.settings import configure, from_file
from qlax.jobs import sweep
from qlax.reports import ranking

# What stands in for training: a greedy return that is the better, the more environments and the larger lam.
JOB = """
import json, pathlib, sys

directory, config = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
directory.mkdir(exist_ok=True)
(directory / "config.json").write_text(sys.argv[2])
with open(directory / "attempts", "a") as file:
    file.write("x")
if config["num_envs"] == int(sys.argv[3]):
    sys.exit(2)
seeds = range(config["seed"], config["seed"] + config["seeds"])
lams = config["lam"] if isinstance(config["lam"], list) else [config["lam"]]
returns = [config["num_envs"] + 10 * lam + seed for lam in lams for seed in seeds]
measured = {"mean": sum(returns) / len(returns), "per_run": returns}
summary = {name: measured for name in ("train_return", "eval_return", "best_eval_return")}
summary["diverged"] = [None] * len(returns)
(directory / "summary.json").write_text(json.dumps(summary))
"""


@pytest.fixture(autouse=True)
def in_an_empty_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def stand_in(monkeypatch):
    """Jobs that run `JOB`, in which those with so many environments fail."""

    def use(failing=0):
        stand_in_for_training(monkeypatch, JOB, str(failing))

    return use


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def asked_for(command):
    """The configuration that a command asks for."""
    program, *words = shlex.split(command)
    assert program == "qlax"
    options = main._parser().parse_args(words)
    return main._configured(options)(**{name: main._value(name, value) for name, value in main._given(options).items()})


def said_command(said):
    (line,) = [line for line in said.splitlines() if line.startswith("train it again: ")]
    return line.removeprefix("train it again: ")


def test_a_sweep_leaves_a_table_a_picture_and_the_command_of_its_best_setting(capsys, tmp_path):
    settings = SMALL | {"learning_rate": "log-uniform:1e-4:1e-2", "lam": [0, 0.9], "runs": 8, "seeds": 2}
    result = qlax.train(CARTPOLE, out="run", progress=False, **settings)
    rows = table(tmp_path / "run" / "sweep.csv")
    runs, summary = result.config.all_runs(), result.summary
    assert [float(row["learning_rate"]) for row in rows] == [run["learning_rate"] for run in runs]
    assert [(row["run"], row["seed"], float(row["lam"])) for row in rows] == [
        (str(index), str(run["seed"]), run["lam"]) for index, run in enumerate(runs)
    ]
    for name in ("train_return", "eval_return", "best_eval_return"):
        assert [float(row[name]) for row in rows] == summary[name]["per_run"]
    assert {row["diverged"] for row in rows} == {""}
    assert (tmp_path / "run" / "sweep.png").stat().st_size > 10_000

    main._report(result)
    said = capsys.readouterr().out
    assert said.count("  run ") == 8
    returns = np.reshape(summary["eval_return"]["per_run"], (4, 2)).mean(1)
    best = result.config.settings()[int(returns.argmax())]
    assert (
        f"best of 4 settings: learning_rate {best['learning_rate']:g}, lam {best['lam']:g}: {returns.max():.2f}, "
        in said
    )
    config = asked_for(said_command(said))
    assert config.settings() == [best]
    assert [run["seed"] for run in config.all_runs()] == [0, 1]
    assert {name: getattr(config, name) for name in SMALL} == SMALL

    longer = qlax.extend("run", 2 * SMALL["total_steps"], progress=False)
    earlier = tmp_path / "run" / "earlier" / str(SMALL["total_steps"])
    assert table(earlier / "sweep.csv") == rows
    assert (earlier / "sweep.png").exists()
    assert len(table(longer.directory / "sweep.csv")) == 8


def test_the_best_setting_is_best_over_its_seeds_and_did_not_diverge():
    config = configure("cartpole", lam=(0, 0.5, 0.9), seeds=2)
    returns = [5.0, 6.0, 9.0, None, 1.0, 9.5]
    diverged = [None, None, None, {"steps": 640, "what": "loss"}, None, None]
    summary = {"train_return": {"per_run": [1.0] * 6}, "eval_return": {"per_run": returns}, "diverged": diverged}
    rows = ranking.rows(config, summary)
    assert rows[3] == {"run": 3, "seed": 1, "lam": 0.5, "train_return": 1.0, "eval_return": None, "diverged": 640}
    ranked = ranking.ranking(rows, ["lam"])
    assert [each.shown(["lam"]) for each in ranked] == [
        "lam 0: 5.50, mean of 2 seeds",
        "lam 0.9: 5.25, mean of 2 seeds",
        "lam 0.5: diverged, mean of 2 seeds",
    ]
    assert sweep.again(config, ranked[0].row, ["lam"]) == "qlax train cartpole --seeds 2 --lam 0.0"


def test_of_settings_that_are_equally_good_in_the_end_the_one_that_was_so_before_is_best():
    config = configure("cartpole", lam=(0, 0.5, 0.9))
    summary = {"train_return": {"per_run": [400.0, 450.0, 480.0]}, "eval_return": {"per_run": [500.0, 500.0, 499.0]}}
    ranked = ranking.ranking(ranking.rows(config, summary | {"diverged": [None] * 3}), ["lam"])
    assert [each.row["lam"] for each in ranked] == [0.5, 0, 0.9]
    assert sweep.again(config, ranked[0].row, ["lam", "num_envs"]) == "qlax train cartpole --num-envs 32 --lam 0.5"


def test_a_report_of_many_runs_names_the_best_settings(capsys):
    config = configure("cartpole", learning_rate="log-uniform:1e-5:1e-2", runs=40)
    per_run = [float(index) for index in range(40)]
    summary = {"eval_return": {"per_run": per_run}, "diverged": [None] * 40, "eval_cut": [0], "eval_episodes": 3}
    summary["train_return"] = summary["eval_return"]
    summary |= {
        "total_steps": 100,
        "steps_per_second": 1.0,
        "compile_seconds": 1.0,
        "device": "cpu",
        "network": {},
        "num_devices": 1,
    }
    main._report(qlax.Result(Path("run"), config, summary, {}, [None] * 40))
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 12
    assert "run/sweep.csv" in said
    assert [line.split()[-1] for line in said.splitlines()[1:6]] == ["39.00", "38.00", "37.00", "36.00", "35.00"]
    assert asked_for(said_command(said)).settings() == [config.settings()[39]]


@pytest.mark.parametrize(
    ("fields", "rows"),
    [
        (["learning_rate"], 1),
        (["learning_rate", "gamma", "lam"], 60),
        (["num_envs", "hidden", "norm", "dueling", "total_steps"], 60),
    ],
)
def test_every_sweep_can_be_drawn(fields, rows, tmp_path):
    random = np.random.default_rng(0)
    values = {
        "learning_rate": random.uniform(1e-5, 1e-2, 60).tolist(),
        "gamma": random.uniform(0.9, 1, 60).tolist(),
        "lam": [0.0, 0.5] * 30,
        "num_envs": [8, 16, 128] * 20,
        "hidden": [(8,), (64, 64), (8,)] * 20,
        "norm": ["layer", "none"] * 30,
        "dueling": [True, False] * 30,
        "total_steps": [100, 1_000_000] * 30,
        "train_return": [0.0] * 60,
        "eval_return": [None, *random.normal(size=59).tolist()],
    }
    config = configure("cartpole", learning_rate="log-uniform:1e-5:1e-2", gamma="uniform:0.9:1", lam=(0, 0.5), runs=60)
    of = [{name: column[index] for name, column in values.items()} for index in range(rows)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sweep.write(tmp_path, config, of, fields)
    assert (tmp_path / "sweep.png").exists()
    assert len(table(tmp_path / "sweep.csv")) == rows


def test_jobs_of_a_sweep_make_one_table_and_go_on(capsys, stand_in, tmp_path):
    stand_in(failing=32)
    words = ["sweep", "cartpole", "--num-envs", "16", "32", "--hidden", "8", "8,4", "--lam", "0", "0.5", "--seeds", "2"]
    assert main.main([*words, "--jobs", "4"]) == 1
    out = tmp_path / "runs" / "cartpole-sweep-1"
    assert "2 of 4 jobs failed: 2-num_envs=32-hidden=8, 3-num_envs=32-hidden=8,4; the same" in capsys.readouterr().err
    assert len(table(out / "sweep.csv")) == 8
    stand_in()
    assert main.main([*words, "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "sweep in" in said.err
    assert "jobs 4, complete 2, to go on with 2" in said.err
    attempts = {path.parent.name: path.read_text() for path in out.glob("*/attempts")}
    assert attempts == {
        "0-num_envs=16-hidden=8": "x",
        "1-num_envs=16-hidden=8,4": "x",
        "2-num_envs=32-hidden=8": "xx",
        "3-num_envs=32-hidden=8,4": "xx",
    }
    rows = table(out / "sweep.csv")
    assert [(row["num_envs"], row["hidden"], row["lam"], row["seed"]) for row in rows[8:12]] == [
        ("32", "8", "0.0", "0"),
        ("32", "8", "0.0", "1"),
        ("32", "8", "0.5", "0"),
        ("32", "8", "0.5", "1"),
    ]
    assert (out / "sweep.png").exists()
    assert "best of 8 settings: num_envs 32, hidden 8, lam 0.5: 37.50, mean of 2 seeds" in said.out
    best = asked_for(said_command(said.out))
    assert (best.preset, best.num_envs, best.hidden, best.lam, best.seeds) == ("cartpole", 32, (8,), 0.5, 2)
    assert main.main([*words, "--out", str(out)]) == 0  # nothing is left to do
    assert said_command(capsys.readouterr().out) == said_command(said.out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sweep", "name one thing to train"),
        ("sweep cartpol --num-envs 16 32", "did you mean 'cartpole'"),
        (
            "sweep cartpole",
            "nothing has several values to compare; give some, as in --num-envs 16 32, or use qlax train",
        ),
        ("sweep cartpole --num-envs 16 16", "nothing has several values to compare"),
        ("sweep cartpole --num-envs 16 0", "num_envs=0: expected a whole number from 1"),
        ("sweep cartpole --num-envs 16 24 --num-minibatches 16 9", "num_minibatches=9 does not divide the 16"),
        ("sweep cartpole --norm layer leyer", "did you mean 'layer'"),
        ("sweep cartpole --dueling true maybe", "dueling=maybe: expected true or false"),
        ("sweep cartpole --seeds 2 3", "seeds has several values, but holds for all jobs of a sweep; give it one"),
        ("sweep cartpole --population none pbt", "population has several values, but holds for all jobs"),
        ("sweep cartpole --lamm 0 1", "unknown flag '--lamm'; did you mean '--lam'"),
        ("sweep cartpole --lam uniform:0:1 --num-envs 16 32", "lam=uniform:0:1 is drawn from: say with runs"),
        ("sweep cartpole --lam 0 1 --jobs 0", "jobs=0: expected a whole number from 1"),
        ("sweep cartpole --lam 0 1 --trials 2", "trials=2: there is nothing to choose"),
        ("sweep cartpole --num-envs 16 32 --trials 0", "trials=0: expected a whole number from 1"),
        ("sweep cartpole --lam 0 1 --out used", "used is neither empty nor a sweep; name another directory with --out"),
        (
            "sweep cartpole --num-envs 16 32 --out begun",
            "begun was begun with num_envs=[8, 16], but now num_envs=[16, 32]",
        ),
        ("sweep cartpole --num-envs 8 16 --lam 0 1 --out begun", "with lam=0.95, but now lam=[0.0, 1.0] is asked for"),
        ("sweep cartpole --num-envs 8 16 --out damaged", "damaged/sweep.json cannot be read"),
        (
            "train cartpole --num-envs 16 32",
            "--num-envs takes one value, not '32' as well; several values are for 'qlax sweep'",
        ),
        ("train --hidden 8 8,4 cartpole", "--hidden takes one value, not 'cartpole' as well"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written_or_run(words, message, capsys, monkeypatch, stand_in, tmp_path):
    stand_in()
    begun = ["--num-envs", "8", "16", "--num-minibatches", "8", "--out", "begun"]
    assert main.main(["sweep", "cartpole", *begun]) == 0
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "sweep.json").write_text("{")
    monkeypatch.setattr(sweep, "run_jobs", None)
    if "begun" in words or "damaged" in words:
        words += " --num-minibatches 8"
    is_refused_in_one_line(words.split(), message, capsys, tmp_path)


def test_switches_and_files_are_swept_as_well(capsys, stand_in, tmp_path):
    stand_in()
    (tmp_path / "config.json").write_text(configure("cartpole", seeds=2).to_json())
    words = "--config config.json --dueling true false --no-time-limit-is-terminal --out all"
    assert main.main(["sweep", *words.split()]) == 0
    configs = [from_file(path) for path in sorted((tmp_path / "all").glob("*/config.json"))]
    assert [(config.dueling, config.seeds, config.preset) for config in configs] == [
        (True, 2, "cartpole"),
        (False, 2, "cartpole"),
    ]
    assert "dueling True" in capsys.readouterr().out


def test_what_is_not_installed_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    for words, extra in (("--trials 2", "optuna"), ("--on ray", "ray")):
        with pytest.raises(SystemExit):
            main.main(["sweep", "cartpole", "--num-envs", "16", "32", *words.split()])
        assert f"is not installed (no module '{extra}'): pip install 'qlax[{extra}]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_optuna_chooses_and_is_gone_on_with(capsys, stand_in, tmp_path):
    pytest.importorskip("optuna")
    stand_in()
    words = "sweep cartpole --num-minibatches 4 --num-envs 4 8 16 32 64 128 --hidden 8 16 32 --lam 0 0.5 --jobs 2"
    assert main.main([*words.split(), "--trials", "24", "--out", "whole"]) == 0
    said = capsys.readouterr().out
    assert "num_envs 128" in said.split("best of")[1]
    jobs = sorted(path.name for path in (tmp_path / "whole").iterdir() if path.is_dir())
    assert len(jobs) < 18  # of as many: what is chosen again is not trained again
    assert all(len(path.read_text()) == 1 for path in (tmp_path / "whole").glob("*/attempts"))
    assert main.main([*words.split(), "--trials", "7", "--out", "parts"]) == 0
    assert main.main([*words.split(), "--trials", "24", "--out", "parts"]) == 0
    assert json.loads((tmp_path / "parts" / "sweep.json").read_text())["num_envs"] == [4, 8, 16, 32, 64, 128]
    assert all(len(path.read_text()) == 1 for path in (tmp_path / "parts").glob("*/attempts"))
    assert sorted(path.name for path in (tmp_path / "parts").iterdir() if path.is_dir()) == jobs
