"""Networks by name; the table `BACKBONES`."""

from .edm2 import EDM2
from .unet import Skeleton, UNet

BACKBONES: dict[str, type[Skeleton]] = {"adm": UNet, "edm2": EDM2}
