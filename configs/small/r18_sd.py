"""ResNet-18 on 100 classes of Tiny-ImageNet at 64 pixels, SD; small, not in the paper.

Command: python tools/train.py configs/small/r18_sd.py
"""

_base_ = ['../_base_/runtime.py', '../_base_/pretrain/tiny_imagenet.py']
algorithm = dict(name='SD', generations=2, teacher_weight=1.0, temperature=2.0)
