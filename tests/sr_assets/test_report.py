"""The page: every row is there, every picture exists, nothing comes from outside."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sr_assets.report.distribution import NARROW, WIDTH, distribution
from sr_assets.report.numbers import giga, short_count, three_figures
from sr_assets.report.page import render_page, templates_digest, title_of
from sr_assets.report.plots import round_values, scatter
from sr_assets.report.terminal import row_line

VOID = {"meta", "img", "input", "br", "link", "hr"}


class Page(HTMLParser):
    """Collects elements and complains about tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def row(name: str, kind: str, psnr: float | None, parameters: int | None = None) -> dict[str, Any]:
    score = {"psnr_y": psnr, "ssim_y": 0.8, "colour_offset": [0.01, -0.7 if psnr == 26 else 0, 0]}
    return {
        "name": name,
        "kind": kind,
        "note": "a 0.5, b 0.5" if kind == "convex" else "",
        "parameters": parameters,
        "total_parameters": parameters,
        "multiply_adds": None if parameters is None else 1000 * parameters,
        "total_multiply_adds": None if parameters is None else 1000 * parameters,
        "benchmarks": {"x": score, "y": score},
    }


def leaderboard() -> dict[str, Any]:
    return {
        "recipe": "tiny",
        "scale": 4,
        "rows": [
            row("bicubic", "bicubic", 25.0),
            row("hat", "expert", 27.0, 20_000_000),
            row("convex", "convex", 27.1, 20_000_000),
            row("blend", "fusion", 27.5, 20_100_000),
            row("fast", "student", 26.0, 52_000),
        ],
        "checks": [
            {
                "name": "fast",
                "kind": "student",
                "outcomes": [
                    {"name": "teacher_helped", "passed": False, "reason": "no <b>", "numbers": {}}
                ],
            }
        ],
    }


def gallery(name: str = "a.png") -> dict[str, Any]:
    cells = {
        r["name"]: {"src": f"i/{r['name']}.png", "psnr_y": 26.0, "ssim_y": 0.8, "metrics": {}}
        for r in leaderboard()["rows"]
    }
    crop = {
        "x": 4,
        "y": 8,
        "size": 16,
        "cells": [
            {"row": "hr", "src": "i/c-hr.png", "psnr_y": None},
            {"row": "hat", "src": "i/c-hat.png", "psnr_y": 27.125},
        ],
    }
    image = {"name": name, "width": 64, "height": 48, "hr": "i/hr.png", "lr": "i/lr.png",
             "thumb": "i/t.png", "rows": cells, "crops": [crop], "weak": []}  # fmt: skip
    return {"x": [image], "y": [{**image, "crops": []}]}


def render(**changes: Any) -> Page:
    return Page(render_page({**leaderboard(), **changes}, gallery()))


def test_every_row_is_in_every_table() -> None:
    page = render()
    tables = [t for t in page.all("table") if t["class"] == "sortable"]
    assert len(tables) == 3  # the mean of the benchmarks, and each
    joined = "".join(page.text)
    for name in ("hat", "blend", "fast"):
        assert joined.count(name) >= 3
    assert joined.count("best fixed mix") >= 3
    assert "a 0.5, b 0.5" in joined
    assert "all 2 benchmarks" in joined
    assert "20 M" in joined and "52 k" in joined


def test_best_is_bold_and_a_large_offset_is_marked() -> None:
    page = render()
    bold = [a for a in page.all("td") if a["class"] and "best" in a["class"].split()]
    assert {a["data-value"] for a in bold} >= {"27.5", "2.5"}
    assert not any(a["data-value"] == "27.0" for a in bold)
    warned = [a for a in page.all("td") if a["class"] and "warn" in a["class"].split()]
    assert {a["data-value"] for a in warned} == {"0.7"}


def test_nothing_comes_from_outside() -> None:
    text = render_page(leaderboard(), gallery())
    assert "http://" not in text and "https://" not in text and "@import" not in text
    page = Page(text)
    assert page.all("link") == []
    for attributes in [*page.all("img"), *page.all("script")]:
        source = attributes.get("src") or ""
        assert not source.startswith(("/", "//", "data:"))


def test_every_picture_has_an_alternative_text() -> None:
    assert all(image["alt"] for image in render().all("img") if "hidden" not in image)


def test_slider_works_by_mouse_touch_and_keyboard() -> None:
    text = render_page(leaderboard(), gallery())
    page = Page(text)
    (divider,) = [i for i in page.all("input") if i["id"] == "divider"]
    assert divider["type"] == "range"  # arrow keys and screen readers come with it
    assert divider["aria-label"]
    assert "pointerdown" in text and "setPointerCapture" in text and "touch-action" in text
    options = [o["value"] for o in page.all("option")]
    wanted = ["lr", "bicubic", "hat", "convex", "blend", "fast", "hr"]
    assert options == wanted * 2
    chosen = [o["value"] for o in page.all("option") if "selected" in o]
    assert chosen == ["bicubic", "blend"]


def test_checks_show_their_reason_escaped() -> None:
    page = render()
    joined = "".join(page.text)
    assert "no <b>" in joined
    assert "1 failed" in joined
    assert any(li["class"] == "fail" for li in page.all("li"))


def test_names_of_images_cannot_break_the_page() -> None:
    evil = '"><script>alert(1)</script>.png'
    text = render_page(leaderboard(), gallery(evil))
    assert "<script>alert" not in text
    assert evil in "".join(Page(text).text)


def test_a_page_of_bicubic_and_one_network() -> None:
    rows = [row("bicubic", "bicubic", 25.0), row("alone", "plain", None, 900)]
    for entry in rows:
        del entry["benchmarks"]["y"]
    board = {"recipe": "tiny", "scale": 2, "rows": rows, "checks": []}
    page = Page(render_page(board, {}))
    assert "∞" in "".join(page.text)
    assert page.all("svg") == []
    assert page.all("input") == []


def damage(label: str = "plateau") -> dict[str, Any]:
    """Two rows, one step; `hat` is weak without it."""

    def means(hat: float, samples: int = 50) -> dict[str, Any]:
        rows = {
            "hat": {"psnr_y": 20 + hat, "gain": hat, "error": 0.125},
            "fast": {"psnr_y": 21.0, "gain": 1.0, "error": None},
        }
        return {"samples": samples, "bicubic": 20.0, "rows": rows}

    kinds = [
        {"label": "none", "part": False, **means(-0.5)},
        {"label": label, "part": False, **means(3.25)},
        {"label": "σ 0.5–2 px", "part": True, **means(9.0, 3)},
    ]
    shown = ("hr", "lr", "bicubic", "fast")
    example = {
        "dataset": "photos",
        "index": 3,
        "variant": 1,
        "steps": [{"op": "jpeg", "kind": "4:2:0", "numbers": {"quality": 40.0}, "position": 0}],
        "pictures": [{"row": row, "src": f"damage/{row}.png", "psnr_y": None} for row in shown],
    }
    return {
        "all": means(1.5),
        "groups": [{"name": "blur 1", "kinds": kinds}],
        "datasets": ["photos"],
        "best": "fast",
        "examples": [example],
    }


def test_damage_is_a_table_by_step_and_kind() -> None:
    page = render(damage=damage())
    joined = " ".join("".join(page.text).split())
    assert "23.25+3.25 ± 0.12" in joined
    assert "σ 0.5–2 px" in joined
    assert "fast gains 1.00 dB over bicubic on average" in joined
    assert [t for t in page.all("table") if t["class"] == "damage"]
    (group,) = [th for th in page.all("th") if th.get("scope") == "rowgroup"]
    assert group["colspan"] == "5"
    coloured = [td["style"] or "" for td in page.all("td") if "style" in td]
    assert len(coloured) == 2  # of `hat` in the two kinds with enough samples
    assert "--below" in coloured[0] and "--above" in coloured[1]
    assert "JPEG 40 4:2:0" in joined and "photos, patch 3, version 1" in joined
    assert "#damage" in {a["href"] for a in page.all("a")}
    assert all(image["alt"] for image in page.all("img") if "hidden" not in image)


def test_a_page_without_damage_has_no_such_section() -> None:
    text = render_page(leaderboard(), gallery())
    assert 'id="damage"' not in text and "#damage" not in text


def test_names_of_kinds_cannot_break_the_page() -> None:
    text = render_page({**leaderboard(), "damage": damage("<b>bad</b>")}, gallery())
    assert "<b>bad" not in text
    assert "<b>bad</b>" in "".join(Page(text).text)


def test_headers_can_be_sorted() -> None:
    page = render()
    heads = [th for th in page.all("th") if th.get("scope") == "col"]
    assert heads and all(th["aria-sort"] == "none" for th in heads)
    cells = page.all("td")
    assert cells
    for cell in cells:
        float(cell["data-value"] or "")


def test_labels_of_the_plot_do_not_overlap() -> None:
    rows = [
        {
            "name": f"network_{i}",
            "kind": "expert",
            "parameters": 100_000 + i,
            "psnr_y": 27 + i / 500,
        }
        for i in range(6)
    ]
    plot = scatter(rows, 26.9)
    assert plot is not None
    assert plot.bicubic is not None and plot.bicubic > max(p.y for p in plot.points)
    for number, one in enumerate(plot.points):
        assert 0 <= one.x <= plot.width and 0 <= one.y <= plot.height
        for other in plot.points[:number]:
            same_side = one.anchor == other.anchor
            assert not same_side or abs(one.label_y - other.label_y) >= 11
    for far in (10.0, 40.0):
        assert scatter(rows, far).bicubic is None  # type: ignore[union-attr]
    above = scatter(rows, 27.1)
    assert above is not None and above.bicubic is not None
    assert above.top <= above.bicubic < min(p.y for p in above.points)
    assert scatter(rows[:1], 26.9) is None


@pytest.mark.parametrize(("low", "high"), [(28.43, 32.6), (29.08, 30.3), (0.0, 0.04), (-7.3, 9.9)])
def test_an_axis_has_three_to_eight_round_values(low: float, high: float) -> None:
    values = round_values(low, high)
    assert 3 <= len(values) <= 8
    assert all(low - 1e-9 <= value <= high + 1e-9 for value, _ in values)
    assert all(float(text) == pytest.approx(value, abs=1e-9) for value, text in values)


@pytest.mark.parametrize("cost", [3.0, 19.9e9, 885_000.0])
@pytest.mark.parametrize("times", [1.0, 1.3, 3.0, 40.0, 1e6])
def test_an_axis_of_costs_has_two_to_seven_numbers(cost: float, times: float) -> None:
    rows = [
        {"name": name, "kind": "expert", "seconds": value, "psnr_y": value / cost}
        for name, value in (("one", cost), ("two", cost * times))
    ]
    plot = scatter(rows, None, "seconds")
    assert plot is not None
    assert 2 <= len(plot.x_ticks) <= 7
    assert len({tick.label for tick in plot.x_ticks}) == len(plot.x_ticks)
    assert all(plot.left <= tick.at <= plot.right for tick in plot.x_ticks)


@pytest.mark.parametrize("width", [WIDTH, NARROW])
def test_a_strip_has_every_image_and_its_quartiles(width: int) -> None:
    gains = [-1.0, 0.0, 1.0, 2.0, 3.0]
    gallery = {
        "x": [
            {"name": f"{i}", "rows": {"bicubic": {"psnr_y": 30.0}, "net": {"psnr_y": 30.0 + gain}}}
            for i, gain in enumerate(gains)
        ]
    }
    rows = [{"name": name, "kind": name} for name in ("bicubic", "net")]
    plot = distribution(rows, gallery, ["x"], width)
    assert plot is not None and plot.width == width
    (strip,) = plot.strips
    assert [dot.image for dot in strip.dots] == ["0", "1", "2", "3", "4"]
    places = [dot.x for dot in strip.dots]
    assert places == sorted(places) and plot.left <= places[0] and places[-1] <= plot.right
    assert (*strip.box, strip.median) == pytest.approx((places[1], places[3], places[2]), abs=0.11)
    assert plot.zero == pytest.approx(places[1], abs=0.11)
    assert "median +1.00 dB, −1.00 to +3.00; " in strip.said
    assert strip.top + 14 * (1 + plot.narrow) < strip.middle - 9 < plot.bottom


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (950, "950"),
        (52_300, "52.3 k"),
        (999_600, "1 M"),
        (1_400_000, "1.4 M"),
        (131_700_000, "132 M"),
    ],
)
def test_counts_are_short(count: int, text: str) -> None:
    assert short_count(count) == text


def test_the_template_is_part_of_the_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sr_assets.report import page

    before = templates_digest()
    for path in page._TEMPLATES.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(page, "_TEMPLATES", tmp_path)
    assert templates_digest() == before
    (tmp_path / "report.css").write_text("body { color: red }")
    assert templates_digest() != before
    assert title_of("hr") == "HR (original)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (0.00001234, "0.000012"),
        (0.001234, "0.00123"),
        (0.9996, "1"),
        (99.4, "99.4"),
        (99.6, "100"),
        (12_345.6, "12,346"),
    ],
)
def test_numbers_have_no_powers_of_ten(value: float | None, text: str) -> None:
    assert three_figures(value) == text
    assert giga(None if value is None else value * 1e9) == text


def speeds() -> dict[str, Any]:
    """`hat` and the fusion that needs it ran on one machine, the student on another."""
    return {
        "hat": {"seconds": 20.0, "total_seconds": 20.0, "devices": ["Slow CPU, 2 threads"]},
        "blend": {"seconds": 0.5, "total_seconds": 20.5, "devices": ["Slow CPU, 2 threads"]},
        "fast": {"seconds": 0.031, "total_seconds": 0.031, "devices": ["Other GPU"]},
    }


def test_costs_are_columns_with_their_device() -> None:
    page = Page(render_page(leaderboard(), gallery(), speeds()))
    joined = "".join(page.text)
    values = {a["data-value"] for a in page.all("td")}
    assert {"20000000000", "52000000", "20.5", "0.031"} <= values
    assert "0.5 of its own" in joined and "0.052" in joined
    assert joined.count("Slow CPU, 2 threads; Other GPU") >= 2
    assert any(a.get("title") == "on Other GPU" for a in page.all("td"))
    assert "387× fewer parameters and 387× fewer multiply-adds" in joined
    assert "seconds.json" in {a["href"] for a in page.all("a")}


def drawings(page: Page) -> list[dict[str, str | None]]:
    return [svg for svg in page.all("svg") if svg.get("role") == "img"]


def test_quality_is_drawn_against_size_and_work() -> None:
    page = render()
    assert len(drawings(page)) == 2
    labels = {a["id"] for a in page.all("title") if "id" in a}
    assert labels == {a["aria-labelledby"] for a in drawings(page)} == {"plot-size", "plot-work"}


def test_a_leaderboard_without_costs_shows_dashes() -> None:
    """As it was written before costs were measured."""
    board = leaderboard()
    for entry in board["rows"]:
        del entry["multiply_adds"], entry["total_multiply_adds"]
    page = Page(render_page(board, gallery()))
    assert len(drawings(page)) == 1
    heads = [a for a in page.all("th") if a.get("scope") == "col"]
    assert len(heads) == 3 * 8 + 2 * 6  # three tables of rows, two of images
    joined = "".join(page.text)
    assert joined.count("–") >= 2 * 3 * 5
    assert "fewer parameters than" in joined and "seconds.json" not in joined


def test_a_fusion_in_a_terminal_shows_its_experts_cost_too() -> None:
    blend = {
        **row("blend", "fusion", 27.5, 52_000),
        "total_parameters": 20_052_000,
        "total_multiply_adds": 1_234_000_000_000,
    }
    score = blend["benchmarks"]["x"]
    shown = row_line(blend, score, speeds()["blend"], 30)
    assert shown.split()[-3:] == ["20,052,000", "1,234", "20.5"]
    del blend["total_multiply_adds"]
    assert row_line(blend, score, {}, 30).endswith(" 20,052,000")


def test_a_self_ensemble_is_a_row_after_its_own() -> None:
    from sr_assets.evaluation.cost import Cost, repeated_cost
    from sr_assets.evaluation.leaderboard import row_names
    from sr_assets.recipe.models import Recipe

    source = {"source": {"kind": "folder", "path": "photos"}}
    network = {"architecture": "Compact", "args": {"num_feat": 4, "num_conv": 1}}
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "datasets": {"photos": source},
            "benchmarks": {"bench": source},
            "experts": {"one": {"source": {"kind": "file", "path": "one.pth"}}},
            "models": {"fast": {"kind": "plain", "network": network}},
            "evaluation": {"self_ensemble": True},
        }
    )
    assert row_names(recipe) == ["bicubic", "one", "one_x8", "mean", "convex", "fast", "fast_x8"]
    cost = repeated_cost(Cost(5, 7, 0.5, ("a",)), 8)
    assert cost == Cost(5, 56, 4.0, ("a",))


def test_a_metric_is_best_in_its_own_direction() -> None:
    board = leaderboard()
    for number, entry in enumerate(board["rows"]):
        metrics = {"lpips": 0.5 - number / 10, "odd": float(number)}
        entry["benchmarks"] = {"x": {**entry["benchmarks"]["x"], "metrics": metrics}}
    facts = {"lpips": {"title": "LPIPS", "unit": "", "lower_is_better": True}}
    page = Page(render_page({**board, "facts": facts}, {}))
    bold = {a["data-value"] for a in page.all("td") if "best" in (a["class"] or "").split()}
    assert "0.09999999999999998" in bold and "0.5" not in bold
    assert not bold & {"4.0", "0.0"}  # nobody said which way `odd` is better
    assert {"LPIPS", "odd"} <= set(page.text)


def test_a_self_ensemble_is_no_headline() -> None:
    board = leaderboard()
    turned = {**row("hat_x8", "expert", 29.0, 20_000_000), "self_ensemble_of": "hat"}
    page = render_page({**board, "rows": [*board["rows"], turned]}, gallery())
    top = page.split("</header>")[0]
    assert "27.00" in top and "29.00" not in top and "hat_x8" in page
