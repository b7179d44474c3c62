import itertools
import json

import numpy as np
import pytest
import scipy.stats
from runs import SMALL, begun, flags, is_refused_in_one_line

from qlax.cli.main import main
from qlax.config.settings import configure
from qlax.jobs import suite
from qlax.jobs.runner import Job, Outcome
from qlax.jobs.suite import SUITES, collect, plan
from qlax.reports.scores import aggregates, table


@pytest.fixture(autouse=True)
def in_an_empty_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_two_games_are_trained_to_the_table_and_never_twice(capsys, monkeypatch, pytestconfig, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(pytestconfig.cache.mkdir("jax")))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    settings = SMALL | {"total_steps": 64, "encoder": "mlp"}
    words = ["suite", "minatar", "--games", "breakout,asterix", "--jobs", "2", *flags(settings), "--dueling"]
    assert main(words) == 0
    first = capsys.readouterr()
    assert first.err.count("done after") == 2
    out = tmp_path / "runs" / "minatar"
    config = json.loads((out / "asterix" / "config.json").read_text())
    expected = {"env": "gymnax/Asterix-MinAtar", "preset": "minatar/asterix", "dueling": True, "hidden": [8]}
    assert {name: config[name] for name in expected} == expected
    assert first.out == (out / "table.md").read_text()
    rows = [line.split("|")[1].strip() for line in first.out.splitlines() if line.startswith("|")]
    assert rows[2:] == ["breakout", "asterix"]
    results = json.loads((out / "results.json").read_text())
    summary = json.loads((out / "breakout" / "summary.json").read_text())
    assert results["games"]["breakout"].items() <= summary.items()
    assert (results["failed"], results["incomplete"], results["aggregates"]) == ({}, [], None)

    (out / "breakout" / "summary.json").unlink()  # as if it had been interrupted before its end
    assert main(words) == 0
    again = capsys.readouterr()
    assert "games 2, complete 1, to go on with 1" in again.err
    assert "breakout: goes on" in again.err
    assert "asterix" not in again.err
    lines = [line.partition("qlax ")[2].split()[:2] for line in (out / "breakout.log").open() if line[0] == "$"]
    assert lines == [["train", "minatar/breakout"], ["resume", "runs/minatar/breakout"]]
    assert json.loads((out / "results.json").read_text())["games"].keys() == {"breakout", "asterix"}


@pytest.mark.slow
def test_all_of_atari_ends_in_the_full_table(capsys, monkeypatch, pytestconfig, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(pytestconfig.cache.mkdir("jax")))
    settings = SMALL | {"total_steps": 5000, "encoder": "mlp", "log_interval": 100, "eval_interval": 200}
    settings |= {"checkpoint_interval": 200}
    assert main(["suite", "atari57", "--jobs", "2", *flags(settings)]) == 0
    table = capsys.readouterr().out
    assert table.startswith("atari57: 57 of 57 games")
    results = json.loads((tmp_path / "runs" / "atari57" / "results.json").read_text())
    assert len(results["aggregates"]["games"]) == 57
    assert all(len(game["eval_score"]["per_run"]) == 1 for game in results["games"].values())
    assert all(f"| {name} " in table for name in ("median", "mean", "IQM", *results["games"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("minatr", "unknown suite 'minatr'; did you mean 'minatar'?; suites: atari57, minatar"),
        ("", "the following arguments are required: suite"),
        ("minatar --games breakout,freway", "unknown game 'freway'; did you mean 'freeway'?"),
        ("minatar --games xyz", "unknown game 'xyz'; games of minatar: asterix, breakout"),
        ("minatar --games breakout,", "unknown game ''"),
        ("atari57 --games pong", "unknown game 'pong'; did you mean 'Pong'?"),
        ("minatar --jobs 0", "jobs=0: expected a whole number from 1"),
        ("minatar --on slurm", "invalid choice: 'slurm'"),
        ("minatar --gpus-per-job 0.5", "gpus_per_job=0.5 is for jobs on Ray; add --on ray"),
        ("minatar --on ray --cpus-per-job 0", "cpus_per_job=0: expected more than 0"),
        ("minatar --jobs two", "invalid int value: 'two'"),
        ("minatar --lamm 0.5", "unknown flag '--lamm'; did you mean '--lam'"),
        ("minatar --gamma 1.5", "gamma=1.5: expected a number from 0 to 1"),
        ("minatar --num-minibatches 30", "does not divide the 128 environments x 32 steps"),
        ("minatar --lam 0 0.5", "lam has several values, but a suite trains one setting a game"),
        ("minatar --out /dev/null/all", "cannot make the directory /dev/null/all: Not a directory"),
        ("minatar --out used", "used/freeway is neither empty nor a run; name another directory with --out"),
        ("minatar --out begun --seeds 3", "begun/breakout was begun with seeds=2, but now seeds=3 is asked for"),
        ("minatar --out begun", "begun/breakout was begun with seeds=2, but now seeds=1 is asked for"),
        ("minatar --out begun --seeds 2 --log-interval 8", "with log_interval=4, but now log_interval=8"),
        ("minatar --out begun --seeds 2 --lam 0 --total-steps 9", "with total_steps=10000000, lam=0.65, but now"),
        ("minatar --out other", "other/asterix was begun with env='gymnax/Breakout-MinAtar', but now env="),
        ("minatar --out damaged", "damaged/asterix/config.json is not JSON"),
        ("minatar --out half", "half/breakout/summary.json is not JSON"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written_or_run(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(suite, "run_jobs", None)
    (tmp_path / "used" / "freeway").mkdir(parents=True)
    (tmp_path / "used" / "freeway" / "notes.txt").write_text("mine")
    begun(tmp_path / "begun" / "breakout", seeds=2)
    begun(tmp_path / "other" / "asterix")
    begun(tmp_path / "damaged" / "asterix")
    (tmp_path / "damaged" / "asterix" / "config.json").write_text("{")
    begun(tmp_path / "half" / "breakout")
    (tmp_path / "half" / "breakout" / "summary.json").write_text("{")
    is_refused_in_one_line(["suite", *words.split()], message, capsys, tmp_path)


def test_a_run_begun_with_the_same_settings_is_gone_on_with_however_they_came(tmp_path):
    begun(tmp_path / "breakout", "gymnax/Breakout-MinAtar", total_steps=10_000_000, hidden=(8,))
    (job,) = plan("minatar", "breakout,breakout", {"hidden": (8,), "log_interval": 4}, tmp_path)
    assert job.begun
    assert job.command()[3:6] == ["qlax", "resume", str(tmp_path / "breakout")]


def test_jobs_are_told_what_the_suite_was_told(monkeypatch):
    """Every kind of flag, among them values that look like flags."""
    seen = []
    monkeypatch.setattr(suite, "run_jobs", lambda jobs, runner: seen.extend(jobs) or Outcome({}, None))
    words = "--seeds 3 --hidden 8,4 --lam 0.5 --reward-scale=-1e-1 --dueling --no-time-limit-is-terminal"
    words += " --env-options use_minimal_action_set=false --no-compilation-cache"
    assert main(["suite", "minatar", "--games", "breakout", *words.split()]) == 0
    told = []
    monkeypatch.setattr("qlax.train", lambda config, **options: told.append((config, options)), raising=False)
    monkeypatch.setattr("qlax.cli.main._report", lambda result: None)
    assert main(seen[0].command()[4:]) == 0
    assert told == [(seen[0].config, {"out": "runs/minatar/breakout", "compilation_cache": False})]


def test_every_game_has_a_preset():
    assert SUITES["minatar"].games() == ["asterix", "breakout", "freeway", "seaquest", "space-invaders"]
    assert len(SUITES["atari57"].games()) == 57
    for known in SUITES.values():
        assert all(configure(f"{known.folder}/{game}").preset for game in known.games())


def test_statistics_are_those_worked_out_by_hand():
    found = aggregates([[0.0, 10.0], [20.0, 40.0], [100.0, 300.0]])
    assert found["median"]["value"] == 30  # of 5, 30 and 200
    assert found["mean"]["value"] == pytest.approx(235 / 3)
    assert found["iqm"]["value"] == (10 + 20 + 40 + 100) / 4  # of six values, one is left out at either end
    uneven = aggregates([[1.0], [2.0, 6.0], [9.0]])  # games with fewer seeds count as much
    assert (uneven["mean"]["value"], uneven["median"]["value"], uneven["iqm"]["value"]) == (14 / 3, 4, 4)


def test_interquartile_mean_is_scipys():
    random = np.random.default_rng(1)
    for games, runs in itertools.product((1, 3, 10), (1, 2, 3, 5)):
        scores = random.normal(size=(games, runs))
        expected = scipy.stats.trim_mean(scores, 0.25, axis=None)
        assert aggregates(scores.tolist())["iqm"]["value"] == pytest.approx(expected)


def test_intervals_are_of_runs_within_games():
    # Games are not drawn: without a spread within them there is none.
    assert aggregates([[1.0, 1.0], [5.0, 5.0]])["mean"] == {"value": 3.0, "interval": [3.0, 3.0]}
    # Two runs of one game: 0, 0.5 and 1 in a quarter, a half and a quarter of the cases. With a second game of the
    # same kind 0 and 1 have a chance of 1/16 each; with four of 1/256, and 1/8 and 7/8 of 8/256, so 2.5 % is at 1/8.
    for games, low in ((1, 0.0), (2, 0.0), (4, 0.125)):
        assert aggregates([[0.0, 1.0]] * games)["mean"]["interval"] == [low, 1 - low]
    assert aggregates([[1.0], [3.0], [8.0]])["iqm"]["interval"] is None


def test_intervals_cover_the_truth_about_as_often_as_they_say(monkeypatch):
    monkeypatch.setattr("qlax.reports.scores.RESAMPLES", 500)
    random, truth = np.random.default_rng(2), np.array([0.0, 50.0, 100.0, 120.0, 300.0])
    covered = []
    for _ in range(300):
        scores = truth[:, None] + 10 * random.normal(size=(5, 15))
        low, high = aggregates(scores.tolist())["mean"]["interval"]
        covered.append(low <= truth.mean() <= high)
    # The spread of 15 runs is underestimated by a factor of sqrt(14/15): 94.2 %; 1.3 % standard error.
    assert 0.90 < np.mean(covered) < 0.98


def scored(directory, game, per_run, scores):
    """A complete game of Atari."""
    config = configure("minatar/breakout")  # any will do: there may be no presets of Atari
    job = Job(game, config, directory / game)
    job.directory.mkdir()

    def measured(values):
        return {"mean": sum(values) / len(values), "per_run": values}

    summary = {"env": f"ale/{game}", "seeds": list(range(len(per_run))), "total_steps": 10_000_000}
    summary |= {"steps_per_second": 1234.5, "eval_episodes": 8, "eval_cut": [0.0, 0.5 * (game == "Breakout")]}
    summary["eval_return"] = measured(per_run)
    if scores:
        summary["eval_score"] = measured(scores)
    (job.directory / "summary.json").write_text(json.dumps(summary))
    return job


def test_table_with_scores(tmp_path):
    jobs = [
        scored(tmp_path, "Pong", [20.0, 21.0], [115.0, 118.0]),
        scored(tmp_path, "Breakout", [301.25, 418.0], [1040.0, 1446.0]),
        scored(tmp_path, "Skiing", [-29000.0, -30000.0], []),
        Job("Venture", configure("minatar/breakout"), tmp_path / "Venture"),
        Job("Alien", configure("minatar/breakout"), tmp_path / "Alien"),
    ]
    results = collect("atari57", jobs, {"Alien": "exit code 1: out of luck"})
    assert results["aggregates"]["games"] == ["Pong", "Breakout"]
    assert results["games"]["Pong"]["eval_score"]["per_run"] == [115, 118]
    assert (
        table(results, "% of human")
        == """\
atari57: 3 of 5 games, greedy returns

| game     | return |   of each seed | % of human | steps a seed | steps/s, all seeds |
| -------- | -----: | -------------: | ---------: | -----------: | -----------------: |
| Pong     |   20.5 |         20, 21 |      116.5 |   10,000,000 |              1,234 |
| Breakout |  359.6 |     301.2, 418 |       1243 |   10,000,000 |              1,234 |
| Skiing   | -29500 | -29000, -30000 |          - |   10,000,000 |              1,234 |

| over 2 games | % of human | 95 % interval |
| ------------ | ---------: | ------------: |
| median       |      679.8 |  577.5 to 782 |
| mean         |      679.8 |  577.5 to 782 |
| IQM          |        579 |  577.5 to 782 |

- Median and mean: of the games' means over seeds. IQM: of the middle half of all games' seeds.
- Intervals: stratified bootstrap over the seeds of each game.
- Without a score, hence not in the aggregates: Skiing.
- Some episodes were cut: Breakout.
- Failed, hence left out: Alien (exit code 1: out of luck).
- Not complete yet, hence left out: Venture.
"""
    )


def test_one_seed_has_no_interval(tmp_path):
    results = collect("atari57", [scored(tmp_path, "Pong", [20.0], [115.0])], {})
    written = table(results, "% of human")
    assert "| mean        |        115 |             - |\n" in written
    assert "| over 1 game | % of human | 95 % interval |\n" in written
    assert "- Intervals: none, as one seed a game does not tell.\n" in written
    assert results["aggregates"]["iqm"] == {"value": 115, "interval": None}
