"""Convert any source of small images to `.beton` files and their manifest."""

from data_prep.convert import PrepResult, prepare

__all__ = ["PrepResult", "prepare"]
