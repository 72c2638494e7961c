"""ResNet-50 that is never updated: the reference for the ImageNet-pretrained one.

Its epoch only measures the statistics of batch normalisation, which a detector freezes.
Command: python tools/train.py configs/small/r50_random.py
"""

_base_ = ['../_base_/runtime.py', '../_base_/pretrain/tiny_imagenet.py']
algorithm = dict(name='random')
epochs = 1
model = dict(network=dict(depth=50))
optim_wrapper = dict(optimizer=dict(lr=0.0))
