"""Bytes survive the way to a file and back, a grid shows its images in reading order, and images are what people have."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from lods_jax.core import images
from lods_jax.core.images import (
    grid,
    oklab,
    read_depth,
    read_rgba,
    to_uint8,
    white_level,
    white_of_file,
    write_image,
    write_png,
    write_tiff,
)

FILES = Path(__file__).parents[1] / "data" / "user_files" / "pictures"
BYTES = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 3)).astype(np.uint8)


def test_every_byte_is_the_byte_of_its_share_of_255():
    all_bytes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(all_bytes / np.float32(255)), all_bytes)
    np.testing.assert_array_equal(to_uint8(all_bytes), all_bytes)


def test_colours_outside_the_range_are_cut_and_the_rest_is_rounded_to_the_nearest():
    np.testing.assert_array_equal(to_uint8(np.array([-3.0, 0.4 / 255, 0.6 / 255, 1.0, 7.0])), [0, 0, 1, 255, 255])


@pytest.mark.parametrize("columns", [1, 2, 5, 7])
def test_a_grid_shows_its_images_row_by_row_and_white_where_there_is_none(columns):
    sheet = grid(BYTES, columns)
    rows = -(-5 // columns)
    assert sheet.shape == (rows * 3, columns * 4, 3)
    tiles = [sheet[3 * r :, 4 * c :][:3, :4] for r in range(rows) for c in range(columns)]
    np.testing.assert_array_equal(tiles[:5], BYTES)
    assert all(np.all(tile == 255) for tile in tiles[5:])


def test_a_png_reads_back_as_the_bytes_that_were_written(tmp_path):
    path = write_png(tmp_path / "new" / "folder" / "image.png", BYTES[0] / np.float32(255))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), BYTES[0])


def test_scaling_repeats_pixels(tmp_path):
    image = np.asarray(Image.open(write_png(tmp_path / "image.png", BYTES[0], scale=3)))
    np.testing.assert_array_equal(image, BYTES[0].repeat(3, 0).repeat(3, 1))


def test_a_failed_write_leaves_the_old_image(tmp_path, monkeypatch):
    path = write_png(tmp_path / "image.png", BYTES[0])

    def fail(image, file, *args):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_png(path, BYTES[1])
    monkeypatch.undo()
    np.testing.assert_array_equal(np.asarray(Image.open(path)), BYTES[0])


def test_a_write_leaves_nothing_but_the_image(tmp_path):
    write_png(tmp_path / "image.png", BYTES[0])
    write_png(tmp_path / "image.png", BYTES[1])
    assert [file.name for file in tmp_path.iterdir()] == ["image.png"]


# --- files ----------------------------------------------------------------------------------------------------------------------
def disc(size=64, radius=20, centre=(32, 32)):
    """[size size] share of a pixel that a disc covers."""
    y, x = np.mgrid[:size, :size] + 0.5
    return np.clip(radius + 0.5 - np.hypot(y - centre[0], x - centre[1]), 0, 1).astype(np.float32)


def on(alpha, color, behind):
    return alpha[..., None] * np.float32(color) + (1 - alpha[..., None]) * np.float32(behind)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1"])
def test_every_mode_of_colour_is_read(tmp_path, mode):
    file = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.fromarray((255 * on(disc(), (1, 0, 0), (1, 1, 1))).astype(np.uint8)).convert(mode).save(file)
    rgba = read_rgba(file)
    assert rgba.shape == (64, 64, 4)
    assert rgba.min() >= 0
    assert rgba.max() <= 1


def test_sixteen_bits_are_not_clipped(tmp_path):
    depth = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(depth).save(tmp_path / "depth.png")
    np.testing.assert_allclose(read_rgba(tmp_path / "depth.png")[..., 0], depth / 65535, atol=1e-6)


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    red, blue = (Image.new("RGB", (16, 16), color) for color in ("red", "blue"))
    red.save(tmp_path / "x.gif", save_all=True, append_images=[blue])
    np.testing.assert_allclose(read_rgba(tmp_path / "x.gif")[0, 0], [1, 0, 0, 1], atol=0.01)


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_image_is_one_line(tmp_path, data):
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(ValueError, match=r"cannot read .*x\.png as an image") as caught:
        read_rgba(tmp_path / "x.png")
    assert "\n" not in str(caught.value)


def test_a_huge_image_is_refused_before_it_is_read(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"20000 x 20000 pixels are more than 64,000,000|exceeds limit"):
        read_rgba(tmp_path / "x.png")


def test_the_bound_is_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    Image.new("RGB", (16, 16)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="16 x 16 pixels are more than 100"):
        read_rgba(tmp_path / "x.png")


@pytest.mark.parametrize("name", ["eps_named.png", "svg.svg"])
def test_what_pillow_would_start_a_program_for_is_no_image(name):
    """An EPS starts Ghostscript, whatever the file is named; formats are a list."""
    with pytest.raises(ValueError, match="it is none of PNG, JPEG"):
        read_rgba(FILES / name)


def test_a_pipe_is_no_picture_and_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x\.png is no file"):
        read_rgba(tmp_path / "x.png")


MEMORY = """
import resource, sys
from lods_jax.core.images import read_rgba
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before = peak()
try:
    said = read_rgba(sys.argv[1]).shape
except ValueError as error:
    said = error
print(peak() - before, said)
"""


@pytest.mark.parametrize(("mode", "reads"), [("1", True), ("P", True), ("RGB", False), ("RGBA", False)])
def test_a_picture_of_64_million_pixels_takes_less_than_250_mib_or_is_refused(tmp_path, mode, reads):
    """Resident memory, of which tracemalloc sees little, as Pillow has its own. In RGBA alone they would be 244 MiB."""
    file = FILES / "png_8000x8000_1bit.png"
    if mode != "1":
        file = tmp_path / "x.png"
        Image.new(mode, (8000, 8000)).save(file, compress_level=1)
    done = subprocess.run([sys.executable, "-c", MEMORY, str(file)], capture_output=True, text=True, check=True)
    mib, said = done.stdout.split(" ", 1)
    assert int(mib) < 250
    assert ("(2000, 2000, 4)" if reads else "make it smaller") in said


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK", "LA"])
def test_reducing_in_strips_is_reducing_at_once(tmp_path, monkeypatch, mode):
    """Every pixel is the mean of a block, colours weighed by alpha; sides that no factor divides included."""
    rng = np.random.default_rng(0)
    image = (
        Image.fromarray(rng.integers(0, 256, (601, 307, 4)).astype(np.uint8))
        .convert("RGB" if mode == "CMYK" else "RGBA")
        .convert(mode)
    )
    image.save(tmp_path / ("x.tif" if mode == "CMYK" else "x.png"))
    monkeypatch.setattr(images, "MAX_EDGE", 100)
    found = read_rgba(next(tmp_path.glob("x.*")))
    expected = np.asarray(image.convert("RGBA").reduce(7), np.float32) / 255
    assert found.shape == (86, 44, 4)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_picture_stands_upright_large_or_small(tmp_path, monkeypatch, turn):
    """The eight orientations of EXIF, as Pillow turns them."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 40, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = turn
    image.save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as file:
        expected = np.asarray(ImageOps.exif_transpose(file), np.float32) / 255
    np.testing.assert_allclose(read_rgba(tmp_path / "x.png")[..., :3], expected, atol=1e-6)
    monkeypatch.setattr(images, "MAX_EDGE", 10)
    assert read_rgba(tmp_path / "x.png").shape[:2] == (expected.shape[0] // 4, expected.shape[1] // 4)


# --- numbers that are no bytes --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_greys_of_any_range_are_read_with_it(tmp_path, white, kind):
    """The same image as floats or integers, to 1, to 255 or to 65,535."""
    if kind is np.int32 and white == 1:
        pytest.skip("integers to 1 are no picture")
    grey = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    Image.fromarray((grey * white).astype(kind)).save(tmp_path / "x.tif")
    rgba = read_rgba(tmp_path / "x.tif")
    np.testing.assert_allclose(rgba[..., 1], grey, atol=1.01 / white if kind is np.int32 else 1e-6)
    assert np.all(rgba[..., 3] == 1)


def test_the_two_float_pictures_of_a_user_are_the_same_picture():
    unit, bytes_ = read_rgba(FILES / "float.tif"), read_rgba(FILES / "float255.tif")
    np.testing.assert_allclose(unit, bytes_, atol=1e-6)
    assert [white_of_file(FILES / name) for name in ("float.tif", "float255.tif", "grey16.png", "rgba.png")] == [
        1,
        255,
        65535,
        None,
    ]
    assert len(np.unique(unit[..., 0])) > 100


def test_what_is_not_finite_is_transparent(tmp_path):
    grey = np.full((16, 16), 0.5, np.float32)
    grey[3, 4], grey[5, 6] = np.nan, np.inf
    Image.fromarray(grey).save(tmp_path / "x.tif")
    rgba = read_rgba(tmp_path / "x.tif")
    assert np.isfinite(rgba).all()
    assert rgba[..., 3].sum() == 16 * 16 - 2
    assert rgba[3, 4, 3] == 0


@pytest.mark.parametrize(
    ("top", "whole", "white"),
    [
        (1.0, False, 1),
        (1.7, False, 1),
        (200.0, False, 255),
        (1, True, 1),
        (2, True, 255),
        (256, True, 65535),
        (1e9, True, 2**32 - 1),
    ],
)
def test_white_is_the_smallest_that_holds_all(top, whole, white):
    assert white_level(np.array([0, top, np.nan, np.inf]), whole) == white


@pytest.mark.parametrize(
    "depth", [np.linspace(2, 4, 4096, dtype=np.float32), np.arange(1000, 5096, dtype=np.int32), np.arange(4096, dtype=np.uint16)]
)
def test_depths_keep_their_units_and_every_digit(tmp_path, depth):
    Image.fromarray(depth.reshape(64, 64)).save(tmp_path / "x.tif")
    np.testing.assert_array_equal(read_depth(tmp_path / "x.tif"), depth.reshape(64, 64).astype(np.float32))
    write_tiff(tmp_path / "y.tif", read_depth(tmp_path / "x.tif"))
    np.testing.assert_array_equal(read_depth(tmp_path / "y.tif"), depth.reshape(64, 64).astype(np.float32))


def test_a_depth_that_was_not_measured_is_that_of_its_neighbour(tmp_path):
    depth = np.repeat(np.arange(16, dtype=np.float32)[:, None], 16, 1)
    depth[4, 5], depth[9, 9] = np.nan, np.inf
    Image.fromarray(depth).save(tmp_path / "x.tif")
    found = read_depth(tmp_path / "x.tif")
    assert abs(found[4, 5] - 4) <= 1
    assert abs(found[9, 9] - 9) <= 1


@pytest.mark.parametrize("kind", [np.float32, np.int32, np.uint16])
def test_the_zeros_of_a_depth_camera_are_no_depths(tmp_path, kind):
    """Millimetres from 2,000 on: 0 is what it did not see. A map from 0 to 1 has its zeros."""
    depth = np.repeat(np.arange(2000, 2016)[:, None], 16, 1).astype(kind)
    depth[4, 5] = 0
    Image.fromarray(depth).save(tmp_path / "x.tif")
    assert abs(read_depth(tmp_path / "x.tif")[4, 5] - 2004) <= 1
    Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)).save(tmp_path / "y.tif")
    assert read_depth(tmp_path / "y.tif")[0, 0] == 0


def test_a_coloured_depth_map_is_refused(tmp_path):
    """Its red channel would be taken for the depth."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x\.png is coloured"):
        read_depth(tmp_path / "x.png")
    Image.fromarray(np.full((16, 16), np.nan, np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match="holds no finite depth"):
        read_depth(tmp_path / "x.tif")


@pytest.mark.parametrize(
    ("name", "kind"), [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.webp", "WEBP"), ("a.png", "PNG"), ("a", "PNG")]
)
def test_a_picture_is_written_in_the_format_that_its_name_says(tmp_path, name, kind):
    rgb = np.full((4, 6, 3), [200, 100, 50], np.uint8)
    write_image(tmp_path / name, rgb, scale=2)
    with Image.open(tmp_path / name) as image:
        assert (image.format, image.size) == (kind, (12, 8))
        np.testing.assert_allclose(np.asarray(image).mean((0, 1)), [200, 100, 50], atol=3)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((1, 1, 1), (1, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (0.62796, 0.22486, 0.12585)),  # the primaries as CSS Color 4 lists them
        ((0, 1, 0), (0.86644, -0.23389, 0.17950)),
        ((0, 0, 1), (0.45201, -0.03246, -0.31153)),
    ],
)
def test_oklab_of_known_colours(rgb, lab):
    np.testing.assert_allclose(oklab(np.float32(rgb)), lab, atol=2e-5)
