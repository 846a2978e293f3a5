"""`report`: one page about a build, looked at in a real browser."""

from __future__ import annotations

import builtins
import html
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import DARK, NEEDED, Browser
from bundles import HOSTILE, counts, replaced, rewritten, slower
from PIL import Image
from support import Workplace, refused

from exporter.artifacts import (
    Coverage,
    Delegation,
    HistoryEntry,
    Lint,
    ModelCost,
    Profile,
    Repair,
    RuntimeRatio,
    Skipped,
    canonical,
)
from exporter.bundle import read_manifest

needs_browser = pytest.mark.skipif(not NEEDED, reason="apt-get install chromium")
TRACKER = '<img src="http://tracker.invalid/x.png">'


@pytest.fixture(scope="module")
def place(shared_place: Workplace) -> Workplace:
    """One build, built again so that all is in the store."""
    shared_place.onnx()
    shared_place.quadrants()
    flags = ("model.onnx", "--calib", "calib.npz", "--eval", "eval.npz", "--labels", "y")
    shared_place.built(*flags)
    shared_place.built(*flags)
    return shared_place


@pytest.fixture(scope="module")
def page(place: Workplace) -> Path:
    """The HTML report with everything in it."""
    result = place.run("report", "bundles", "--history", "--ops")
    assert result.code == 0, result.err
    assert "report: " in result.out
    return place / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def hostile(place: Workplace) -> Path:
    """A report of a bundle all of whose names are meant to harm."""
    name = HOSTILE + TRACKER

    def manifest(one: Any) -> Any:
        skipped = (Skipped(node=name, op=name, reason=name),)
        lints = (Lint(kind="unfused", subject=name, text=name, action=name),)
        variants = tuple(
            replaced(variant, lints=lints, coverage=Coverage(eligible=1, quantized=0, skipped=skipped))
            for variant in one.variants
        )
        return replaced(
            one, name=name, model=replaced(one.model, source=name, licence=name), notes=(name,), variants=variants
        )

    folder = place / "hostile"
    folder.mkdir()
    (bundle,) = place.bundles()
    rewritten(bundle, folder / "bundle", manifest, lambda one: replaced(one, host=replaced(one.host, cpu=name)))
    result = place.run("report", "hostile", "--output", "hostile.html")
    assert result.code == 0, result.err
    return place / "hostile.html"


# --- what it says --------------------------------------------------------------------------------------------------


def test_the_page_has_everything_about_the_build(page: Path) -> None:
    text = html.unescape(page.read_text(encoding="utf-8"))
    for wanted in (
        "Summary", "Accuracy, latency and size", "Pipeline", "Accuracy by stage", "first ms", "peak MB",
        "Time by operator", "Left in float", "Findings", "Repairs", "Origin", "History", "SHA-256", "licence",
        "not given",
    ):  # fmt: skip
        assert wanted in text, wanted
    assert text.count("<figure>") >= 5
    assert "QLinear" in text, "operators that onnxruntime ran"


def test_steps_have_their_time_and_their_state_in_the_store(page: Path) -> None:
    rows = re.findall(
        r'<th scope="row">([^<]+)</th>\s*<td>(made|there already)</td>(.*?)</tr>', page.read_text(), re.S
    )
    states = {step: (state, re.findall(r">([^<>\s]+)</td>", rest)) for step, state, rest in rows}
    state, times = states["calibrate"]
    assert state == "there already"
    assert times[0] == "-", "it did not run in this build"
    assert float(times[1]) >= 0, "and this is what it took when it was made"


def test_tables_can_be_read_aloud(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    tables = re.findall(r"<table>.*?</table>", text, re.S)
    assert len(tables) > 10
    for table in tables:
        assert "<caption" in table
        assert 'scope="col"' in table
        assert table.count('scope="row"') == table.count("<tr>") - 1
    assert all(alt for alt in re.findall(r'<img [^>]*alt="([^"]*)"', text))
    assert '<html lang="en">' in text


def test_markdown_has_the_same_tables_on_stdout(place: Workplace) -> None:
    result = place.run("report", "bundles", "--format", "md", "--output", "-")
    assert result.code == 0, result.err
    assert "| bundle | target | default |" in result.out
    assert "## Pipeline" in result.out
    assert "not measured; &#96;edge-exporter report --ops&#96;" in result.out


def test_what_was_not_measured_or_recorded_is_said(place: Workplace, tmp_path: Path) -> None:
    (bundle,) = place.bundles()
    bare = rewritten(bundle, tmp_path / "bare", lambda one: replaced(one, choice=replaced(one.choice, profile=None)))
    shutil.rmtree(bare / "profiles")
    other = Workplace(tmp_path / "elsewhere")
    result = other.run("report", tmp_path, "--format", "md", "--output", "-")
    assert result.code == 0, result.err
    assert "not recorded" in result.out
    assert "no bundle here has a latency profile" in result.out
    assert "none were needed" in result.out


def test_devices_stand_side_by_side_and_imported_ones_say_so(place: Workplace, tmp_path: Path) -> None:
    (bundle,) = place.bundles()
    both = rewritten(bundle, tmp_path / "both")
    elsewhere = rewritten(
        bundle,
        tmp_path / "other" / "pi",
        profile=lambda one: replaced(slower(one, 3), provenance="imported", device="pi"),
    )
    for profile in (elsewhere / "profiles").iterdir():
        shutil.copyfile(profile, both / "profiles" / "imported-pi.json")
    out = place.run("report", both, "--format", "md", "--output", "-").out
    assert "Devices side by side" in out
    assert "| imported on pi" in out


def test_one_file_on_two_runtimes_is_never_told_as_one(place: Workplace, tmp_path: Path) -> None:
    (bundle,) = place.bundles()

    def manifest(one: Any) -> Any:
        return replaced(one, runtime=replaced(one.runtime, alternatives={"older": ("older==1",)}))

    def older(one: Profile) -> Profile:
        across = RuntimeRatio(
            variant="int8", baseline="onnxruntime", ratio=3.0, low=2.5, high=3.5, confidence=0.95, widened_by=1.2,
            verdict="slower",
        )  # fmt: skip
        delegation = Delegation(delegate="XNNPACK", operators=2, of=5)
        variants = tuple(replaced(variant, delegation=delegation) for variant in slower(one, 3).variants)
        return replaced(one, runtime=replaced(one.runtime, name="older"), variants=variants, across=(across,))

    both = rewritten(bundle, tmp_path / "both", manifest)
    for profile in (rewritten(bundle, tmp_path / "other", manifest, older) / "profiles").iterdir():
        shutil.copyfile(profile, both / "profiles" / "older.json")
    out = place.run("report", both, "--format", "md", "--output", "-").out
    assert "| int8 on older | " in out
    for section in ("Latency on onnxruntime, native on ", "Latency on older, native on "):
        assert out.count(section) == 1
    shown = place.run("show", both).out
    for text in (out, " ".join(shown.split())):
        assert "int8 3.00x [2.50, 3.50]" in text
        assert "operators that XNNPACK computes: fp32 2/5, int8 2/5" in text


def test_emulated_devices_stand_apart_and_repairs_say_what_they_brought(place: Workplace, tmp_path: Path) -> None:
    (bundle,) = place.bundles()
    repair = Repair(change="conv in float", kept=True, sqnr_db=(11.5, None), metric=(0.8, 0.9), quantized=(3, 2))
    cost = ModelCost(parameters=1234, macs=5, bytes=6, compressed_bytes=None, zeros=0.5)
    entry = HistoryEntry(name="pruned", role="step", digest="0", cost=cost, metric=0.75)

    def repaired(one: Any) -> Any:
        variants = (one.variants[0], replaced(one.variants[1], repairs=(repair,)))
        return replaced(one, variants=variants, history=(entry,))

    emulated = rewritten(bundle, tmp_path / "emulated", repaired)
    (emulated / "profiles" / "pi5.instructions.json").write_bytes(canonical(counts(read_manifest(emulated))))
    out = place.run("report", emulated, "--format", "md", "--output", "-").out
    apart = out[out.index("### Emulated devices and other tools") :]
    assert "These are no times" in apart
    assert "123,456" in apart
    assert "int8: too new" in apart
    assert "123,456" not in out[: out.index("### Emulated devices")]
    assert (
        "| conv in float | int8 | the gate was not met | yes | 11.5 to exact | 0.8000 to 0.9000 | 3 to 2 | - |" in out
    )
    assert "| torch: pruned (step) | 0.7500 |" in out


def test_history_shows_every_measurement_of_the_model(place: Workplace) -> None:
    (bundle,) = place.bundles()
    done = place.run("profile", bundle, "--min-seconds", "0.02", "--max-seconds", "0.3")
    assert done.code == 0, done.err
    out = place.run("report", "bundles", "--history", "--format", "md", "--output", "-").out
    history = out[out.index("## History") :]
    assert history.count("| int8 |") == 2


# --- what it refuses -----------------------------------------------------------------------------------------------


def test_a_damaged_bundle_is_left_out_and_named(place: Workplace, tmp_path: Path) -> None:
    (bundle,) = place.bundles()
    shutil.copytree(bundle, tmp_path / "whole")
    dented = shutil.copytree(bundle, tmp_path / "dented")
    (dented / "manifest.json").write_bytes(
        (dented / "manifest.json").read_bytes().replace(b'"samples":', b'"samples": ')
    )
    result = place.run("report", tmp_path, "--output", "left.html")
    assert result.code == 0
    assert "left out: dented" in result.out
    refused(place.run("report", dented, "--output", "left.html"), 6, "manifest.json", hint=False)


def test_folders_without_bundles_and_bad_places_are_refused(place: Workplace, tmp_path: Path) -> None:
    (bundle,) = place.bundles()
    refused(place.run("report", tmp_path), 3, "no bundle to report on")
    refused(place.run("report", tmp_path / "nothing"), 3, "no such folder")
    refused(place.run("report", "bundles", "--output", bundle / "report.html"), 3, "inside a bundle")
    refused(place.run("report", "bundles", "--output", tmp_path / "no" / "r.html"), 3, "not there")
    refused(place.run("report", "bundles", "--output", tmp_path), 3, "is a folder")
    assert place.run("verify", bundle, "--no-run").code == 0


def test_without_jinja2_the_extra_is_named_and_markdown_still_works(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] in ("jinja2", "matplotlib"):
            raise ImportError(f"No module named '{name}'", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    refused(place.run("report", "bundles", "--output", "x.html"), 4, "jinja2", 'pip install "edge-exporter[report]"')
    assert not (place / "x.html").exists()
    assert place.run("report", "bundles", "--format", "md", "--output", "x.md").code == 0


# --- in a browser --------------------------------------------------------------------------------------------------


@needs_browser
def test_the_page_renders_without_a_word_on_the_console_and_without_network(browser: Browser, page: Path) -> None:
    dom, console = browser.dom(page)
    assert console == []
    assert "Accuracy by stage" in dom
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r'(?:src|href)="(data:|#|[^"]{1,20})', text)) == {"data:", "#"}
    assert not [asked for asked in browser.asked if "invalid" in asked]


@needs_browser
def test_the_browser_would_have_told(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(f"<title>x</title><script>console.error('broken')</script>{TRACKER}")
    _, console = browser.dom(bad)
    assert any("broken" in line for line in console)
    assert any("tracker.invalid" in asked for asked in browser.asked)
    browser.asked.clear()


@needs_browser
def test_a_screenshot_is_not_empty_and_follows_light_and_dark(browser: Browser, page: Path) -> None:
    light, dark = (pixels(browser.screenshot(page, *flags)) for flags in ((), (DARK,)))
    for picture in (light, dark):
        assert colours(picture) > 50, "text and plots in several colours"
    assert light.mean() > 200
    assert dark.mean() < 80
    ink = [
        (abs(picture.astype(int) - picture[0, 0].astype(int)).sum(axis=2) > 60).mean() for picture in (light, dark)
    ]
    assert min(ink) > 0.01, "something is drawn"
    assert ink[1] == pytest.approx(ink[0], rel=0.5), "as much of it in the dark"


@needs_browser
def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Browser, hostile: Path, page: Path) -> None:
    for one in (page, hostile):
        measured = one.with_name(f"measured-{one.name}")
        told = "parent.postMessage(document.documentElement.scrollWidth + '/' + innerWidth, '*')"
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", one.read_text(encoding="utf-8"))
        measured.write_text(f"{text}<script>addEventListener('load', () => {told})</script>", encoding="utf-8")
        frame = one.with_name(f"frame-{one.name}")
        frame.write_text(
            "<title>x</title><p id=width></p><script>addEventListener('message', "
            "one => document.getElementById('width').textContent = one.data)</script>"
            f'<iframe style="width:360px;height:600px;border:0" src="{measured.name}"></iframe>'
        )
        dom, _ = browser.dom(frame)
        found = re.search(r'<p id="width">(\d+)/(\d+)</p>', dom)
        assert found, dom
        assert int(found[1]) <= int(found[2]) == 360


@needs_browser
def test_hostile_names_are_text_in_the_browser(browser: Browser, hostile: Path) -> None:
    browser.asked.clear()
    dom, console = browser.dom(hostile)
    assert console == []
    assert "<script" not in dom
    assert "&lt;script&gt;alert" in dom
    assert "\N{SNOWMAN}" in dom
    assert re.findall(r'<img src="(?!data:)', dom) == []
    assert not [asked for asked in browser.asked if "tracker.invalid" in asked]
    assert colours(pixels(browser.screenshot(hostile))) > 50


def test_hostile_names_are_text_in_markdown(place: Workplace, hostile: Path) -> None:
    out = place.run("report", "hostile", "--format", "md", "--output", "-").out
    assert "<script" not in out
    assert "<img" not in out
    assert hostile.exists()


def pixels(picture: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB"))


def colours(picture: np.ndarray[Any, np.dtype[np.uint8]]) -> int:
    return len(np.unique(picture.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)))
