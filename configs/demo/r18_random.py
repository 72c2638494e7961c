"""ResNet-18 that is never updated: the reference without pretraining, not a result.

It keeps the initial weights of the other rows. Its epoch only measures the statistics of batch
normalisation, which a detector freezes.
Command: python tools/train.py configs/demo/r18_random.py
"""

_base_ = ['../_base_/runtime.py', '../_base_/pretrain/demo.py']
algorithm = dict(name='random')
epochs = 1
optim_wrapper = dict(optimizer=dict(lr=0.0))
default_hooks = dict(logger=dict(interval=10))
