"""ResNet-101 on ImageNet, snapshot ensemble: K = 2 cosines and no teacher (Section 4.2).

Paper (Table 4): top-1 / top-5 error 22.94 / 6.51 % at M_#L1, 22.14 / 6.07 % at M_#L2.
Ours: not run yet.
Cost: not measured yet.
Command: tools/dist_train.sh configs/pretrain/r101_se.py 8
"""

_base_ = ['../_base_/runtime.py', '../_base_/pretrain/imagenet.py']
algorithm = dict(name='SE', generations=2)
model = dict(network=dict(depth=101))
paper = dict(top1_error=[22.94, 22.14], top5_error=[6.51, 6.07])
