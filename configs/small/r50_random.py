"""ResNet-50 that is never updated: the floor beside an ImageNet-pretrained one.

The epoch only measures the statistics of batch normalisation, which a detector freezes.
Command: python tools/train.py configs/small/r50_random.py
"""

_base_ = 'r18_random.py'
model = dict(network=dict(depth=50))
