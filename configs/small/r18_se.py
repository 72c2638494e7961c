"""ResNet-18 on 100 classes of Tiny-ImageNet at 64 pixels, SE; small, not in the paper.

Command: python tools/train.py configs/small/r18_se.py
"""

_base_ = ['../_base_/runtime.py', '../_base_/pretrain/tiny_imagenet.py']
algorithm = dict(name='SE', generations=2)
