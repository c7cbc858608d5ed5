"""The packaging of fastcifar; pyproject.toml holds the tools' settings."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="fastcifar",
    version=re.search(r'^__version__ = "(.+)"$', (HERE / "fastcifar/__init__.py").read_text(), re.MULTILINE)[1],
    description="Train small-image classifiers as fast as the hardware allows",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    author="the fastcifar authors",
    license="MIT",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["fastcifar*", "data_prep*"]),
    package_data={"fastcifar": ["recipes/*.toml"]},
    install_requires=[
        "torch>=2.11,<2.16",
        "torchvision",
        "numpy>=2",
        "pillow",
        "typer>=0.12",
        "rich",
        "safetensors",
        "scipy",
        "matplotlib",
    ],
    extras_require={
        "ffcv": ["ffcv>=1.0.2"],
        "gpu": ["nvidia-ml-py"],  # clocks and power beside the figures of benchmarks/gpu_suite.py
        "peers": ["kornia", "timm"],  # what `fastcifar bench` is held against, beside PyTorch, torchvision and FFCV
        "test": ["pytest", "pytest-xdist", "pytest-timeout", "pytest-cov", "pytest-benchmark", "hypothesis"],
        "lint": ["ruff"],
    },
    entry_points={"console_scripts": ["fastcifar = fastcifar.cli:main"]},
)
