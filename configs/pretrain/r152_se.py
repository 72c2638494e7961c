"""ResNet-152 on ImageNet, snapshot ensemble: K = 2 cosines and no teacher (Section 4.2).

Paper (Table 4): top-1 / top-5 error 22.56 / 6.44 % at M_#L1, 21.84 / 5.84 % at M_#L2.
Ours: not run yet.
Cost: not measured yet; estimated at 2.2 hours on 8 H200s (README.md beside this file).
Command: tools/dist_train.sh configs/pretrain/r152_se.py 8 \
    --start-from work_dirs/r152_sd/snapshot_1.pth    # optional: shares generation 1 with SD
"""

_base_ = ['../_base_/runtime.py', '../_base_/pretrain/imagenet.py']
algorithm = dict(name='SE', generations=2)
model = dict(network=dict(depth=152))
paper = dict(top1_error=[22.56, 21.84], top5_error=[6.44, 5.84])
