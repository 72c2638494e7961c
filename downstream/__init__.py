"""Fine-tuning of pretrained backbones on Pascal VOC, and whatever is done with the results.

- A run: ``build`` completes its config, ``backbone`` hands the weights over, ``precision`` and
  ``mmcv_ops`` say how it computes, ``probe`` is the k-NN probe.
- Its data: ``voc_preparation``, ``voc_checks``, and ``builtin``, which draws the demo's.
- Backbones of other libraries: ``import_backbone``, ``preprocessings``.
- Trained networks: ``trained``, ``evaluate``, ``predict``, and ``pictures`` of what they found.
- The machine: ``doctor``. Many runs, one table or page: ``studies``.
"""
