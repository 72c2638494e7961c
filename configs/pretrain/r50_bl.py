"""ResNet-50 on ImageNet, baseline: one cosine over 90 epochs; not in the paper.

Ours: not run yet. Cost: not measured yet. Only the depth differs from Table 4.
Command: tools/dist_train.sh configs/pretrain/r50_bl.py 8
"""

_base_ = ['../_base_/runtime.py', '../_base_/pretrain/imagenet.py']
algorithm = dict(name='BL')
model = dict(network=dict(depth=50))
