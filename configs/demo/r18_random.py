"""ResNet-18 that is never updated: the floor for a comparison of backbones, not a result.

Its weights are the initial ones of the other rows. The epochs only measure the statistics of batch
normalisation, which a detector freezes.
Command: python tools/train.py configs/demo/r18_random.py
"""

_base_ = ['../_base_/runtime.py', '../_base_/pretrain/demo.py']
algorithm = dict(name='random')
epochs = 1
optim_wrapper = dict(optimizer=dict(lr=0.0))
default_hooks = dict(logger=dict(interval=10))
