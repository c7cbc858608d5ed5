"""The library's front door."""

import inspect
import subprocess
import sys

import pytest

import fastcifar


@pytest.mark.parametrize("name", fastcifar.__all__)
def test_every_name_is_there_and_documented(name):
    assert inspect.getdoc(getattr(fastcifar, name))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match="ResidentLoader"):
        fastcifar.resident_loader  # noqa: B018


def test_importing_fastcifar_imports_no_torch():
    code = "import sys, fastcifar; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
