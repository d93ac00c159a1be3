"""The page: what it holds, that it is one safe file, and that it draws in a real browser what the rasterizer draws."""

import html.parser
import json
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lods_jax.config import Config, ObjectiveConfig, dump
from lods_jax.core.cameras import orbit_camera
from lods_jax.core.images import write_png
from lods_jax.runs.page import write_page
from lods_jax.runs.plots import plot, round_ticks
from lods_jax.runs.run_directory import read_run
from lods_jax.scenes.gaussian_rasterizer import rasterize
from lods_jax.scenes.ply import write_splat
from tests.runs.browser import Browser, needs_browser

EVIL = "a <script>window.evil=1</script> \"mug\" & 'co' </title><img src=x onerror=window.evil=1>"


def splats(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "means": rng.normal(size=(n, 3)).astype(np.float32) * [0.2, 0.3, 0.25],
        "quats": rng.normal(size=(n, 4)).astype(np.float32),
        "log_scales": np.log(rng.uniform(0.01, 0.12, (n, 3))).astype(np.float32),
        "opacity_logits": rng.uniform(-2, 3, n).astype(np.float32),
        "sh": rng.uniform(-1.5, 1.5, (n, 1, 3)).astype(np.float32),
    }


def make_run(folder, prompt="a red mug", n=60, name="sds", **files):
    """A folder as a finished run leaves it; `files` = False leaves one out."""
    folder.mkdir()
    config = Config(prompt=prompt, objective=ObjectiveConfig(name, 7.5))
    (folder / "config.yaml").write_text(dump(config))
    if files.get("note", True):
        (folder / "run.json").write_text(json.dumps({"state": "finished"}))
    if files.get("metrics", True):
        rows = [{"step": i, "score_rms": 1 / i, "gaussians": n, "fit": 0.0, "seconds": i} for i in range(1, 41)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if files.get("scene", True):
        write_splat(folder / "scene.splat", splats(n))
    if files.get("stills", True):
        for angle in range(0, 360, 45):
            write_png(folder / "stills" / f"{angle:03d}.png", np.full((8, 8, 3), angle / 360))
    if files.get("video", True):
        (folder / "video.mp4").write_bytes(b"not looked at here")
    return read_run(folder)


class Tags(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def named(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def test_a_page_holds_everything_and_loads_nothing(tmp_path):
    assert write_page([make_run(tmp_path / "run")], tmp_path / "index.html") == []
    text = (tmp_path / "index.html").read_text()
    page = Tags(text)
    assert len(page.named("canvas")) == len(page.named("video")) == 1
    assert len(page.named("img")) == 8
    assert not any("src" in attrs and not attrs["src"].startswith("data:") for _, attrs in page.tags)
    assert not page.named("link")
    assert "http" not in re.sub(r"https?-equiv|http-equiv", "", re.sub(r"xmlns=\S+", "", text.split("<script>")[0]))
    assert "objective:" in text
    assert "guidance_scale: 7.5" in text  # the configuration is there


def test_everything_that_is_seen_has_a_name(tmp_path):
    write_page([make_run(tmp_path / "run")], tmp_path / "index.html")
    page = Tags((tmp_path / "index.html").read_text())
    assert page.named("html")[0]["lang"] == "en"
    assert all("a red mug" in attrs["aria-label"] for attrs in page.named("canvas") + page.named("video"))
    assert all("a red mug, seen from" in attrs["alt"] for attrs in page.named("img"))
    assert all("from first to last step" in attrs["aria-label"] for attrs in page.named("svg"))
    assert len(page.named("svg")) == 2  # fit is 0 all along: nothing to see


def test_prompts_are_escaped_everywhere(tmp_path):
    write_page([make_run(tmp_path / "run", EVIL)], tmp_path / "index.html", {EVIL: np.ones((2, 4, 4, 3))})
    page = Tags((tmp_path / "index.html").read_text())
    assert not any("onerror" in attrs for attrs in page.named("img"))
    assert all("evil" not in str(attrs.keys()) for _, attrs in page.tags)
    assert len(page.named("script")) == 4  # splats, video, frames of the truth and the program


@pytest.mark.parametrize("left_out", ["note", "metrics", "scene", "stills", "video"])
def test_what_is_missing_is_told_in_a_line_and_the_rest_is_there(tmp_path, left_out):
    lines = write_page([make_run(tmp_path / "run", **{left_out: False})], tmp_path / "index.html")
    assert len(lines) == 1
    files = {"note": "run.json", "metrics": "metrics.jsonl", "scene": "scene.splat", "stills": "stills", "video": "video.mp4"}
    assert files[left_out] in lines[0]
    text = (tmp_path / "index.html").read_text()
    assert files[left_out] in text
    assert ("<canvas" in text) == (left_out != "scene")
    assert ("<video" in text) == (left_out != "video")


def test_a_run_that_was_killed_shows_its_newest_preview(tmp_path):
    run = make_run(tmp_path / "run", note=False, scene=False, stills=False, video=False)
    write_png(run.path / "previews" / "000010.png", np.zeros((4, 16, 3)))
    write_png(run.path / "previews" / "000100.png", np.ones((4, 16, 3)))
    write_page([run], tmp_path / "index.html")
    (image,) = Tags((tmp_path / "index.html").read_text()).named("img")
    assert "after step 100" in image["alt"]


def test_runs_side_by_side_say_what_differs(tmp_path):
    runs = [make_run(tmp_path / name, name=name) for name in ("sds", "csd")]
    write_page(runs, tmp_path / "index.html", {"a red mug": np.ones((2, 4, 4, 3))})
    text = (tmp_path / "index.html").read_text()
    assert "objective.name</th><td>sds</td><td>csd</td>" in text
    assert "objective.guidance_scale</th>" not in text
    assert len(Tags(text).named("canvas")) == 3


def test_ticks_are_round_and_enclose():
    for low, high in [(0, 1), (0.013, 0.0131), (-5, 1234), (3, 3), (0, 0), (-1e-9, 1e-9)]:
        ticks = round_ticks(low, high)
        assert ticks[0] <= low + 1e-12
        assert ticks[-1] >= high - 1e-12
        assert 2 <= len(ticks) <= 8


def test_plots_place_points_where_they_belong():
    """Two points: the first at the left end, the last at the right; the larger is higher."""
    points = re.search(r'points="(\S+),(\S+) (\S+),(\S+)"', plot("x", [("red", [(1, 0.0), (5, 10.0)])])).groups()
    x_0, y_0, x_1, y_1 = map(float, points)
    assert (x_0, x_1) == (42, 294)
    assert y_1 < y_0


# --- in a browser -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


STILL = "document.querySelector('[data-act=spin]').click(), document.querySelector('[data-act=home]').click()"
SETTLED = "(async () => { for (let i = 0; i < 5; i++) await new Promise(requestAnimationFrame); return true; })()"


def drawn(browser, name="canvas.view") -> np.ndarray:
    """What a canvas shows, [h w 3] in [0, 1]."""
    script = (
        f"(async () => {{ const b = await createImageBitmap(document.querySelector('{name}'));"
        "const d = new OffscreenCanvas(b.width, b.width), p = d.getContext('2d'); p.drawImage(b, 0, 0);"
        "return [b.width, ...p.getImageData(0, 0, b.width, b.width).data]; })()"
    )
    size, *data = browser.run(script)
    return np.asarray(data, np.float32).reshape(size, size, 4)[..., :3] / 255


@needs_browser
def test_the_browser_draws_what_the_rasterizer_draws(browser, tmp_path):
    """The same splats from the page's first camera: two programs, one image model."""
    write_page([make_run(tmp_path / "run", n=60)], tmp_path / "index.html")
    browser.open(tmp_path / "index.html")
    browser.run(STILL)
    browser.run(SETTLED)
    image = drawn(browser)
    theta = splats(60)
    camera = orbit_camera(jnp.array([0.6]), jnp.array([0.35]), jnp.array([2.1]), jnp.array([np.float32(np.pi / 4)]))
    render = rasterize(
        jnp.asarray(theta["means"], jnp.float32),
        jnp.asarray(theta["quats"]),
        jnp.exp(theta["log_scales"]),
        jax.nn.sigmoid(theta["opacity_logits"]),
        jnp.asarray(theta["sh"]),
        jnp.ones((1, 3)),
        camera,
        height=len(image),
        width=len(image),
        capacity=60 * 4096,
        means2d_probe=jnp.zeros((1, 60, 2)),
    )
    difference = np.abs(image - np.asarray(render.rgb[0]))
    # Bytes for colours, rotations and blending; 60 layers at most.
    assert difference.mean() < 0.01, difference.mean()
    assert np.quantile(difference, 0.99) < 0.06
    assert image.std() > 0.1
    assert browser.console == []


@needs_browser
def test_an_empty_scene_is_an_empty_view(browser, tmp_path):
    write_page([make_run(tmp_path / "run", n=0)], tmp_path / "index.html")
    browser.open(tmp_path / "index.html")
    assert drawn(browser).min() == 1
    assert browser.console == []


@needs_browser
def test_a_page_turns_with_keys_and_mouse_and_tells_no_one(browser, tmp_path):
    write_page([make_run(tmp_path / "run", EVIL)], tmp_path / "index.html")
    browser.open(tmp_path / "index.html")
    browser.run(STILL)
    browser.run(SETTLED)
    first = drawn(browser)
    browser.run("document.querySelector('canvas.view').focus()")
    for key, code in (("ArrowLeft", 37), ("ArrowUp", 38), ("+", 187)):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code)
        browser.run(SETTLED)
        turned = drawn(browser)
        assert np.abs(turned - first).mean() > 0.005, key
        first = turned
    box = json.loads(browser.run("JSON.stringify(document.querySelector('canvas.view').getBoundingClientRect())"))
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    browser.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left", clickCount=1)
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + 60, y=y, button="left", buttons=1)
    browser.call("Input.dispatchMouseEvent", type="mouseReleased", x=x + 60, y=y, button="left", clickCount=1)
    browser.run(SETTLED)
    assert np.abs(drawn(browser) - first).mean() > 0.005
    assert browser.run("window.evil") is None
    assert browser.console == []


@needs_browser
def test_a_phone_reads_the_page_without_scrolling_sideways(browser, tmp_path):
    runs = [make_run(tmp_path / name, name=name) for name in ("sds", "csd")]
    write_page(runs, tmp_path / "index.html", {"a red mug": np.ones((24, 32, 32, 3))})
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
    browser.open(tmp_path / "index.html")
    assert browser.run("document.documentElement.scrollWidth") <= 360
    browser.screenshot(tmp_path / "phone.png")
    assert Image.open(tmp_path / "phone.png").width == 720
    browser.call("Emulation.clearDeviceMetricsOverride")


@needs_browser
@pytest.mark.slow
def test_twenty_thousand_gaussians_fit_in_three_megabytes(browser, tmp_path):
    run = make_run(tmp_path / "run", n=20_000)
    config = replace(run.config, prompt="many")
    (run.path / "config.yaml").write_text(dump(config))
    write_page([read_run(run.path)], tmp_path / "index.html")
    assert (tmp_path / "index.html").stat().st_size <= 3 * 2**20
    browser.open(tmp_path / "index.html")
    assert drawn(browser).std() > 0.05


def test_a_page_shows_the_figures_that_a_run_was_measured_by(tmp_path):
    """And nothing else of the file: it may come from a stranger."""
    run = make_run(tmp_path / "run")
    write_page([run], tmp_path / "before.html")
    row = {"kid": 0.1234, "tint": None, "part_recall": True, EVIL: 1.0, "kind": EVIL, "step": 40}
    (run.path / "figures.json").write_text(json.dumps(row))
    write_page([run], tmp_path / "after.html")
    assert "Figures against the true object" not in (tmp_path / "before.html").read_text()
    text = (tmp_path / "after.html").read_text()
    assert "Figures against the true object after step 40" in text
    assert re.findall("<th scope=row>([a-z_]+)</th><td>([^<]*)</td>", text) == [("kid", "0.123")]
    assert "window.evil" not in text.split("Configuration")[0]


def test_figures_that_are_damaged_are_left_out(tmp_path):
    run = make_run(tmp_path / "run")
    (run.path / "figures.json").write_text('{"kid": 0.1')
    write_page([run], tmp_path / "page.html")
    assert "Figures against" not in (tmp_path / "page.html").read_text()
