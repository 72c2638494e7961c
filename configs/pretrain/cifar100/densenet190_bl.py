"""DenseNet-190 on CIFAR-100, baseline (Table 3).

Command: tools/dist_train.sh configs/pretrain/cifar100/densenet190_bl.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100_densenet.py']
algorithm = dict(name='BL')
model = dict(network=dict(depth=190))
paper = dict(top1_error=[16.82], best=16.69)
