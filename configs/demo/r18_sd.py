"""ResNet-18 on the built-in images at 48 pixels, SD: the demo's pretraining, not a result.

Command: python tools/train.py configs/demo/r18_sd.py
"""

_base_ = ['../_base_/runtime.py', '../_base_/pretrain/demo.py']
algorithm = dict(name='SD', generations=2, teacher_weight=1.0, temperature=2.0)
default_hooks = dict(logger=dict(interval=10))
