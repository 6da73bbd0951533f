"""The table of data sets: a name, a recipe."""

from . import pix2pix
from .recipe import Recipe

RECIPES: dict[str, Recipe] = {"edges2handbags": pix2pix.EDGES, "facades": pix2pix.FACADES}
