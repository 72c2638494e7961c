"""ResNet-101 on ImageNet, baseline: one cosine over 90 epochs (Section 4.2).

Paper (Table 4): top-1 / top-5 error 21.62 / 5.80 %.
Ours: not run yet.
Cost: not measured yet.
Command: tools/dist_train.sh configs/pretrain/r101_bl.py 8
"""

_base_ = ['../_base_/runtime.py', '../_base_/pretrain/imagenet.py']
algorithm = dict(name='BL')
model = dict(network=dict(depth=101))
paper = dict(top1_error=[21.62], top5_error=[5.8])
