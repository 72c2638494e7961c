"""The data sets to pretrain on: importing a module registers what is in it for configs to name."""

import pretrain.datasets.augmentation
import pretrain.datasets.cifar
import pretrain.datasets.image_folder  # noqa: F401
