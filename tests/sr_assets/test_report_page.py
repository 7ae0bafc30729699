"""The page in a real browser: it is one file, the slider moves, tables sort, nothing complains."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from upath import UPath

from sr_assets.evaluation.gallery import entry, weakest_images
from sr_assets.evaluation.history import Moment, earlier_leaderboards, nights
from sr_assets.evaluation.pixels import encode_png
from sr_assets.evaluation.results import ImageScore, Results, side_by_side
from sr_assets.report import page as page_module
from sr_assets.report.embedding import embed, picture_groups
from sr_assets.report.page import Surroundings, render_page

ROWS = {"bicubic": ("bicubic", 25.0), "hat": ("expert", 27.0), "fast": ("student", 26.0)}
FACTS = {"psnr_rgb": {"title": "PSNR-RGB", "unit": "dB", "lower_is_better": False}}


def scores(row: str, psnr: float) -> tuple[ImageScore, ...]:
    # `fast` loses against bicubic on the last image
    values = [psnr, psnr + 2, 24.0 if row == "fast" else psnr]
    return tuple(
        ImageScore(f"{i}.png", 64, 48, v, 0.8, (0.0, 0.0, 0.0), "", {"psnr_rgb": v - 1 - i})
        for i, v in enumerate(values)
    )


def made(budget: int = 18_000_000) -> tuple[str, dict[str, bytes]]:
    """A page with everything on it, and the files beside it."""
    random = np.random.default_rng(0)
    results = {name: Results(name, kind, scores(name, p), None) for name, (kind, p) in ROWS.items()}
    weak = weakest_images({name: {"x": own.images} for name, own in results.items()})
    files: dict[str, bytes] = {}
    gallery: dict[str, Any] = {"x": []}
    for index in range(3):
        hr = random.integers(0, 256, (48, 64, 3), np.uint8)
        pictures = {"hr": hr, "lr": np.ascontiguousarray(hr[::4, ::4])}
        for number, name in enumerate(ROWS):
            pictures[name] = np.clip(hr.astype(int) + 8 * (number + 1), 0, 255).astype(np.uint8)
        folder = f"images/x/{index:03d}"
        files |= {f"{folder}/{row}.png": encode_png(p) for row, p in pictures.items()}
        gallery["x"].append(
            entry(
                folder,
                pictures,
                {name: own.images[index] for name, own in results.items()},
                weak.get(("x", f"{index}.png"), ()),
                files.__setitem__,
                scale=4,
                crops=1,
                crop_size=16,
            )
        )
    measured = side_by_side(results)
    rows = [
        {
            "name": name,
            "kind": kind,
            "note": "",
            "parameters": 1000 * (number + 1),
            "total_parameters": 1000 * (number + 1),
            "benchmarks": {"x": measured[name]},
            "tiled": {"x": {"max_levels": 0.5}} if name == "fast" else {},
        }
        for number, (name, (kind, _)) in enumerate(ROWS.items())
    ]
    board = {"recipe": "tiny", "scale": 4, "rows": rows, "checks": [], "facts": FACTS}
    speeds = {
        name: {"seconds": 0.1, "total_seconds": 0.1 + number, "devices": ["cpu"]}
        for number, name in enumerate(("hat", "fast"))
    }
    history = [
        Moment(datetime(2026, 11, day, tzinfo=UTC), {"hat": 27.0 + day / 100}, day == 2)
        for day in (1, 2, 3)
    ]
    inputs = [
        {
            "output": "model/fast/evaluation[x]",
            "data": "abcdef123456",
            "code": "0123456789ab",
            "made": "2026-11-21 10:00",
            "seconds": 1.0,
            "from": {"model/fast/checkpoint": "ddddeeeeffff"},
        }
    ]
    around = Surroundings(
        embed(*picture_groups(board, gallery), files.__getitem__, budget=budget),
        history,
        {"inputs": inputs, "made_with": {"torch": "9.8.7", "seed": "42"}},
    )
    return render_page(board, gallery, speeds, around), files


SCRIPT = """
<script>
(() => {
  const found = {};
  const $ = (id) => document.getElementById(id);
  const name = (row) => row.querySelector(".name").textContent;
  const order = (table) => [...table.tBodies[0].rows].map(name);
  const table = document.querySelector("table.sortable");
  const heads = [...table.querySelectorAll("thead th")];
  const click = (column) => { heads[column].querySelector("button").click(); return order(table); };
  found.before = order(table);
  found.down = click(1);
  found.sorted = heads.map((head) => head.getAttribute("aria-sort"));
  found.up = click(1);
  found.time = click(5);
  found.timeUp = click(5);
  const handle = () => $("handle").style.left;
  found.slider = [handle()];
  $("divider").value = "20";
  $("divider").dispatchEvent(new Event("input"));
  found.slider.push(handle());
  found.clip = $("side-left").style.clipPath;
  $("error").click();
  found.error = ["side-left", "side-right"].map((id) => $(id).classList.contains("error"));
  found.filter = getComputedStyle($("side-left")).filter;
  found.legend = $("legend").hidden;
  $("left").value = "lr";
  $("left").dispatchEvent(new Event("change"));
  found.errorOfLr = $("side-left").classList.contains("error");
  $("error").click();
  const weak = [...document.querySelectorAll("#weak .link")];
  found.weak = weak.map((one) => `${one.dataset.row} ${one.textContent}`);
  weak[weak.length - 1].click();
  found.opened = [$("right").value, $("image-right").alt, document.activeElement.id];
  const cell = () => document.querySelector(".per-image tbody td").textContent;
  found.cells = [cell()];
  $("metric").value = "0";
  $("metric").dispatchEvent(new Event("change"));
  found.cells.push(cell());
  const images = [...document.images].filter((image) => !image.hidden);
  found.outside = images.filter((image) => !image.src.startsWith("data:")).length;
  found.images = images.length;
  Promise.all(images.map((image) => { image.loading = "eager"; return image.decode(); })).then(
    () => { found.decoded = true; },
    (error) => { found.decoded = String(error); },
  ).finally(() => {
    const out = document.createElement("pre");
    out.id = "found";
    out.textContent = JSON.stringify(found);
    document.body.append(out);
  });
})();
</script>
</body>
"""


@pytest.fixture(scope="module")
def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no chromium or google-chrome on this machine")


def shown(browser: str, page: Path, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What the script of a page left in its element `found`, and what the browser said."""
    for seconds in (8, 60, 600):  # of the page's own clock, which runs while a busy machine draws
        said = subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
                f"--user-data-dir={folder / 'profile'}", f"--virtual-time-budget={seconds}000",
                "--window-size=1400,1000", "--dump-dom", page.as_uri(),
            ],
            capture_output=True, text=True, timeout=600, check=True,
        )  # fmt: skip
        if match := re.search(r'<pre id="found">(.*?)</pre>', said.stdout, re.DOTALL):
            return json.loads(html.unescape(match[1])), said.stderr.splitlines()
    raise AssertionError(said.stderr[-2000:])


@pytest.fixture(scope="module")
def seen(browser: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What a script found on the page, moved away from the pictures beside it."""
    folder = tmp_path_factory.mktemp("page")
    page, _ = made()
    (folder / "report.html").write_text(page.replace("</body>", SCRIPT))
    found, said = shown(browser, folder / "report.html", folder)
    console = [line for line in said if ":CONSOLE" in line]
    yield {**found, "console": console}


def test_nothing_complains_and_nothing_is_outside(seen: dict[str, Any]) -> None:
    assert seen["console"] == []
    assert seen["outside"] == 0 and seen["images"] > 20
    assert seen["decoded"] is True


def test_a_click_sorts_and_what_was_not_measured_stays_last(seen: dict[str, Any]) -> None:
    assert seen["before"] == ["bicubic", "hat", "fast"]
    assert seen["down"] == ["hat", "fast", "bicubic"]
    assert seen["sorted"][1] == "descending" and seen["sorted"].count("none") == 7
    assert seen["up"] == ["bicubic", "fast", "hat"]
    assert seen["time"] == ["fast", "hat", "bicubic"]
    assert seen["timeUp"] == ["hat", "fast", "bicubic"]


def test_the_slider_moves(seen: dict[str, Any]) -> None:
    assert seen["slider"] == ["50%", "20%"]
    assert seen["clip"].startswith("inset(")


def test_errors_are_shown_of_rows_only(seen: dict[str, Any]) -> None:
    assert seen["error"] == [True, True]
    assert "error-colours" in seen["filter"] and seen["legend"] is False
    assert seen["errorOfLr"] is False


def test_the_weakest_places_open_the_comparison(seen: dict[str, Any]) -> None:
    assert next(one for one in seen["weak"] if one.startswith("fast")) == "fast 2.png"
    assert seen["opened"][0] == "fast" and seen["opened"][2] == "divider"


def test_images_show_further_metrics(seen: dict[str, Any]) -> None:
    assert seen["cells"] == ["25.000.8000", "24.00"]


FRAME = """<!doctype html><body><iframe id="phone" style="width:390px;height:844px"></iframe>
<script>
const frame = document.getElementById("phone");
frame.addEventListener("load", () => {
  const page = frame.contentDocument, root = page.documentElement;
  const shown = (one) => frame.contentWindow.getComputedStyle(one).display;
  const found = {
    width: root.clientWidth, content: root.scrollWidth,
    wide: shown(page.querySelector(".strips .wide")),
    narrow: shown(page.querySelector(".strips .narrow")),
    reach: [...page.querySelectorAll("select, .thumbs button, #swap, #divider, #view")]
      .filter((one) => one.tabIndex !== 0).length,
  };
  const out = document.createElement("pre");
  out.id = "found";
  out.textContent = JSON.stringify(found);
  document.body.append(out);
});
frame.srcdoc = PAGE;
</script></body>"""


def test_a_phone_shows_it_without_scrolling_sideways(browser: str, tmp_path: Path) -> None:
    page, _ = made()
    quoted = json.dumps(page).replace("</", "<\\/").replace("<!--", "<\\!--")
    (tmp_path / "frame.html").write_text(FRAME.replace("PAGE", quoted))
    found, _ = shown(browser, tmp_path / "frame.html", tmp_path)
    assert found["width"] <= 390 and found["content"] == found["width"]
    assert found["wide"] == "none" and found["narrow"] == "block"
    assert found["reach"] == 0  # every control of the comparison is reached by the tab key


def schemes() -> list[dict[str, str]]:
    """The colours of the page by their names: light, dark."""
    css = (Path(page_module.__file__).parent / "templates" / "report.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", css.partition("@media print")[0], re.DOTALL)
    colours = re.compile(r"--(\w+): (#[0-9a-f]{6})")
    return [dict(colours.findall(light)), dict(colours.findall(light + dark))]


def mixed(one: str, other: str, share: float) -> str:
    """CSS's color-mix in srgb of two colours, `share` of the first."""
    parts = [(int(one[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a * share + b * (1 - share)):02x}" for a, b in parts)


def contrast(one: str, other: str) -> float:
    """Contrast ratio of WCAG 2.1."""

    def luminance(colour: str) -> float:
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        red, green, blue = (
            p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", schemes(), ids=["light", "dark"])
def test_every_text_can_be_read(colours: dict[str, str]) -> None:
    grounds = [colours[name] for name in ("page", "card", "soft")]
    for text in ("ink", "muted", "accent"):
        assert min(contrast(colours[text], ground) for ground in grounds) >= 4.5, text
    for text in ("good", "warn"):
        assert min(contrast(colours[text], colours[name]) for name in ("page", "card")) >= 4.5
    for tint in ("above", "below"):
        assert contrast(colours["ink"], mixed(colours[tint], colours["card"], 0.42)) >= 4.5
    # Marks of plots are no text: 3 is what WCAG asks of graphics.
    for mark in ("bicubic", "expert", "control", "plain", "fusion", "student"):
        assert contrast(colours[mark], colours["card"]) >= 3, mark


def test_no_text_is_faded() -> None:
    css = (Path(page_module.__file__).parent / "templates" / "report.css").read_text()
    faded = re.findall(r"([^{}\n]+) \{[^}]*[ ;]opacity: [^;}]+", css)
    assert faded == ["#divider"]  # the range input, which is seen as its handle
    assert contrast("#ffffff", mixed("#000000", "#ffffff", 0.68)) >= 4.5  # labels over a picture


def test_the_page_says_where_numbers_come_from() -> None:
    page, _ = made()
    for text in ("torch 9.8.7", "seed 42", "abcdef123456", "0123456789ab", "ddddeeeeffff"):
        assert text in page
    assert "Tiled − whole" in page and "PSNR-RGB" in page
    assert page.count('class="pareto"') == 2  # nothing is known of multiply-adds


def test_nights_are_told_from_leaderboards() -> None:
    page, _ = made()
    assert page.count('class="expert night"') == 1
    assert "night of 2026-11-02 00:00 UTC: 27.020 dB" in page
    assert "leaderboard of 2026-11-03 00:00 UTC: 27.030 dB" in page


def test_what_does_not_fit_stays_beside_the_page() -> None:
    whole, files = made()
    inside = pictures_in(whole)
    assert set(inside) == set(files)
    page, _ = made(budget=sum(map(len, inside.values())) * 2 // 5)
    fewer = pictures_in(page)
    assert 0 < len(fewer) < len(files)
    assert sum(map(len, fewer.values())) <= sum(map(len, inside.values())) * 2 // 5
    assert "inside it, as WebP" in page and "in the folder images beside this page" in page
    assert "inside it, as WebP" not in whole


def pictures_in(page: str) -> dict[str, str]:
    return json.loads(page.split('id="pictures">')[1].split("</script>")[0])


def test_the_largest_pictures_are_compressed_and_a_group_stays_whole() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    smooth = np.full((64, 64, 3), 90, np.uint8)
    files = {"a": encode_png(noise), "b": encode_png(smooth), "c": encode_png(noise)}
    everything = embed([], [["a", "b"], ["c"]], files.__getitem__)
    assert everything.exact and everything.groups == 2 and set(everything.pictures) == set(files)
    size = sum(map(len, everything.pictures.values()))
    less = embed([], [["a", "b"], ["c"]], files.__getitem__, budget=size - 1)
    assert not less.exact
    assert all(uri.startswith("data:image/webp") for uri in less.pictures.values())
    none = embed([["b"]], [["a", "b"], ["c"]], files.__getitem__, budget=600)
    assert none.groups == 0 and none.of == 2 and set(none.pictures) <= {"b"}


def test_history_reads_leaderboards_and_nights(tmp_path: Path) -> None:
    for number, psnr in enumerate((26.0, 27.0)):
        folder = tmp_path / "evaluation" / "leaderboard" / f"address{number}"
        folder.mkdir(parents=True)
        rows = [{"name": "hat", "benchmarks": {"x": {"psnr_y": psnr}, "y": {"psnr_y": psnr + 2}}}]
        (folder / "leaderboard.json").write_text(json.dumps({"rows": rows}))
        if psnr == 27.0:
            (folder / "srd.json").write_text("{}")  # the other one was never finished
    found = earlier_leaderboards(UPath(tmp_path / "evaluation" / "leaderboard"), ["x", "y"])
    assert [moment.scores for moment in found] == [{"hat": 28.0}]
    assert earlier_leaderboards(UPath(tmp_path / "nowhere"), ["x"]) == []
    (tmp_path / "nights").mkdir()
    night = {"rows": [{"row": "hat", "benchmark": "x", "psnr_y": 27.5}]}
    (tmp_path / "nights" / "2026-11-03T030000.000000.json").write_text(json.dumps(night))
    (tmp_path / "nights" / "2026-11-04T030000.000000.json").write_text("torn")
    (moment,) = nights(UPath(tmp_path / "nights"), ["x"])
    assert moment == Moment(datetime(2026, 11, 3, 3, tzinfo=UTC), {"hat": 27.5}, night=True)
    assert nights(UPath(tmp_path / "nights"), ["x", "y"]) == []
