"""Bytes survive the way to a file and back, a grid shows its images in reading order, and pictures are what people have."""

import numpy as np
import pytest
from PIL import Image

from lods_jax.core import images
from lods_jax.core.images import cut_out, framed, grid, read_rgba, to_uint8, write_png

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


# --- pictures -------------------------------------------------------------------------------------------------------------------
def disc(size=64, radius=20, centre=(32, 32)):
    """[size size] share of a pixel that a disc covers."""
    y, x = np.mgrid[:size, :size] + 0.5
    return np.clip(radius + 0.5 - np.hypot(y - centre[0], x - centre[1]), 0, 1).astype(np.float32)


def on(alpha, color, behind):
    return alpha[..., None] * np.float32(color) + (1 - alpha[..., None]) * np.float32(behind)


def opaque(rgb):
    return np.concatenate([rgb, np.ones((*rgb.shape[:2], 1), np.float32)], -1)


def save(path, array, mode=None, **options):
    Image.fromarray((255 * array + 0.5).astype(np.uint8), mode).save(path, **options)
    return path


@pytest.mark.parametrize("behind", [(1, 1, 1), (0.2, 0.5, 0.3), (0, 0, 0)])
def test_a_plain_background_is_removed(behind):
    rng = np.random.default_rng(0)
    rgb = on(disc(), (0.9, 0.1, 0.1), behind) + 0.01 * rng.standard_normal((64, 64, 3)).astype(np.float32)
    alpha = cut_out(opaque(rgb.clip(0, 1)))[..., 3]
    assert np.mean(np.abs(alpha - (disc() > 0.2))) < 0.02


def test_what_has_the_colour_of_the_background_inside_the_object_stays():
    ring = disc(radius=24) - disc(radius=10)
    alpha = cut_out(opaque(on(ring, (0.9, 0.1, 0.1), (1, 1, 1))))[..., 3]
    assert alpha[32, 32] == 1
    assert alpha[2, 2] == 0


def test_an_alpha_is_taken_as_it_is():
    rgba = np.concatenate([on(disc(), (1, 0, 0), (0, 1, 0)), disc()[..., None]], -1)
    np.testing.assert_array_equal(cut_out(rgba), rgba)


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (opaque(np.random.default_rng(0).random((64, 64, 3), np.float32)), "neither an alpha nor a plain background"),
        (opaque(np.ones((64, 64, 3), np.float32)), "the picture shows nothing"),
        (np.zeros((64, 64, 4), np.float32), "the picture shows nothing"),
        (np.ones((1, 1, 4), np.float32), "at least 8 x 8 pixels, got 1 x 1"),
        (np.ones((4, 900, 4), np.float32), "at least 8 x 8 pixels, got 900 x 4"),
    ],
)
def test_what_has_no_object_is_refused(picture, says):
    with pytest.raises(ValueError, match=says):
        cut_out(picture)


@pytest.mark.parametrize(("size", "edge"), [(64, 64), (48, 200), (90, 30)])
def test_framing_puts_the_object_in_the_middle_at_its_share(size, edge):
    alpha = disc(size, size / 8, (size / 4, 0.7 * size))
    rgba = np.concatenate([on(alpha, (0.3, 0.6, 0.9), (0, 0, 0)) / np.maximum(alpha, 1e-6)[..., None], alpha[..., None]], -1)
    out = framed(rgba.clip(0, 1), edge, 0.7)
    rows, columns = (np.flatnonzero((out[..., 3] > 0.5).any(axis)) for axis in (1, 0))
    for inside in (rows, columns):
        assert abs((inside[0] + inside[-1] + 1) / 2 - edge / 2) <= 0.05 * edge
        assert abs(len(inside) - 0.7 * edge) <= 0.1 * edge
    np.testing.assert_allclose(out[edge // 2, edge // 2], [0.3, 0.6, 0.9, 1], atol=0.01)


def test_a_picture_as_it_is_keeps_its_centre_square():
    rgba = np.random.default_rng(0).random((40, 60, 4), np.float32)
    rgba[..., 3] = 1
    np.testing.assert_allclose(framed(rgba, 40), rgba[:, 10:50], atol=1e-5)


def test_colours_do_not_bleed_in_from_what_is_transparent():
    """A red disc on transparent green: no green after shrinking."""
    rgba = np.concatenate([on((disc() > 0.5).astype(np.float32), (1, 0, 0), (0, 1, 0)), (disc() > 0.5)[..., None]], -1)
    out = framed(rgba.astype(np.float32), 16)
    assert out[..., 1].max() < 1e-3


# --- files ----------------------------------------------------------------------------------------------------------------------
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
    monkeypatch.setattr(images, "MOST_PIXELS", 100)
    Image.new("RGB", (16, 16)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="16 x 16 pixels are more than 100"):
        read_rgba(tmp_path / "x.png")
