"""ResNet-101 on ImageNet, Snapshot Distillation with K = 2 and T = 2 (Section 4.2).

Paper (Table 4): top-1 / top-5 error 22.94 / 6.51 % at M_#L1, 21.25 / 5.55 % at M_#L2.
Ours: not run yet.
Cost: not measured yet.
Command: tools/dist_train.sh configs/pretrain/r101_sd.py 8
"""

_base_ = ['../_base_/runtime.py', '../_base_/pretrain/imagenet.py']
algorithm = dict(name='SD', generations=2, teacher_weight=1.0, temperature=2.0)
model = dict(network=dict(depth=101))
paper = dict(top1_error=[22.94, 21.25], top5_error=[6.51, 5.55])
