import csv
import json
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from runs import CARTPOLE, SMALL, flags, is_refused_in_one_line, stand_in_for_training

import qlax
from qlax.cli import flags as cli_flags
from qlax.cli import main, train
from qlax.config.configure import configure
from qlax.jobs import sweep
from qlax.jobs.runner import Outcome
from qlax.storage.formats import config_of_file, to_json

pytestmark = pytest.mark.filterwarnings("ignore:os.fork")  # the command runs no JAX, which forking could harm

# Stand-in for training: its greedy return grows with the number of environments and with lam.
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
summary |= {"diverged": [None] * len(returns), "preset": config["preset"], "env": config["env"], "device": "cpu"}
summary |= {"seeds": [*seeds] * len(lams), "total_steps": 1000, "steps_per_second": 10.0, "eval_episodes": 64}
summary |= {"eval_cut": [0.0] * len(returns), "eval_distinct": [64] * len(returns)}
(directory / "summary.json").write_text(json.dumps(summary))
"""


@pytest.fixture(autouse=True)
def in_an_empty_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def stand_in(monkeypatch):
    """Return a function that lets jobs run `JOB`; jobs with `failing` environments fail."""

    def use(failing=0):
        stand_in_for_training(monkeypatch, JOB, str(failing))

    return use


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def asked_for(command):
    """Return the configuration of a command."""
    program, *words = shlex.split(command)
    assert program == "qlax"
    options = main.parser().parse_args(words)
    return train.configured(options)(**cli_flags.given(options))


def said_command(said):
    (line,) = [line for line in said.splitlines() if line.startswith("train it again: ")]
    return line.removeprefix("train it again: ")


@pytest.mark.slow
def test_a_sweep_leaves_a_table_a_picture_and_the_command_of_its_best_setting(capsys, tmp_path):
    settings = SMALL | {"learning_rate": "log-uniform:1e-4:1e-2", "lam": [0, 0.9], "draws": 2, "seeds": 2}
    result = qlax.train(CARTPOLE, out="run", progress=False, **settings)
    rows = table(tmp_path / "run" / "sweep.csv")
    runs, summary = result.config.members, result.summary
    assert [float(row["learning_rate"]) for row in rows] == [run["learning_rate"] for run in runs]
    assert [(row["agent"], row["seed"], float(row["lam"])) for row in rows] == [
        (str(index), str(run["seed"]), run["lam"]) for index, run in enumerate(runs)
    ]
    for name in ("train_return", "eval_return", "best_eval_return"):
        assert [float(row[name]) for row in rows] == summary[name]["per_run"]
    assert {row["diverged"] for row in rows} == {""}
    assert (tmp_path / "run" / "sweep.png").stat().st_size > 10_000

    train.report(result)
    said = capsys.readouterr().out
    assert said.count("  agent ") == 8
    returns = np.reshape(summary["eval_return"]["per_run"], (4, 2)).mean(1)
    best = result.config.settings()[int(returns.argmax())]
    assert (
        f"best of 4 settings: learning_rate {best['learning_rate']:g}, lam {best['lam']:g}: {returns.max():.2f}, "
        in said
    )
    config = asked_for(said_command(said))
    assert config.settings() == [best]
    assert [run["seed"] for run in config.members] == [0, 1]
    assert {name: getattr(config, name) for name in SMALL} == SMALL

    longer = qlax.extend("run", 2 * SMALL["total_steps"], progress=False)
    earlier = tmp_path / "run" / "earlier" / str(SMALL["total_steps"])
    assert table(earlier / "sweep.csv") == rows
    assert (earlier / "sweep.png").exists()
    assert len(table(longer.directory / "sweep.csv")) == 8


def test_a_report_of_many_runs_names_the_best_settings(capsys):
    config = configure("cartpole", learning_rate="log-uniform:1e-5:1e-2", draws=40)
    per_run = [float(index) for index in range(40)]
    summary = {
        "eval_return": {"per_run": per_run},
        "diverged": [None] * 40,
        "eval_cut": [0],
        "eval_distinct": [3] * 40,
        "eval_episodes": 3,
    }
    summary["train_return"] = summary["eval_return"]
    summary |= {
        "total_steps": 100,
        "steps_per_second": 1.0,
        "compile_seconds": 1.0,
        "device": "cpu",
        "network": {},
        "num_devices": 1,
        "stopped_by": "",
    }
    train.report(qlax.Result(Path("run"), config, summary, {}, [None] * 40))
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 12
    assert "run/sweep.csv" in said
    assert [line.split()[-1] for line in said.splitlines()[1:6]] == ["39.00", "38.00", "37.00", "36.00", "35.00"]
    assert asked_for(said_command(said)).settings() == [config.settings()[39]]


def test_jobs_of_a_sweep_make_one_table_and_go_on(capsys, stand_in, tmp_path):
    stand_in(failing=32)
    words = ["sweep", "cartpole", "--num-envs", "16", "32", "--hidden", "8", "8,4", "--lam", "0", "0.5", "--seeds", "2"]
    assert main.main([*words, "--jobs", "4"]) == 1
    out = tmp_path / "runs" / "cartpole-sweep-1"
    assert (
        "2 of 4 jobs failed: 2-num_envs=32-hidden=8, 3-num_envs=32-hidden=8,4; try them again with the same"
        in capsys.readouterr().err
    )
    assert len(table(out / "sweep.csv")) == 8
    stand_in()
    assert main.main([*words, "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "sweep in" in said.err
    assert "jobs 4, complete 2, to resume 2" in said.err
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
    assert main.main([*words, "--out", str(out)]) == 0  # all jobs are complete
    assert said_command(capsys.readouterr().out) == said_command(said.out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sweep", "expected one of: a preset"),
        ("sweep cartpol --num-envs 16 32", "did you mean 'cartpole'"),
        (
            "sweep cartpole",
            "there is nothing to compare: give several values, as in --num-envs 16 32, or several targets",
        ),
        ("sweep cartpole --num-envs 16 16", "there is nothing to compare"),
        ("sweep cartpole cartpole", "there is nothing to compare"),
        ("sweep cartpole acrobat", "did you mean 'acrobot'"),
        ("sweep minatar --gamma 1.5", "gamma=1.5: expected a number from 0 to 1"),
        ("sweep minatar --num-minibatches 30", "does not divide the 128 environments x 32 steps"),
        ("sweep minatar --num-envs 32 64 --on slurm", "invalid choice: 'slurm'"),
        ("sweep minatar --gpus-per-job 0.5", "gpus_per_job=0.5 is for jobs on Ray; add --on ray"),
        ("sweep minatar --on ray --cpus-per-job 0", "cpus_per_job=0: expected more than 0"),
        ("sweep minatar --jobs two", "invalid int value: 'two'"),
        ("sweep minatar --out /dev/null/all", "cannot make the directory /dev/null/all: Not a directory"),
        ("sweep atari57 --keep " + " ".join(map(str, range(1, 74))), "57 targets x keep would be 4,161 jobs"),
        ("sweep cartpole --num-envs 16 0", "num_envs=0: expected a whole number from 1"),
        ("sweep cartpole --num-envs 16 24 --num-minibatches 16 9", "num_minibatches=9 does not divide the 16"),
        ("sweep cartpole --norm layer leyer", "did you mean 'layer'"),
        ("sweep cartpole --dueling true maybe", "dueling=maybe: expected true or false"),
        (
            "sweep cartpole --seeds 2 3",
            "seeds has several values, but is the same in all jobs of a sweep; give it one value",
        ),
        ("sweep cartpole --population none pbt", "population has several values, but is the same in all jobs"),
        ("sweep cartpole --lamm 0 1", "unknown flag '--lamm'; did you mean '--lam'"),
        ("sweep cartpole --lam uniform:0:1 --num-envs 16 32", "lam=uniform:0:1 is a distribution: give the number"),
        ("sweep cartpole --lam 0 1 --jobs 0", "jobs=0: expected a whole number from 1"),
        ("sweep cartpole acrobot --num-envs 8 16 --out begun", "was begun with env='gymnax/CartPole-v1', "),
        ("sweep cartpole --lam 0 1 --out used", "used is neither empty nor a sweep; name another directory with --out"),
        (
            "sweep cartpole --num-envs 16 32 --out begun",
            "begun was begun with num_envs=[8, 16], but the command asks for num_envs=[16, 32]",
        ),
        (
            "sweep cartpole --num-envs 8 16 --lam 0 1 --out begun",
            "with lam=0.95, but the command asks for lam=[0.0, 1.0]",
        ),
        ("sweep cartpole --num-envs 8 16 --out damaged", "damaged/sweep.json cannot be read"),
        (
            "sweep cartpole --num-envs 8 16 --out other",
            "other/0-num_envs=8 was begun with num_envs=16, but the command asks for num_envs=8",
        ),
        ("sweep cartpole --num-envs 8 16 --out used-job", "1-num_envs=16 is neither empty nor a run; name another"),
        ("sweep cartpole --num-envs 8 16 --out half", "half/1-num_envs=16/summary.json is not JSON"),
        (
            "train cartpole --num-envs 16 32",
            "--num-envs takes one value, not also '32'; use qlax sweep for several values",
        ),
        ("train --hidden 8 8,4 cartpole", "--hidden takes one value, not also 'cartpole'"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written_or_run(words, message, capsys, monkeypatch, stand_in, tmp_path):
    stand_in()
    begun = ["--num-envs", "8", "16", "--num-minibatches", "8", "--out", "begun"]
    assert main.main(["sweep", "cartpole", *begun]) == 0
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    for name in ("damaged", "other", "used-job", "half"):
        shutil.copytree("begun", name)
    Path("damaged/sweep.json").write_text("{")
    shutil.copy("begun/1-num_envs=16/config.json", "other/0-num_envs=8/config.json")
    Path("used-job/1-num_envs=16/config.json").unlink()
    Path("half/1-num_envs=16/summary.json").write_text("{")
    monkeypatch.setattr(sweep, "run_jobs", None)
    if "--out begun" in words or "--num-envs 8 16" in words:
        words += " --num-minibatches 8"
    is_refused_in_one_line(words.split(), message, capsys, tmp_path)


def test_switches_and_files_are_swept_as_well(capsys, stand_in, tmp_path):
    stand_in()
    (tmp_path / "config.json").write_text(to_json(configure("cartpole", seeds=2)))
    words = "--config config.json --dueling true false --no-time-limit-is-terminal --out all"
    assert main.main(["sweep", *words.split()]) == 0
    configs = [config_of_file(path) for path in sorted((tmp_path / "all").glob("*/config.json"))]
    assert [(config.dueling, config.seeds, config.preset) for config in configs] == [
        (True, 2, "cartpole"),
        (False, 2, "cartpole"),
    ]
    assert "dueling on" in capsys.readouterr().out


def test_without_ray_it_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["sweep", "cartpole", "--num-envs", "16", "32", "--on", "ray"]
    is_refused_in_one_line(words, "Ray is not installed (no module 'ray'): pip install 'qlax[ray]'", capsys, tmp_path)


def test_two_targets_are_trained_to_the_table_and_never_twice(capsys, monkeypatch, pytestconfig, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(pytestconfig.cache.mkdir("jax")))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    settings = SMALL | {"total_steps": 64}
    words = ["sweep", "cartpole", "acrobot", "--jobs", "2", *flags(settings), "--dueling"]
    assert main.main(words) == 0
    first = capsys.readouterr()
    assert first.err.count("done after") == 2
    (out,) = (tmp_path / "runs").iterdir()
    assert out.name == "cartpole-acrobot-sweep-1"
    cartpole, acrobot = out / "0-cartpole", out / "1-acrobot"
    config = json.loads((acrobot / "config.json").read_text())
    expected = {"env": "gymnax/Acrobot-v1", "preset": "acrobot", "dueling": True, "hidden": [8]}
    assert {name: config[name] for name in expected} == expected
    assert first.out == (out / "table.md").read_text()
    rows = [line.split("|")[1].strip() for line in first.out.splitlines() if line.startswith("|")]
    assert rows[2:] == ["cartpole", "acrobot"]
    (results,) = json.loads((out / "results.json").read_text())
    summary = json.loads((cartpole / "summary.json").read_text())
    assert results["targets"]["cartpole"].items() <= summary.items()
    assert (results["failed"], results["incomplete"], results["aggregates"]) == ({}, [], None)

    (cartpole / "summary.json").unlink()  # as if the job had been interrupted
    words += ["--out", str(out.relative_to(tmp_path))]
    assert main.main(words) == 0
    again = capsys.readouterr()
    assert "jobs 2, complete 1, to resume 1" in again.err
    assert f"{cartpole.name}: resumes" in again.err
    assert acrobot.name not in again.err
    lines = [line.partition("qlax ")[2].split()[:2] for line in (out / "0-cartpole.log").open() if line[0] == "$"]
    assert lines == [["train", "cartpole"], ["resume", str(cartpole.relative_to(tmp_path))]]


def test_settings_are_compared_on_every_target(capsys, stand_in, tmp_path):
    stand_in()
    words = [
        "sweep",
        "cartpole",
        "acrobot",
        "--num-envs",
        "8",
        "16",
        "--num-minibatches",
        "8",
        "--lam",
        "0",
        "0.5",
        "--seeds",
        "2",
        "--out",
        "all",
    ]
    assert main.main(words) == 0
    said = capsys.readouterr().out
    results = json.loads((tmp_path / "all" / "results.json").read_text())
    assert [found["title"].partition(", ")[2] for found in results] == [
        f"num_envs {envs}, lam {lam}" for envs in (8, 16) for lam in ("0", "0.5")
    ]
    returns = [row["eval_return"]["per_run"] for row in results[1]["targets"].values()]
    assert returns == [[13.0, 14.0], [13.0, 14.0]]
    assert said.startswith("cartpole acrobot, num_envs 8, lam 0: 2 of 2 targets, greedy returns\n")
    rows = table(tmp_path / "all" / "sweep.csv")
    assert [row["target"] for row in rows] == ["cartpole"] * 8 + ["acrobot"] * 8
    for target in ("cartpole", "acrobot"):
        assert (tmp_path / "all" / f"sweep-{target}.png").exists()
        assert f"qlax train {target} " in said
    assert said.count("best of 4 settings: num_envs 16, lam 0.5: 21.50, mean of 2 seeds") == 2


@pytest.mark.slow
def test_all_of_atari_ends_in_the_full_table(capsys, monkeypatch, pytestconfig, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(pytestconfig.cache.mkdir("jax")))
    settings = SMALL | {"total_steps": 5000, "encoder": "mlp", "log_interval": 100, "eval_interval": 200}
    settings |= {"checkpoint_interval": 200}
    assert main.main(["sweep", "atari57", "--jobs", "2", *flags(settings)]) == 0
    table = capsys.readouterr().out
    assert table.startswith("atari57: 57 of 57 targets")
    (results,) = json.loads((tmp_path / "runs" / "atari57-sweep-1" / "results.json").read_text())
    assert len(results["aggregates"]["targets"]) == 57
    assert all(len(found["eval_score"]["per_run"]) == 1 for found in results["targets"].values())
    assert all(f"| {name} " in table for name in ("median", "mean", "IQM", *results["targets"]))


def test_every_target_of_a_list_has_a_preset():
    lists = sweep.lists()
    games = ["asterix", "breakout", "freeway", "seaquest", "space-invaders"]
    assert lists["minatar"] == [f"minatar/{game}" for game in games]
    assert len(lists["atari57"]) == 57
    assert all(configure(target).preset for targets in lists.values() for target in targets)


def test_targets_in_another_case_name_jobs_in_their_own_spelling(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(sweep, "run_jobs", lambda jobs, runner: seen.extend(jobs) or Outcome({}, None))
    assert main.main(["sweep", "ATARI/pong", "atari/Pong", "Gymnax/cartpole-v1", "--out", "swept"]) == 0
    assert [job.name for job in seen] == ["0-atari-Pong", "1-gymnax-CartPole-v1"]
    assert [(job.config.preset, job.config.env) for job in seen] == [
        ("atari/Pong", "ale/Pong"),
        (None, "gymnax/CartPole-v1"),
    ]
    seen.clear()
    assert main.main(["sweep", "MinAtar", "--out", "games"]) == 0
    assert [job.config.preset for job in seen] == sweep.lists()["minatar"]


def test_jobs_are_told_what_the_sweep_was_told(monkeypatch):
    """Flags of every kind reach the jobs, and so do values that look like flags."""
    seen = []
    monkeypatch.setattr(sweep, "run_jobs", lambda jobs, runner: seen.extend(jobs) or Outcome({}, None))
    words = "--seeds 3 --hidden 8,4 --lam 0.5 --reward-scale -1e-1 --dueling --no-time-limit-is-terminal"
    words += " --env-options use_minimal_action_set=false --no-compilation-cache --out all"
    assert main.main(["sweep", "minatar", *words.split()]) == 0
    told = []
    monkeypatch.setattr("qlax.train", lambda config, **options: told.append((config, options)), raising=False)
    monkeypatch.setattr("qlax.cli.train.report", lambda result: None)
    assert main.main(seen[1].command()[4:]) == 0
    assert told == [(seen[1].config, {"out": "all/1-minatar-breakout", "compilation_cache": False})]
