"""How images of ImageNet are fed to a model; torch-free."""

from __future__ import annotations

# of ImageNet's training images, per channel
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
# a centre crop shows this share of the shorter side
CROP = 0.875
