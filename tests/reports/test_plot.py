"""Figures of runs, drawn from run directories."""

import json
import math
import re
import shutil

import numpy as np
import pytest
from runs import is_refused_in_one_line

import qlax
from qlax.cli.main import main
from qlax.config.configure import configure
from qlax.errors import UserError
from qlax.reports import plot
from qlax.storage.formats import to_json
from qlax.storage.history import read_all
from qlax.storage.metrics import MetricsFile

LAM = (0.0, 0.5)


def run(path, returns, *, every=1, preset="cartpole", **settings):
    """Write a run with returns `[lines, R]`, one for every `every` lines; a line is a hundred steps and a minute."""
    path.mkdir(parents=True)
    config = configure(preset, **settings)
    assert config.num_members == returns.shape[1]
    (path / "config.json").write_text(to_json(config.derive(log_interval=1)))
    for index, values in enumerate(returns, 1):
        line = {"updates": index, "steps": 100 * index, "seconds": 60.0 * index, "loss": 0 * values + 1}
        greedy = values if index % every == 0 else values * math.nan
        MetricsFile(path / "metrics.jsonl").append(line | {"episode_return": values - 1, "eval_return": greedy})


def ramps(*ends, lines=10):
    """Return curves that rise linearly from nearly zero to these ends."""
    return np.linspace(0, 1, lines + 1)[1:, None] * np.array(ends)


@pytest.fixture
def sweep(tmp_path):
    """Write a run of two settings with four seeds, whose final returns are 10, 12, 14, 40 and 20, 22, 24, 26."""
    run(tmp_path / "sweep", ramps(10, 12, 14, 40, 20, 22, 24, 26), lam=LAM, seeds=4)
    return tmp_path / "sweep"


def lines_of(figure, panel=0):
    return {line.get_color(): line.get_xydata() for line in figure.axes[panel].get_lines()}


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()] if figure.legends else []


def test_a_line_is_the_interquartile_mean_of_a_group(sweep):
    figure = plot.curve_figure(read_all([sweep]))
    assert legend(figure) == ["lam 0", "lam 0.5"]
    lines = lines_of(figure)
    np.testing.assert_allclose(lines["C0"], [[100 * i, 1.3 * i] for i in range(1, 11)])  # the mean of 12 and 14
    np.testing.assert_allclose(lines["C1"][-1], [1000, 23])
    low, high = (edge(figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]) for edge in (np.min, np.max))
    assert (low, high) == (1.0, 40.0)  # the interval of four runs reaches from the smallest to the largest
    assert figure.axes[0].get_ylabel() == "greedy return (IQM)"
    by_time = lines_of(plot.curve_figure(read_all([sweep]), x="seconds", y="episode_return"))
    np.testing.assert_allclose(by_time["C0"][-1], [10, 12])  # 10 minutes; exploring returns are 1 lower


def test_runs_with_other_lines_are_interpolated_as_far_as_all_came(tmp_path):
    run(tmp_path / "a", ramps(10.0), seed=0)
    run(tmp_path / "b", ramps(20.0, lines=8) * 0.8, seed=1, every=2)
    figure = plot.curve_figure(read_all([tmp_path / "a", tmp_path / "b"]))
    assert legend(figure) == []  # one group, as seeds do not form groups
    np.testing.assert_allclose(lines_of(figure)["C0"], [[100 * i, 1.5 * i] for i in range(2, 9)])
    assert figure.axes[0].get_ylabel() == "greedy return (mean)"


def test_a_run_that_diverged_keeps_its_last_value_and_is_counted(tmp_path):
    returns = ramps(10.0, 20.0, 30.0)
    returns[5:, 0] = math.nan
    returns[:, 1] = math.nan  # without a value, it counts as the lowest of the environment
    run(tmp_path / "run", returns, seeds=3)
    _, said = plot.plot(tmp_path / "run", tmp_path / "figure.svg")
    assert "2 of 3 agents diverged, and count with their last value" in said
    last = lines_of(plot.curve_figure(read_all([tmp_path / "run"])))["C0"][-1]
    np.testing.assert_allclose(last, [1000, (5 + 1 + 30) / 3])


def test_a_run_that_never_had_a_value_takes_nothing_from_the_others(tmp_path):
    returns = ramps(10.0, 20.0)
    returns[:, 1] = math.nan
    run(tmp_path / "run", returns, seeds=2)
    np.testing.assert_allclose(lines_of(plot.curve_figure(read_all([tmp_path / "run"])))["C0"][0], [100, 1])
    assert len(lines_of(plot.curve_figure(read_all([tmp_path / "run"])))["C0"]) == 10


def test_metrics_share_a_figure_in_line_styles_of_their_own(tmp_path):
    """As in the `curve.png` of a run, greedy returns are solid and exploring ones dotted."""
    run(tmp_path / "run", ramps(10.0, 12.0, 20.0, 22.0), every=2, lam=LAM, seeds=2)
    both = "eval_return,episode_return"
    figure = plot.curve_figure(read_all([tmp_path / "run"]), y=both, title="a title of our own")
    assert legend(figure) == ["greedy return", "exploring return", "lam 0", "lam 0.5"]
    assert (figure.axes[0].get_ylabel(), figure.axes[0].get_title()) == ("return (mean)", "a title of our own")
    lines = [(line.get_color(), line.get_linestyle(), len(line.get_xdata())) for line in figure.axes[0].get_lines()]
    assert lines == [("C0", "-", 5), ("C0", ":", 10), ("C1", "-", 5), ("C1", ":", 10)]
    assert len(figure.axes[0].collections) == 2  # intervals are drawn for greedy returns only
    _, said = plot.plot(tmp_path / "run", tmp_path / "figure.svg", y=both)
    caption = said.splitlines()[-1]
    assert caption.startswith("Greedy return, exploring return, mean of 2 agents each")
    assert "narrow: those over five cover the true value in 85 to 89 % of cases" in caption
    (tmp_path / "run" / "metrics.jsonl").unlink()
    line = {"updates": 1, "steps": 100, "seconds": 1.0, "loss": np.ones(4), "episode_return": np.full(4, math.nan)}
    MetricsFile(tmp_path / "run" / "metrics.jsonl").append(line | {"eval_return": np.array([1.0, math.nan, 3.0, 3.0])})
    figure = plot.curve_figure(read_all([tmp_path / "run"]), y=both)  # before any episode has ended, there is one point
    assert legend(figure) == ["lam 0", "lam 0.5"]
    assert [line.get_color() for line in figure.axes[0].get_lines() if line.get_marker() == "o"] == ["C0", "C1"]


def test_evaluations_with_random_actions_are_not_called_greedy(tmp_path):
    run(tmp_path / "run", ramps(10.0, 12.0), seeds=2, eval_epsilon=0.05)
    drawn = plot.plot(tmp_path / "run", tmp_path / "figure.svg")
    assert "greedy" not in drawn.text.lower()
    assert "final evaluated return" in drawn.text
    assert "Evaluations took random actions, with a probability (epsilon) of 0.05." in drawn.text


def test_a_run_that_was_trained_twice_is_counted_and_told(tmp_path):
    for name, seed, told in (("a", 0, ()), ("b", 1, ("tensorboard",))):
        run(tmp_path / name, ramps(1.0, 2.0), seed=seed, seeds=2, trackers=told)
    _, said = plot.plot([tmp_path / name for name in "ab"], tmp_path / "first.svg")
    assert "1 of 4 agents have the settings and the seed of another and add no information" in said  # seed 1
    _, said = plot.plot([tmp_path / name for name in "ab"], tmp_path / "other.svg", by="directory")
    assert "of another" not in said


def test_groups_are_what_differs_within_an_environment(tmp_path):
    for name, norm, lam in (("a", "layer", 0.5), ("b", "none", 0.5)):
        for game, other in (("breakout", 0.0), ("asterix", 0.1)):
            run(tmp_path / name / game, ramps(1.0, 2.0), preset=f"minatar/{game}", seeds=2, norm=norm, lam=lam + other)
    figure = plot.curve_figure(read_all([tmp_path / "a", tmp_path / "b"]), title="ours")
    assert legend(figure) == ["norm layer", "norm none"]
    assert [axes.get_title() for axes in figure.axes] == ["Asterix-MinAtar", "Breakout-MinAtar"]
    assert figure.get_suptitle() == "ours"
    joint = plot.curve_figure(read_all([tmp_path / "a", tmp_path / "b"]), by="env")
    assert legend(joint) == []  # environments have panels of their own
    suites = plot.curve_figure(read_all([tmp_path / "a", tmp_path / "b"]), by="directory")
    assert legend(suites) == ["a", "b"]
    many = {"num_envs": 32, "num_steps": 16, "gamma": 0.9, "norm": "batch"}
    run(tmp_path / "c", ramps(1.0), preset="minatar/breakout", **many)
    several = plot.curve_figure(read_all([tmp_path / "a" / "breakout", tmp_path / "c"]))
    assert legend(several) == ["breakout", "c"]  # named by their directories, because too many settings differ
    by = plot.curve_figure(read_all([tmp_path / "a" / "breakout", tmp_path / "c"]), by=["norm", "seed"])
    assert legend(by) == ["norm layer, seed 0", "norm layer, seed 1", "norm batch, seed 0"]


@pytest.mark.parametrize("kind", plot.KINDS)
def test_names_are_no_mathematics_and_fit(kind, tmp_path):
    long = "a-long-name-" * 12
    for name in ("$\\frac$", f"{long}$<é"):
        run(tmp_path / name, 1e30 * ramps(-1.0, 2.0), seeds=2)
    runs = [tmp_path / "$\\frac$", tmp_path / f"{long}$<é"]
    path, said = plot.plot(runs, tmp_path / "figure.svg", kind=kind, by="directory", title="$ and " * 30)
    drawn = path.read_text()
    assert ">$\\frac$</text>" in drawn
    assert "name-$&lt;é</text>" in drawn
    assert long not in drawn
    assert long in said
    assert len(re.findall(r">[$ and]+</text>", drawn)) > 1  # the title has several lines
    assert max(map(len, said.splitlines()[2].split("|")[3:])) < 30  # numbers are short


def test_the_members_of_a_population_are_one_group(tmp_path):
    settings = {"learning_rate": "log-uniform:1e-4:1e-2", "population": "pbt", "draws": 4, "eval_interval": 1}
    run(tmp_path / "run", ramps(1, 2, 3, 4), **settings)
    assert legend(plot.curve_figure(read_all([tmp_path / "run"]))) == []


def test_of_many_groups_the_best_are_in_colour(tmp_path):
    rates = "log-uniform:1e-4:1e-2"
    run(tmp_path / "run", ramps(*range(30)), learning_rate=rates, draws=30)
    path, said = plot.plot(tmp_path / "run", tmp_path / "figure.png")
    assert "the best 10 of 30 groups by final value" in said
    assert len(said.splitlines()) == 2 + 10 + 1
    figure = plot.curve_figure(read_all([tmp_path / "run"]))
    assert legend(figure)[-1] == "20 others"
    coloured = {xy[-1, 1] for color, xy in lines_of(figure).items() if color.startswith("C")}
    assert coloured == set(range(20, 30))
    assert path.read_bytes().startswith(b"\x89PNG")


def suites(folder, scores=None):
    """Write runs of two groups in two games, one of which has a thousand times the returns of the other."""
    for name, norm, factor in (("a", "layer", 1.0), ("b", "none", 2.0)):
        for game, size in (("breakout", 1.0), ("asterix", 1000.0)):
            directory = folder / name / game
            run(directory, size * factor * ramps(1.0, 2.0, 3.0), preset=f"minatar/{game}", seeds=3, norm=norm)
            if scores:
                per_run = (factor * np.array([1.0, 2.0, 3.0])).tolist()
                found = {"diverged": [None] * 3, "eval_score": {"mean": 0, "per_run": per_run}}
                (directory / "summary.json").write_text(json.dumps(found))
    return [folder / "a", folder / "b"]


def test_profiles_and_improvements_are_over_all_environments(tmp_path):
    runs = suites(tmp_path)
    run(tmp_path / "a" / "freeway", ramps(9.0, 9.0), preset="minatar/freeway", seeds=2)
    path, said = plot.plot(runs, tmp_path / "profile.svg", kind="profile")
    drawn = path.read_text()
    assert "(0: lowest agent of the environment, 1: highest)</text>" in drawn
    assert ">2 environments</text>" in drawn
    assert "Left out, because not all groups have agents in them: gymnax/Freeway-MinAtar" in said
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in said.splitlines()[2:4]]
    assert [row[:3] for row in rows] == [["norm layer", "6", "0.2"], ["norm none", "6", "0.6"]]  # (2-1)/5, (4-1)/5
    path, _ = plot.plot(runs, tmp_path / "improvement.svg", kind="improvement")
    drawn = path.read_text()
    assert ">norm layer</text>" in drawn
    assert ">norm none</text>" in drawn
    assert "greedy return than one of Y</text>" in drawn


def test_scores_of_the_environments_come_before_our_own(tmp_path):
    path, said = plot.plot(suites(tmp_path, scores=True), tmp_path / "profile.svg", kind="profile")
    assert ">final score</text>" in path.read_text()
    assert "| norm none  |      6 |                4 |" in said


def test_the_command_draws_and_tells(capsys, monkeypatch, sweep, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "figure.png").write_text("mine")
    assert main(["plot", "sweep"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "figure-2.png"  # without --out, a free name is chosen
    assert main(["plot", "sweep", "--kind", "improvement", "--by", "lam", "--out", "figure.pdf", "--title", "T"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[2].split("|")[1:5] == [" lam 0   ", "      4 ", "                       13 ", "      10 to 40 "]
    content = (tmp_path / "figure.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert b"/Type3" not in content  # text stays text in the PDF
    assert qlax.plot(sweep, "other.svg").path.read_text() == qlax.plot([sweep], "another.svg").path.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sweep --out figure.jpg", "figure.jpg: expected a file that ends with .png or .svg or .pdf"),
        ("sweep --out there.png", "there.png exists already; name a new file, or remove this one"),
        ("sweep --out missing/figure.png", "cannot write figure.png: there is no folder missing; create it"),
        (
            "sweep --y eval_retrun",
            "unknown metric 'eval_retrun'; did you mean 'eval_return'?; metrics of runs: episode",
        ),
        (
            "sweep --y eval_return,episode_return --kind profile",
            "y has 2 metrics; expected one, or up to 4 for learning curves",
        ),
        ("sweep --y ,", "no metric to draw is given; name one, such as eval_return"),
        ("sweep --by lamm", "by=lamm: unknown setting; did you mean 'lam'?"),
        ("sweep --x time", "invalid choice: 'time'"),
        ("sweep sweep", "sweep is given twice"),
        ("sweep ./sweep", "sweep is given twice"),
        ("other damaged", "metrics.jsonl of damaged is damaged, or of another version of qlax"),
        ("nothing", "nothing holds no run: there is no such directory"),
        ("begun", "begun has no value of eval_return yet; leave it out, or wait for the first"),
        ("sweep begun", "begun has no value of eval_return yet; leave it out, or wait for the first"),
        (
            "sweep --kind improvement --by norm",
            "an improvement compares two groups, and all agents are in one",
        ),
        (
            "sweep other --kind profile --by norm",
            "no environment has agents of all 2 groups, such as 'norm layer' and 'norm none'",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(words, message, capsys, monkeypatch, sweep, tmp_path):
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "other", ramps(1.0, 2.0), preset="acrobot", norm="none", seeds=2)
    run(tmp_path / "begun", np.ones((0, 1)))
    shutil.copytree(tmp_path / "other", tmp_path / "damaged")
    (tmp_path / "damaged" / "summary.json").write_text('{"eval_score": 3}')
    (tmp_path / "there.png").write_text("mine")
    is_refused_in_one_line(["plot", *words.split()], message, capsys, tmp_path)


def test_jobs_that_have_just_begun_are_left_out(sweep, tmp_path):
    shutil.copytree(sweep, tmp_path / "all" / "first")
    run(tmp_path / "all" / "second", np.ones((0, 1)), norm="none")
    assert legend(plot.curve_figure(read_all([tmp_path / "all"]))) == ["lam 0", "lam 0.5"]
    _, said = plot.plot(tmp_path / "all", tmp_path / "figure.svg")
    assert len(said.splitlines()) == 5
    shutil.rmtree(tmp_path / "all" / "first")
    with pytest.raises(UserError, match="no run has a value of eval_return yet"):
        plot.plot(tmp_path / "all", tmp_path / "other.svg")


def test_of_ragged_lines_what_is_whole_is_drawn(sweep, tmp_path):
    _, said = plot.plot(sweep, tmp_path / "whole.svg")
    with (sweep / "metrics.jsonl").open("a") as file:
        for values in ([1.0], [1.0] * 9, [[1.0]] * 8, 1.0):
            line = {"updates": 11, "steps": 1100, "seconds": 700.0, "loss": [1.0] * 8, "eval_return": values}
            file.write(json.dumps(line) + "\n")
    assert plot.plot(sweep, tmp_path / "ragged.svg").text == said
    assert (tmp_path / "ragged.svg").read_text() == (tmp_path / "whole.svg").read_text()
    assert "1,000 of " in qlax.report(sweep, tmp_path / "report.html", video=False).read_text()
