"""ResNet-50 on ImageNet, Snapshot Distillation with K = 2 and T = 2; not in the paper.

Ours: not run yet. Cost: not measured yet. Only the depth differs from Table 4.
Command: tools/dist_train.sh configs/pretrain/r50_sd.py 8
"""

_base_ = ['../_base_/runtime.py', '../_base_/pretrain/imagenet.py']
algorithm = dict(name='SD', generations=2, teacher_weight=1.0, temperature=2.0)
model = dict(network=dict(depth=50))
