"""The report: escapes what it is given, renders whatever is missing, and needs nothing but itself."""

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from raypref import page, report
from raypref.images import decode, encode
from raypref.reporting import contact_sheet, distances_note

ATTACK = '<script>alert("x")</script>'


def image(size: int = 16, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def stage(name: str, **metrics) -> dict:
    return {"name": name, "metrics": metrics}


def full() -> dict:
    row = {"step": 1, "loss": 0.69, "rewards/accuracies": 0.5, "error/winner": 0.1, "error/winner_reference": 0.2}
    rows = [row | {"step": step} for step in range(1, 251)] + [{"step": 251, "loss": float("nan")}]
    example = {"prompt": ATTACK, "winner": image(), "loser": image(), "winner_score": 2.0, "loser_score": None}
    return {
        "title": ATTACK,
        "recipe": "mini",
        "seed": 0,
        "wall_s": 5000.0,
        "created": "2026-01-01",
        "versions": {"raypref": "0.1", "torch": "2"},
        "stages": [
            stage("base", preference_score=20.0, frechet_distance=37.34, win_rate_vs_base=None),
            stage("easy", preference_score=21.0, frechet_distance=29.41, win_rate_vs_base=0.75)
            | {"intervals": {"win_rate_vs_base": [0.7, 0.8]}},
            stage("hard", preference_score=float("nan"), frechet_distance=36.0, win_rate_vs_base=0.5),
        ],
        "baseline_notes": [ATTACK],
        "curves": {ATTACK: rows, "hard": rows[:3], "empty": []},
        "grids": {
            "prompts": [ATTACK, "b"],
            "columns": [{"name": "base", "images": [image()]}, {"name": "real", "images": [b"broken", None]}],
        },
        "pairs": {
            ATTACK: {
                "rows": 12000,
                "gap_histogram": {"edges": [0, 1, 2], "counts": [3, 1]},
                "winner_sources": {ATTACK: 12000},
                "loser_sources": {},
                "mean_gap": None,
                "examples": [example],
            }
        },
        "rejected": [{"artifact": "pools/real", "reason": ATTACK, "count": 3, "examples": [ATTACK]}],
        "tasks": [
            {"name": "a", "kind": "train", "seconds": 2.0, "items": 4000, "unit": "steps", "state": "done"},
            {"name": "b", "kind": "score", "seconds": None, "items": 0, "unit": "images", "state": "skipped"},
        ],
        "config": {"stages": [{"name": ATTACK, "path": io}]},
        "command": ATTACK,
        "run_dir": "/runs/a",
    }


class Checker(HTMLParser):
    """Collects tags and identifiers; fails on tags that do not nest."""

    VOID = {"meta", "img", "br"}

    def __init__(self, page: str):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.text = [], [], [], [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_is_well_formed_and_self_contained():
    page = report.render(full())
    checker = Checker(page)
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    assert all(link.startswith(("#", "data:image/")) for link in checker.links)
    assert {link[1:] for link in checker.links if link.startswith("#")} <= set(checker.ids)
    assert not re.search(r"https?://|@import", page)


def test_untrusted_text_is_escaped():
    page = report.render(full())
    assert "<script" not in page
    assert "script" not in Checker(page).tags
    assert page.count("&lt;script&gt;") >= 10  # and still shown


@pytest.mark.parametrize("missing", [*full(), None])
def test_every_section_may_be_missing_or_empty(missing):
    data = full() | {"curves": {}} if missing else {}  # the plots take most of the time
    data.pop(missing, None)
    assert Checker(report.render(data)).open == []
    if missing:
        assert Checker(report.render(data | {missing: None})).open == []


def test_page_depends_on_the_data_alone():
    assert report.render(full()) == report.render(full())


def test_values_and_dashes_in_the_page():
    text = Checker(report.render(full())).text
    assert "29.41" in text and "−7.93" in text  # value, change against the base
    assert "75.0 %" in text and "70.0 … 80.0" in text
    assert "1 h 23 min" in text and "12\u202f000" in text and "2\u202f000 /s" in text
    assert "nan" not in text.lower() and "None" not in text


def test_table_aligns_and_marks_the_best_by_direction():
    lines = report.table(full()["stages"]).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["base", "20.00", "–", "37.34"],
        ["easy", "21.00", "*", "75.0", "%", "*", "29.41", "*"],
        ["hard", "–", "50.0", "%", "36.00"],
    ]
    assert lines[0].split() == ["stage", "Preference", "↑", "Win", "rate", "↑", "Fréchet", "dist.", "↓"]
    assert len({line.index(figure) for line, figure in zip(lines[2:], ("37.34", "29.41", "36.00"), strict=True)}) == 1
    assert report.table([]) == report.table([stage("base", clip_t=None)]) == "no results"


def test_unknown_metrics_are_shown_without_direction():
    lines = report.table([stage("a", my_metric=1.0), stage("b", my_metric=2.0)]).splitlines()
    assert lines[0].split() == ["stage", "my", "metric"]
    assert "*" not in lines[2] + lines[3]


def test_what_describes_has_a_table_of_its_own_with_the_real_images_last():
    stages = [stage("base", clip_t=0.5, **{"looks/hue": 2.0}), stage("easy", clip_t=0.6, **{"looks/hue": 2.5})]
    text = Checker(report.render({"stages": stages, "real": {"clip_t": 0.9, "looks/hue": 7.25}})).text
    results, _, statistics = text.partition("Statistics of the images")
    assert "hue" not in results and "7.25" not in results
    assert statistics.split()[:8] == ["looks", "hue", "base", "2.000", "easy", "2.500", "+0.500", "real"]
    assert "7.250" in statistics
    assert "hue" not in report.table(stages)
    assert "Statistics of the images" not in Checker(report.render(full())).text


@pytest.mark.parametrize(("features", "singular"), [(64, False), (768, True)])
def test_note_of_the_distances_names_the_sizes_and_the_bias(features, singular):
    note = distances_note({"images": 256, "real": 512, "features": features}, "inception")
    assert "features of inception, 256 generated and 512 real images" in note
    assert (f"fewer than the {features} features" in note) == singular


def test_pictures():
    small, large = report.picture(image(64, "WEBP"), '"'), report.picture(image(1024))
    assert "data:image/webp" in small and 'class="pixel"' in small and 'alt="&#34;"' in small
    assert 'width="512"' in large and "pixel" not in large
    assert len(large) < len(image(1024)) / 4
    assert report.picture(None) == report.picture(b"not an image") == '<span class="none">–</span>'


def test_grid_keeps_the_place_of_an_image_that_was_set_aside():
    red = encode(np.full((32, 32, 3), (255, 0, 0), np.uint8), "png")
    columns = [{"name": "base", "images": [None, red]}, {"name": "easy", "images": [None, None]}]
    sheet = decode(contact_sheet(columns), 10**7)
    cell = (sheet.width - 2) // 2
    assert sheet.getpixel((cell + cell // 4, 20)) == (255, 0, 0)
    assert sheet.getpixel((cell // 4, 20)) == (128, 128, 128)


def test_long_curves_stay_small():
    rows = [{"step": step, "loss": 0.6 + 0.1 * (step % 7)} for step in range(20_000)]
    assert len(report.render({"curves": {"easy": rows}})) < 60_000


def test_difference_series_skip_incomplete_rows():
    rows = [{"step": 1, "a": 3.0, "b": 1.0}, {"step": 2, "a": 3.0}, {"step": 3, "a": None, "b": 1.0}]
    steps, values = report._points(rows, report.Series("a - b", "a", "", "b"))
    assert steps.tolist() == [1] and values.tolist() == [2]


@pytest.mark.parametrize(
    "seconds, text", [(4.25, "4.2 s"), (59, "59 s"), (61, "1 min 1 s"), (5000, "1 h 23 min"), (None, "–")]
)
def test_duration(seconds, text):
    assert page.duration(seconds) == text
