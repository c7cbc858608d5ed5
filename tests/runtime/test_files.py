"""Files are written completely or not at all."""

import os
import stat

import pytest

from fastcifar.runtime.files import replacing, write_json


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == '{\n  "old": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_value_that_is_no_json_keeps_the_old_file(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, 1)
    with pytest.raises(TypeError):
        write_json(path, object())
    assert path.read_text() == "1\n"


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    """As /dev/stdout, which root could replace by a file."""
    path = tmp_path / "pipe.json"
    os.mkfifo(path)
    end = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    write_json(path, [1])
    assert os.read(end, 100) == b"[\n  1\n]\n"
    os.close(end)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_the_file_that_it_names_is_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    link, file = tmp_path / "link.json", tmp_path / "folder" / "file.json"
    link.symlink_to(file)
    for value in (1, 2):  # the first makes the file
        write_json(link, value)
        assert file.read_text() == f"{value}\n"
    assert link.is_symlink()
