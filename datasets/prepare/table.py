"""The table of data sets: a name, a recipe."""

from .aligned import ALIGNED, FIVES_RECIPE
from .anhir import ANHIR
from .degrade import DEGRADE
from .diode import DIODE
from .lysto import LYSTO
from .pix2pix import EDGES, FACADES
from .recipe import Recipe
from .rotated_mnist import ROTATED_MNIST
from .volumes import CT_PET_RECIPE, MR_CT_RECIPE

RECIPES: dict[str, Recipe] = {
    "edges2handbags": EDGES,
    "facades": FACADES,
    "diode": DIODE,
    "lysto": LYSTO,
    "anhir": ANHIR,
    "bci": ALIGNED,
    "fives": FIVES_RECIPE,
    "ct_pet": CT_PET_RECIPE,
    "mr_ct": MR_CT_RECIPE,
    "rotated_mnist": ROTATED_MNIST,
    "degrade": DEGRADE,
}
