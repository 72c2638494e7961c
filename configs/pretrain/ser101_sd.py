"""SE-ResNet-101 on ImageNet, Snapshot Distillation with K = 2 and T = 2 (Section 4.2).

Paper (Table 4): top-1 / top-5 error 22.41 / 6.10 % at M_#L1, 20.59 / 5.29 % at M_#L2.
Ours: not run yet.
Cost: not measured yet.
Command: tools/dist_train.sh configs/pretrain/ser101_sd.py 8
"""

_base_ = ['../_base_/runtime.py', '../_base_/pretrain/imagenet.py']
algorithm = dict(name='SD', generations=2, teacher_weight=1.0, temperature=2.0)
model = dict(network=dict(type='SEResNet', depth=101))
paper = dict(top1_error=[22.41, 20.59], top5_error=[6.1, 5.29])
