"""The table of data sets: a name, a recipe."""

from .degrade import DEGRADE
from .diode import DIODE
from .lysto import LYSTO
from .pix2pix import EDGES, FACADES
from .recipe import Recipe
from .rotated_mnist import ROTATED_MNIST

RECIPES: dict[str, Recipe] = {
    "edges2handbags": EDGES,
    "facades": FACADES,
    "diode": DIODE,
    "lysto": LYSTO,
    "rotated_mnist": ROTATED_MNIST,
    "degrade": DEGRADE,
}
