"""SE-ResNet-152 on ImageNet, Snapshot Distillation with K = 2 and T = 2 (Section 4.2).

Paper (Table 4): top-1 / top-5 error 21.89 / 6.04 % at M_#L1, 20.21 / 5.17 % at M_#L2.
Ours: not run yet.
Cost: not measured yet.
Command: tools/dist_train.sh configs/pretrain/ser152_sd.py 8
"""

_base_ = ['../_base_/runtime.py', '../_base_/pretrain/imagenet.py']
algorithm = dict(name='SD', generations=2, teacher_weight=1.0, temperature=2.0)
model = dict(network=dict(type='SEResNet', depth=152))
paper = dict(top1_error=[21.89, 20.21], top5_error=[6.04, 5.17])
