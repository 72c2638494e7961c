"""ResNet-152 on ImageNet, Snapshot Distillation with K = 2 and T = 2 (Section 4.2).

Paper (Table 4): top-1 / top-5 error 22.56 / 6.44 % at M_#L1, 20.93 / 5.48 % at M_#L2.
Ours: not run yet.
Cost: not measured yet; estimated at 2.4 hours on 8 H200s (README.md beside this file).
Command: tools/dist_train.sh configs/pretrain/r152_sd.py 8
"""

_base_ = ['../_base_/runtime.py', '../_base_/pretrain/imagenet.py']
algorithm = dict(name='SD', generations=2, teacher_weight=1.0, temperature=2.0)
model = dict(network=dict(depth=152))
paper = dict(top1_error=[22.56, 20.93], top5_error=[6.44, 5.48])
