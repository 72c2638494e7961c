"""ResNet-18 on the built-in images at 48 pixels, BL: the demo's pretraining, not a result.

Command: python tools/train.py configs/demo/r18_bl.py
"""

_base_ = ['../_base_/runtime.py', '../_base_/pretrain/demo.py']
algorithm = dict(name='BL')
default_hooks = dict(logger=dict(interval=10))
