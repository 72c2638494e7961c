"""The data sets to pretrain on. To add one, import its module here: that registers it for configs.

A data set is a ``torch.utils.data.Dataset`` that ``pretrain.build`` makes with ``root``, ``split``
('train' or 'val') and ``seed``; and, if the config has an ``image_size``, with it as ``size``, and
with the images to ``skip``. Without one its images lie on the device, and no workers load them.
It has

- ``__getitem__((epoch, index))``, a dict of ``inputs``, uint8 RGB, and ``data_samples``, the class,
  or ``__getitems__`` for whole batches. :class:`pretrain.runs.randomness.EpochSampler` gives the
  pairs. What is random is drawn from (seed, epoch, index) alone, so that neither workers nor the
  number of processes nor a resume changes a sample;
- ``check(root, batch_size, processes, skip_unusable)``, the checks before a run; it returns a
  :class:`pretrain.datasets.image_folder.Checked`, whose hashes are part of a run's identity;
- ``file_list()``, a name for each sample, and ``metainfo['classes']``.

:class:`pretrain.datasets.image_folder.ClassFolder` is an example.
"""

import pretrain.datasets.augmentation
import pretrain.datasets.cifar
import pretrain.datasets.image_folder  # noqa: F401
