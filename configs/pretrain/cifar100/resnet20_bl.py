"""ResNet-20 on CIFAR-100, baseline (Table 3).

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet20_bl.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(name='BL')
paper = dict(top1_error=[33.57], best=33.57)
