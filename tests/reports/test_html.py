import base64
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from runs import CARTPOLE, SMALL, is_refused_in_one_line

import qlax
from qlax.config.configure import configure
from qlax.config.settings import FIELDS
from qlax.reports import html
from qlax.storage.formats import to_json
from qlax.storage.metrics import MetricsFile

HOSTILE = "my_game:<script>alert('&amp;')</script>\"onerror=x"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "img", "br", "hr", "input", "link"}
RETURNS = [10.0, 20.0, 31.25, 400.0]


class Page(HTMLParser):
    """Elements of a page in order, with their attributes and texts; fails for tags that are not closed correctly."""

    def __init__(self, path):
        super().__init__()
        self.elements, self._open = [], []
        self.source = path.read_text()
        self.feed(self.source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes)
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def all(self, tag, **attributes):
        return [e for e in self.elements if e["tag"] == tag and attributes.items() <= e.items()]

    def values(self):
        return [float(e["value"]) for e in self.all("data")]

    @property
    def text(self):
        return " ".join(self.all("body")[0]["text"].split())


def written(directory, target="cartpole", *, returns=RETURNS, lines=3, finished=True, diverged=None, **settings):
    """Write a run directory with these final returns, None for agents that diverged."""
    config = configure(target, **{"seeds": len(returns), "total_steps": 40_960, **settings})
    config = config.derive(log_interval=4, eval_interval=4, checkpoint_interval=4, eval_max_steps=500)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(to_json(config))
    metrics, final = MetricsFile(directory / "metrics.jsonl"), np.array(returns, np.float64)
    for line in range(1, lines + 1):
        measured = final * line / lines
        known = ("loss", "grad_norm", "episode_return", "eval_return", "eval_overestimation", "eval_length", "coins")
        steps = {"updates": line * 4, "steps": line * 4 * config.steps_per_update, "seconds": float(line)}
        metrics.append({**steps, "steps_per_second": 1e4, **dict.fromkeys(known, measured), "won/first": measured})

    def measured(values):
        known = [x for x in values if x is not None]
        return {"mean": sum(known) / len(known) if known else None, "per_run": values}

    if finished:
        summary = {
            "network": {"encoder": "mlp", "hidden": [64, 64]},
            "total_steps": config.num_updates * config.steps_per_update,
            "device": "cpu: cpu",
            "num_devices": 1,
            "jax_version": "0.10.2",
            "qlax_version": "0.1.0",
            "inexact": [],
            "diverged": diverged or [None] * len(returns),
            "compile_seconds": 12.5,
            "train_seconds": 7.25,
            "eval_seconds": 1.125,
            "steps_per_second": 54321.0,
            "train_return": measured([x and x / 2 for x in returns]),
            "eval_return": measured(returns),
            "best_eval_return": measured(returns),
            "eval_episodes": 64,
            "eval_cut": [0.0] * len(returns),
        }
        (directory / "summary.json").write_text(json.dumps(summary))
    return directory


def page(tmp_path, *runs, **options):
    return Page(qlax.report(list(runs), tmp_path / "report.html", **{"video": False, **options}))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Make a page with pictures of two directories, one of which has names that look like invalid formulas."""
    folder = tmp_path_factory.mktemp("drawn")
    finished = written(folder / "run", lam=(0.0, 0.9), returns=[1.0, 2.0], seeds=1)
    other = written(folder / "other", "my_game:$\\frac$", lines=1, finished=False, returns=[3.0])
    file = other / "metrics.jsonl"
    file.write_text(file.read_text().replace("coins", "$\\\\frac$<b>"))
    return page(folder, finished, other)


@pytest.fixture
def without_pictures(monkeypatch):
    """Leave out the pictures, which take most of the time."""
    for name in ("curve", "comparison"):
        monkeypatch.setattr(f"qlax.reports.html.{name}", lambda *_: None)


def rows(found, caption):
    """Return the rows of the table with this caption, as lists of texts."""
    table = found.source.partition(f"<caption>{caption}")[2].partition("</table>")[0]
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in table.split("<tr")[1:]]
    return [[" ".join(re.sub("<[^>]*>", "", cell).split()) for cell in row] for row in cells]


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(
    ("epsilon", "said"), [(0.0, "64 episodes at the end of training."), (0.05, "in 5 % of the steps.")]
)
def test_the_page_says_whether_evaluations_took_random_actions(epsilon, said, tmp_path):
    found = page(tmp_path, written(tmp_path / "run", eval_epsilon=epsilon))
    assert said in found.text
    assert ("random actions in" in found.text) == (epsilon > 0)


@pytest.mark.usefixtures("without_pictures")
def test_the_numbers_are_those_of_the_summary(tmp_path):
    found = page(tmp_path, written(tmp_path / "run"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    expected = [x for name in ("train_return", "eval_return", "best_eval_return") for x in summary[name]["per_run"]]
    assert set(expected) | {summary["eval_return"]["mean"]} <= set(found.values())
    assert rows(found, "Results of every agent")[2] == ["1", "1", "10", "20", "20"]
    assert "7.25 s" in found.text
    assert "54,321 environment steps per second" in found.text
    mean, iqm, interval, runs = rows(found, "Greedy return of every setting")[1]
    assert (mean, iqm, runs) == ("115.3", "25.62", "4")  # the middle half: 20 and 31.25
    low, high = map(float, interval.split(" to "))
    assert 10 <= low < 25 < high <= 400


def test_it_is_a_page_that_needs_nothing_else(drawn):
    assert drawn.source.startswith("<!DOCTYPE html>")
    assert drawn.all("html")[0]["lang"] == "en"
    assert {e["tag"] for e in drawn.elements}.isdisjoint({"script", "link", "iframe", "object"})
    for attribute in ("src", "href", "poster"):
        for e in drawn.elements:
            assert not re.match(r"\w+:|//", e.get(attribute, "")) or e[attribute].startswith("data:"), e
    style = drawn.all("style")[0]["text"]
    assert "url(" not in style
    assert "@import" not in style
    pictures = [base64.b64decode(e["src"].partition(",")[2]).decode() for e in drawn.all("img")]
    assert len(pictures) > 10
    for svg in pictures:
        assert not re.search(r"""(href|src)=["'](?!#)|@import|url\((?!#)""", svg)


def test_it_can_be_read_without_seeing(drawn):
    levels = [int(e["tag"][1]) for e in drawn.elements if re.fullmatch("h[1-6]", e["tag"])]
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    assert all(e["alt"] and int(e["width"]) > 0 and int(e["height"]) > 0 for e in drawn.all("img"))
    ids = [e["id"] for e in drawn.elements if "id" in e]
    assert len(set(ids)) == len(ids)
    wanted = [e["href"][1:] for e in drawn.all("a") if e["href"].startswith("#")]
    wanted += [e["aria-labelledby"] for e in drawn.elements if "aria-labelledby" in e]
    assert set(wanted) <= set(ids)
    assert len(wanted) > 4


@pytest.mark.usefixtures("without_pictures")
def test_whatever_runs_are_called_is_text(tmp_path):
    directory = written(tmp_path / "<img src=x onerror=alert(1)>$", HOSTILE, env_options={"<b>": "</style><b>"})
    found = page(tmp_path, directory)
    assert found.all("script") + found.all("b") == []
    assert not any("onerror" in e for e in found.elements)
    assert HOSTILE in found.all("h1")[0]["text"]
    assert str(directory) in found.text
    assert (tmp_path / "report.html").parent.joinpath(directory.name).is_dir()
    assert "%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E%24/config.json" in [e["href"] for e in found.all("a")]


def test_names_of_measurements_are_no_mathematics(drawn):
    assert "$\\frac$<b> against environment steps" in [e["alt"] for e in drawn.all("img")]


@pytest.mark.usefixtures("without_pictures")
def test_runs_that_are_trained_still(tmp_path):
    found = page(tmp_path, written(tmp_path / "run", finished=False, lines=3))
    steps = configure("cartpole").steps_per_update
    assert f"Not finished: {12 * steps:,} of 40,960 steps per agent ({1200 * steps // 40_960} %)" in found.text
    assert f"qlax resume {tmp_path / 'run'}" in found.text
    assert rows(found, "Results of every agent, so far")[4] == ["3", "3", "400", "400", "400"]
    nothing = written(tmp_path / "new", finished=False, lines=0)
    assert "There are no measurements yet" in Page(qlax.report(nothing, tmp_path / "new.html", video=False)).text


@pytest.mark.usefixtures("without_pictures")
def test_runs_that_diverged(tmp_path):
    where = [None, {"steps": 512, "what": "loss"}]
    found = page(tmp_path, written(tmp_path / "run", returns=[5.0, None], diverged=where))
    assert "2 agents of 40,960 steps, of which 1 diverged" in found.text
    assert "Agent 1 (seed 1) diverged after 512 steps: loss was not finite; Q-values have grown too large" in found.text
    assert rows(found, "Greedy return of every setting")[1] == ["1 of 2 diverged", "2"]
    assert rows(found, "Results of every agent")[2][3] == "diverged"


@pytest.mark.usefixtures("without_pictures")
def test_runs_that_are_trained_beside_one_that_diverged(tmp_path):
    directory = written(tmp_path / "run", finished=False, returns=[5.0, 6.0])
    lines = MetricsFile(directory / "metrics.jsonl").read(2)
    (directory / "metrics.jsonl").unlink()
    for line in lines:
        frozen = {"loss": [1.0, None], "eval_return": [5.0, None]} if line["updates"] > 4 else {}
        MetricsFile(directory / "metrics.jsonl").append(line | frozen)
    found = page(tmp_path, directory)
    assert f"Agent 1 (seed 1) diverged after {lines[0]['steps']:,} steps" in found.text
    assert "Agent 0" in found.text.partition("Best agent")[2]


@pytest.mark.usefixtures("without_pictures")
def test_several_directories_are_ranked_by_setting(tmp_path):
    """Seeds with the same settings are one group, whichever run trained them."""
    low = written(tmp_path / "low", lam=0.5, returns=[1.0, 3.0])
    more = written(tmp_path / "more", lam=0.5, returns=[5.0], seed=2)
    high = written(tmp_path / "high", lam=0.9, returns=[7.0])
    other = written(tmp_path / "other", "acrobot", returns=[-9.0])
    found = page(tmp_path, low, more, high, other)
    ranked = [row[:3] + row[5:6] for row in rows(found, "Greedy return of every setting, best first")[1:]]
    cartpole = [["gymnax/CartPole-v1", "0.9", "7", "1"], ["gymnax/CartPole-v1", "0.5", "3", "3"]]
    assert ranked[:2] == cartpole
    assert [row[0] for row in ranked] == ["gymnax/CartPole-v1", "gymnax/CartPole-v1", "gymnax/Acrobot-v1"]
    assert found.all("nav")[0]["text"].count("finished") == 4
    assert [e["href"] for e in found.all("a")[:4]] == [f"#run-{number}" for number in (1, 2, 3, 4)]


@pytest.mark.usefixtures("without_pictures")
def test_the_directory_of_a_sweep_stands_for_its_jobs(tmp_path):
    for norm in ("layer", "none"):
        written(tmp_path / "sweep" / norm, norm=norm, returns=[1.0 if norm == "none" else 2.0])
    found = page(tmp_path, tmp_path / "sweep")
    ranked = rows(found, "Greedy return of every setting, best first")
    assert [row[:2] for row in ranked] == [["norm", "mean"], ["layer", "2"], ["none", "1"]]


@pytest.mark.usefixtures("without_pictures")
def test_settings_that_were_asked_for_are_marked(tmp_path):
    found = page(tmp_path, written(tmp_path / "run", lam=(0.2, 0.8), returns=[1.0, 2.0], seeds=1, hidden=(32,)))
    changed = [e["text"] for e in found.all("tr", **{"class": "changed"})]
    assert [name for name in FIELDS if any(row.startswith(name) for row in changed)] == ["total_steps", "lam", "hidden"]
    assert len(changed) == 3
    names = [row[0] for row in rows(found, "Marked: differs from the preset cartpole")[1:]]
    assert set(names) == set(FIELDS) - {"preset", "derived"}
    commands = [e["text"] for e in found.all("pre")]
    assert commands == [
        "qlax train cartpole --total-steps 40960 --lam 0.8 --hidden 32",
        "qlax train cartpole --total-steps 40960 --lam 0.2 0.8 --hidden 32",
    ]


@pytest.mark.usefixtures("without_pictures")
def test_the_best_agent_of_each_environment_is_filmed(tmp_path, monkeypatch):
    asked = []

    def film(run, out, *, index, best, values):
        asked.append((run, index, best))
        out.write_bytes(b"a film")

    monkeypatch.setattr("qlax.playing.film.render", film)
    few, many = written(tmp_path / "few", returns=[1.0]), written(tmp_path / "many", returns=[2.0, 9.0, 3.0])
    found = page(tmp_path, few, many, written(tmp_path / "other", "acrobot", returns=[-9.0]), video=True)
    assert asked == [(many, 1, True), (tmp_path / "other", 0, True)]
    assert [e["src"] for e in found.all("video")] == [
        f"data:video/mp4;base64,{base64.b64encode(b'a film').decode()}"
    ] * 2


@pytest.mark.usefixtures("without_pictures")
def test_without_a_film_the_page_says_why(tmp_path, monkeypatch):
    def film(run, out, **_):
        raise qlax.UserError(f"{out}: there is no <camera>")

    monkeypatch.setattr("qlax.playing.film.render", film)
    found = page(tmp_path, written(tmp_path / "run"), video=True)
    assert found.all("video") == []
    assert "There is no video: there is no <camera>" in found.text


@pytest.mark.usefixtures("without_pictures")
def test_what_cannot_be_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "run", returns=[1.0])
    (tmp_path / "old.html").write_text("mine")
    refused = {
        "old.html exists already": ["run", "--out", "old.html"],
        "there is no folder nowhere": ["run", "--out", "nowhere/page.html"],
        "page.png: expected a file that ends with .html or .htm": ["run", "--out", "page.png"],
        "missing holds no run": ["run", "missing"],
        "run is given twice": ["run", "./run"],
    }
    for message, words in refused.items():
        is_refused_in_one_line(["report", *words, "--no-video"], message, capsys, tmp_path)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary | {"eval_return": [3]}))
    is_refused_in_one_line(["report", "run", "--no-video"], "summary.json", capsys, tmp_path)


@pytest.mark.usefixtures("without_pictures")
def test_no_page_takes_the_place_of_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = written(tmp_path / "run", returns=[1.0])
    assert [qlax.report(run, video=False).name for _ in range(2)] == ["report.html", "report-2.html"]


def test_every_section_has_its_template():
    templates = {path.name for path in (Path(html.__file__).parent / "templates" / "sections").iterdir()}
    assert templates == {f"{section.__name__}.html" for section in html.SECTIONS}


IN_THE_BROWSER = """
<script>
const errors = [];
addEventListener("error", event => errors.push(String(event.message || event.target.tagName)), true);
addEventListener("load", () => {
  const video = document.querySelector("video");
  const done = () => {
    const wrong = [...document.images].filter(image => !image.naturalWidth || !image.clientWidth).length;
    const names = performance.getEntriesByType("resource").map(entry => entry.name);
    const asked = names.filter(name => !name.startsWith("data:"));
    const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
    document.title = JSON.stringify({errors, wrong, asked, wide, seconds: video.duration, width: video.videoWidth});
  };
  video.readyState ? done() : video.addEventListener("loadedmetadata", done);
});
</script>
"""


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    """Make a page with all sections for a trained run."""
    pytest.importorskip("av", reason="films are written by PyAV")
    folder = tmp_path_factory.mktemp("filmed")
    qlax.train(configure(CARTPOLE, **SMALL), out=folder / "run", progress=False)
    return qlax.report(folder / "run", folder / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium to open the page with")
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_shows_it_without_a_network(tmp_path, filmed, width):
    path = tmp_path / "report.html"
    path.write_text(filmed.replace("<head>", f"<head>{IN_THE_BROWSER}"))
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--virtual-time-budget=20000"]
    ended = subprocess.run(
        [*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    told = json.loads(re.search(r"<title>(.*?)</title>", ended.stdout)[1].replace("&quot;", '"'))
    assert told.pop("seconds") > 0
    assert told.pop("width") > 0
    assert told == {"errors": [], "wrong": 0, "asked": [], "wide": 0}
    assert "CONSOLE" not in ended.stderr
