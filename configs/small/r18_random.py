"""ResNet-18 that is never updated: the floor of the comparison.

Its weights are the initial ones of the other rows. The epoch only measures the statistics of batch
normalisation, which a detector freezes.
Command: python tools/train.py configs/small/r18_random.py
"""

_base_ = ['../_base_/runtime.py', '../_base_/pretrain/tiny_imagenet.py']
algorithm = dict(name='random')
epochs = 1
optim_wrapper = dict(optimizer=dict(lr=0.0))
