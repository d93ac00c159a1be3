"""Files that are whole or not there at all."""

import pytest

from lods_jax.core.files import replacing


def test_a_finished_block_puts_the_new_file_in_place(tmp_path):
    path = tmp_path / "new" / "figures.json"
    with replacing(path) as partial:
        partial.write_text("1")
        assert partial.parent == path.parent
        assert partial.suffix == path.suffix
        assert not path.exists()
    assert path.read_text() == "1"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_block_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text("old")

    def write_half():
        with replacing(path) as partial:
            partial.write_text("ha")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
