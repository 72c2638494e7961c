"""The data sets to pretrain on. To add one, import its module here: that registers it for configs.

A data set is a ``torch.utils.data.Dataset``. Its constructor takes ``root``, ``split`` ('train' or
'val') and ``seed``. If the config has an ``image_size``, it also takes this as ``size``, and the
images to ``skip``; otherwise it holds its images on the device and no workers load them. It has

- ``__getitem__((epoch, index))``, which returns a dict of ``inputs``, uint8 RGB (3, H, W), and
  ``data_samples``, the class index; or ``__getitems__`` for whole batches.
  :class:`pretrain.runs.randomness.EpochSampler` gives the pairs. Augmentation depends on (seed,
  epoch, index) alone, so that workers, the number of processes and a resume change no sample;
- ``check(root, batch_size, processes, skip_unusable)``, a static method called before a run; it
  returns a :class:`pretrain.datasets.image_folder.Checked`, whose hashes are part of a run's
  identity;
- ``file_list()``, a name for each sample, and ``metainfo['classes']``, the class names.

:class:`pretrain.datasets.image_folder.ClassFolder` is an example.
"""

import pretrain.datasets.augmentation
import pretrain.datasets.cifar
import pretrain.datasets.image_folder  # noqa: F401
