"""Fine-tune pretrained backbones on Pascal VOC, then evaluate and use the trained networks.

- A run: ``build`` completes its config, ``backbone`` hands the weights over, ``precision`` sets
  bf16, ``mmcv_ops`` replaces missing mmcv operators, ``probe`` is the k-NN probe.
- Its data: ``voc_preparation``, ``voc_checks``, and ``builtin``, which draws the demo's images.
- Backbones of other libraries: ``import_backbone``, ``preprocessings``.
- Backbones that differ in the scale of their features: ``feature_scale``.
- Trained networks: ``trained``, ``evaluate``, ``predict``, and ``pictures`` of their predictions.
- The machine: ``doctor``. Many runs in one table or page: ``studies``.
"""
