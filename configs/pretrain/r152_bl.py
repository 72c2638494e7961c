"""ResNet-152 on ImageNet, baseline: one cosine over 90 epochs (Section 4.2).

Paper (Table 4): top-1 / top-5 error 21.17 / 5.66 %. Ours: not run yet.
Cost: not measured yet; estimated at 2.2 hours on 8 H200s (README.md beside this file).
Command: tools/dist_train.sh configs/pretrain/r152_bl.py 8
"""

_base_ = ['../_base_/runtime.py', '../_base_/pretrain/imagenet.py']
algorithm = dict(name='BL')
model = dict(network=dict(depth=152))
paper = dict(top1_error=[21.17], top5_error=[5.66])
