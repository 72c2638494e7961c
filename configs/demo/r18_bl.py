"""ResNet-18 on the built-in images at 64 pixels, BL: the demo's pretraining, not a result.

Command: python tools/train.py configs/demo/r18_bl.py
"""

_base_ = ['../_base_/runtime.py', '../_base_/pretrain/demo.py']
algorithm = dict(name='BL', generations=[4], teacher_weight=0.0, temperature=1.0)
default_hooks = dict(logger=dict(interval=10))
