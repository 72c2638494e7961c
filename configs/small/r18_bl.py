"""ResNet-18 on 100 classes of Tiny-ImageNet at 64 pixels, BL; small, not in the paper.

Command: python tools/train.py configs/small/r18_bl.py
"""

_base_ = ['../_base_/runtime.py', '../_base_/pretrain/tiny_imagenet.py']
algorithm = dict(name='BL')
