from __future__ import annotations

import base64
import hashlib
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from command_line import igrpo
from hostile_run import make_hostile
from igrpo_cli.inspection.curves import Point
from igrpo_cli.report.page import HERE
from igrpo_cli.report.svg import Axis, Line, chart, rasterise


class Page(HTMLParser):
    """The tags of a page, and what a reader sees of it."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.styles, self.text, self.policy = [], [], [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if dict(attributes).get("http-equiv") == "Content-Security-Policy":
            self.policy = dict(attributes)["content"]

    def handle_data(self, data):
        place = {"script": self.scripts, "style": self.styles}.get(self.tags[-1][0] if self.tags else "")
        if place is not None and self.lasttag == self.tags[-1][0] and self.cdata_elem:
            place.append(data)
        else:
            self.text += data


def read(path) -> Page:
    return Page(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("reported") / "run"
    shutil.copytree(finished_run, path)
    return path


def test_a_report_lies_in_the_run_and_says_what_it_holds(run):
    result = igrpo("report", run, "--json", "-q")
    assert (result.code, result.stderr) == (0, "")
    told = result.json
    assert told["report"] == str(run / "report.html")
    assert (told["iterations"], told["rollouts"], told["unreadable"]) == (2, 96, [])
    assert told["bytes"] == (run / "report.html").stat().st_size
    page = read(run / "report.html")
    for title in ("Accuracy", "Reward", "Entropy", "Copy rate", "Gradient norm", "Evaluations", "Problems"):
        assert title in page.text
    assert sum(tag == "details" and "story" in each.get("class", "") for tag, each in page.tags) == told["problems"]
    assert igrpo("report", run).code == 0, "a report replaces the old one"


def test_the_same_run_gives_the_same_bytes(run, tmp_path):
    for name in ("a.html", "b.html"):
        assert igrpo("report", run, "--output", tmp_path / name).code == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_nothing_is_fetched_and_only_our_script_and_style_may_run(run, tmp_path):
    igrpo("report", run, "--output", tmp_path / "report.html")
    page = read(tmp_path / "report.html")
    assert "default-src 'none'" in page.policy
    for kind, (text,) in (("script", page.scripts), ("style", page.styles)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in page.policy
    attributes = {name for _, each in page.tags for name in each}
    assert not attributes & {"src", "style", "srcset", "action", "data"}
    assert not [name for name in attributes if name.startswith("on")]
    assert all(each["href"].startswith("#") for _, each in page.tags if "href" in each)


def test_hostile_text_is_shown_and_does_nothing(finished_run, tmp_path):
    run = make_hostile(finished_run, tmp_path / "hostile")
    result = igrpo("report", run)
    assert result.code == 0, result.stderr
    page = read(run / "report.html")
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert "<script>document.title" in page.text
    for seen in (r"\x1b[2J", r"\u202e", r"\u2066", r"\ud800", r"\x00", "{{ 7 * 7 }} &lt;b&gt;"):
        assert seen in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page.text)
    assert max(map(len, page.text.splitlines())) < 2_000
    assert "98,800 characters" in page.text


def test_what_cannot_be_read_is_said_on_the_page_and_on_stderr(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    shard = run / "iteration_0000" / "refine" / "shard-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    result = igrpo("report", run, "--json")
    assert result.code == 0
    assert str(shard) in result.stderr
    assert len(result.json["unreadable"]) == 2, "the curves and the problems of that iteration"
    page = read(run / "report.html")
    assert "Not everything could be read" in page.text
    assert f"{shard} is damaged" in page.text


def test_several_runs_are_drawn_over_what_they_cost(run, tmp_path):
    other = tmp_path / "deeper" / run.name
    shutil.copytree(run, other)
    shutil.copytree(run, tmp_path / "other")
    result = igrpo("report", run, other, tmp_path / "other", "--json", cwd=tmp_path)
    assert result.json["runs"] == [f"{run.parent.name}/{run.name}", f"deeper/{run.name}", "other"]
    assert result.json["report"] == "report.html"
    text = (tmp_path / "report.html").read_text("utf-8")
    assert 'aria-label="Accuracy: ' in text
    assert text.count('data-label="other, without draft (drafts)"') % 4 == 0, "on each of the four axes"
    for axis in ("iteration", "rollouts", "tokens", "seconds"):
        assert f'id="axis-{axis}"' in text


def test_figures_as_png_lie_beside_the_report(run, tmp_path):
    pytest.importorskip("resvg_py", reason="needs igrpo-cli[png]")
    result = igrpo("report", run, "--png", "--json", "--output", tmp_path / "mine.html")
    assert result.code == 0, result.stderr
    figures = result.json["figures"]
    assert str(tmp_path / "mine" / "accuracy.png") in figures
    assert sorted(figures) == sorted(str(path) for path in (tmp_path / "mine").iterdir())
    assert all(Path(path).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in figures)


def test_a_png_has_text_and_colours_without_fonts_of_the_system():
    pytest.importorskip("resvg_py", reason="needs igrpo-cli[png]")
    css = (HERE / "page.css").read_text("utf-8")
    line = Line("mine", 0, 0, [(0, Point(0.0)), (1, Point(1.0))])
    svg = chart([line], [line], Axis("iteration"), Axis("reward"), "Reward")
    assert rasterise(svg, css) == rasterise(svg, css)
    assert rasterise(svg, css) != rasterise(re.sub("<text.*?</text>", "", svg), css)
    assert rasterise(svg, css) != rasterise(svg.replace("c0", "c1"), css)


def test_a_rasteriser_that_is_not_installed_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    result = igrpo("report", run, "--png", "--output", tmp_path / "mine.html")
    assert result.code == 2
    assert "pip install 'igrpo-cli[png]'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["."], 3, "is not a run directory"),
        (["run"], 3, "has no complete shard"),
        (["run", "./run"], 2, "named twice"),
        ([str(number) for number in range(9)], 2, "at most 8 can be told apart"),
    ],
)
def test_what_cannot_be_reported_on(tmp_path, arguments, code, words):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.toml").write_text("")
    result = igrpo("report", *arguments, cwd=tmp_path)
    assert result.code == code
    assert words in result.stderr
    assert not list(tmp_path.rglob("*.html"))
