"""ResNet-18 that is never updated: the reference without pretraining.

It keeps the initial weights of the other rows. Its epoch only measures the statistics of batch
normalisation, which a detector freezes.
Command: python tools/train.py configs/small/r18_random.py
"""

_base_ = ['../_base_/runtime.py', '../_base_/pretrain/tiny_imagenet.py']
algorithm = dict(name='random')
epochs = 1
optim_wrapper = dict(optimizer=dict(lr=0.0))
