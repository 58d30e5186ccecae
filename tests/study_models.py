"""A tiny backbone with every mixer, for tests of the study."""

from sola_profile.case import Resolution
from sola_vision.spec import BackboneSpec

MIXERS = {
    "L": "wkv",
    "T": ("wkv", {"decay_per": "token", "shift": False}),
    "S": "softmax",
    "R": "linear",
    "N": ("linear", {"rope": False, "lepe": False}),
    "D": "decay",
}
TINY = BackboneSpec("tiny", (16, 16, 24, 32), "LT|SR|NDS|S", mixers=MIXERS, head_dim=8, num_classes=4)
SIZE = Resolution(40, 56)
