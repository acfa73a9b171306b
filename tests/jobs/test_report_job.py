"""The report: its numbers, what it leaves out, and that no story can break out of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kdbench.errors import RunDirError
from kdbench.jobs.report_job import report
from kdbench.rundir import RunDir
from tests.support.job_fixture import BLACK_SHA, HOSTILE, PRUNED_SHA, TEACHER_SHA, WHITE_SHA, build

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or "/usr/bin/chromium"


class Page(HTMLParser):
    """Texts by tag, ids, attributes that load something, and embedded data."""

    def __init__(self, html):
        super().__init__()
        self.texts, self.ids, self.loads, self.tags, self.data = {}, set(), [], [], {}
        self.titles = []
        self._open, self._script = [], None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.ids |= {attrs["id"]} if "id" in attrs else set()
        self.loads += [
            v for k, v in attrs.items() if k in ("src", "href", "srcset", "data") and not v.startswith("#")
        ]
        self.titles += [attrs["title"]] if "title" in attrs else []
        self._script = attrs.get("id") if tag == "script" else None
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if self._open[-1:] == ["script"] and self._script:
            self.data[self._script] = self.data.get(self._script, "") + data
        for tag in set(self._open):
            self.texts.setdefault(tag, []).append(" ".join(data.split()))

    def text(self, tag):
        return " ".join(t for t in self.texts.get(tag, []) if t).replace("\u00a0", " ")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return build(tmp_path_factory.mktemp("job"), hostile=True, n=40, held_out=12)


@pytest.fixture(scope="module")
def html(job):
    path = report(job)
    assert path == job / "report.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_the_headline_is_made_from_the_numbers(page):
    assert page.text("h1") == "smollm2 distilled into white_box"
    lead = page.text("header")
    for sentence in (
        "white_box has 63.1 % of the teacher's parameters (84.9 M of 135 M) and writes 1.9 times as fast.",
        "Against pruned, the same model before training,",
        "its perplexity on the teacher's text fell from 48,210 to 12.3 (teacher 4.92)",
        "keep all rules rose from 0.0 % to 22.0 %",
    ):
        assert sentence in lead


def test_the_table_has_every_number_with_its_interval(page):
    cells = page.text("table")
    for shown in (
        "48,210",
        "[11.6, 13.0]",
        "0.880 nats",
        "57.1 %",
        "266 tokens/s",
        "340 MB",
        "lower is better",
    ):
        assert shown in cells


def test_nothing_is_loaded_from_elsewhere(html, page):
    assert page.loads == []
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org)", html)
    assert "link" not in page.tags
    assert "img" not in page.tags


def test_sections_are_there_and_linked(page):
    assert {"comparison-1", "training", "stories-1", "data", "rejected", "lineage"} <= page.ids


def test_curves_charts_and_costs(page, html):
    figures = page.text("figcaption")
    assert "120 steps, 216,000 tokens, 8 min 50 s, 407 tokens/s, validation loss" in figures
    assert "16 of 30 layers kept" in figures
    assert html.count("<polyline") == 4
    assert "missing words" in page.text("svg")
    assert "$0.0000" in page.text("td")
    assert "and 12 from a log" in page.text("td")


def test_what_the_trainings_cost_is_there_by_phase(page):
    cells = page.text("td")
    assert "216,000" in cells
    assert "8 min 50 s" in cells
    assert "1 min 2 s 5 min 20 s 2 min 10 s 18 s 2,450 MB" in cells


def test_the_lineage_joins_runs_by_equal_hashes(page):
    assert {TEACHER_SHA, PRUNED_SHA, BLACK_SHA, WHITE_SHA} <= set(page.titles)
    chain = page.text("article")
    for made_by in ("from data/train", "from data/heldout", "from students/pruned", "from trained/white_box"):
        assert made_by in chain
    assert PRUNED_SHA[:10] in chain
    assert PRUNED_SHA not in chain


def test_a_kind_of_run_it_does_not_know_is_listed(page):
    assert "curated (deduplicate)" in page.text("section")


def test_stories_stand_side_by_side_in_the_embedded_data(page):
    stories = json.loads(page.data["stories-data-1"])
    assert stories["columns"] == ["Held-out text", "teacher", "pruned", "black_box", "white_box"]
    assert stories["roles"][1:3] == ["teacher", "baseline"]
    assert len(stories["rows"]) == stories["total"] == 12
    row = stories["rows"][3]
    assert row["cells"][0]["missing"] == []
    assert set(row["words"]) <= set(row["forms"])
    assert len(row["cells"]) == 5
    rejected = json.loads(page.data["rejected-data"])
    assert set(rejected["reasons"]) == {
        "missing_words",
        "cut_off",
        "truncated",
        "loop",
        "too_short",
        "prompt_echoed",
    }
    assert {r["reason"] for r in rejected["rows"]} == set(rejected["reasons"])


def test_a_story_cannot_end_the_script_it_stands_in(html, page):
    stories = json.loads(page.data["stories-data-1"])
    # The text is whole in the data, and nowhere in the page as markup.
    assert HOSTILE in stories["rows"][1]["cells"][0]["text"]
    assert HOSTILE not in html
    assert html.count("</script>") == html.count("<script") == 3


def test_names_are_escaped_too(tmp_path):
    RunDir.create(tmp_path / "<b>x", kind="<script>evil", config={}, fingerprint={}).finish()
    html = report(tmp_path).read_text()
    assert "<script>evil" not in html
    assert "&lt;script&gt;evil" in html
    assert "<b>x" not in html


def test_single_run_directories_and_missing_parts(job, tmp_path):
    train = report([job / "trained/black_box"], out=tmp_path / "a.html")
    assert train == tmp_path / "a.html"
    page = Page(train.read_text())
    assert "training" in page.ids
    assert not page.ids & {"comparison-1", "data", "rejected"}
    copy = Path(shutil.copytree(job / "evaluation", tmp_path / "evaluation"))
    for name in ("generations.jsonl", "samples.jsonl", "DONE"):
        (copy / name).unlink()
    page = Page(report(copy).read_text())
    assert "48,210" in page.text("td")
    assert "stories-1" not in page.ids
    assert "Not finished: evaluation" in page.text("header")


def test_a_broken_or_foreign_run_does_not_hide_the_others(job, tmp_path):
    shutil.copytree(job / "trained/black_box", tmp_path / "good")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    metrics = tmp_path / "good" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 121, "spl')
    (tmp_path / "worse").mkdir()
    RunDir.create(tmp_path / "worse" / "eval", kind="evaluate", config={}, fingerprint={}).finish()
    page = Page(report(tmp_path).read_text())
    assert "good" in page.text("h3")


def test_no_run_is_an_error_in_one_sentence(tmp_path):
    with pytest.raises(RunDirError, match="No directory"):
        report(tmp_path / "none")
    with pytest.raises(RunDirError, match="No run to report on"):
        report(tmp_path)


def test_a_student_that_got_worse_is_said_to_have(job, tmp_path):
    copy = Path(shutil.copytree(job, tmp_path / "job"))
    path = copy / "evaluation" / "scores.json"
    scores = json.loads(path.read_text())
    for score in scores["scores"]:
        if score["model"] == "pruned" and score["metric"] == "perplexity":
            score["value"] = 9.0
    path.write_text(json.dumps(scores))
    assert "rose from 9.00 to 12.3" in Page(report(copy).read_text()).text("header")


@pytest.mark.medium
@pytest.mark.skipif(not Path(CHROMIUM).is_file(), reason="no Chromium on this machine")
def test_a_browser_shows_the_rows_without_an_error(html, job, tmp_path):
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0", "--dump-dom",
            (job / "report.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    dom = Page(done.stdout)
    assert done.stdout.count('<tr class="entry">') == 10  # five stories and five rejected samples
    assert dom.text("title").startswith("smollm2 distilled")  # the hostile story did not run
    assert "img" not in dom.tags
    assert dom.tags.count("mark") > 5
    assert "1–5 of 12" in dom.text("span")
