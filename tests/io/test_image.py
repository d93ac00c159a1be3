"""Bytes survive the way to a file and back, and a grid shows its images in reading order."""

import numpy as np
import pytest
from PIL import Image

from lods_jax.io.image import grid, to_uint8, write_png

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
