"""ResNet-110 on CIFAR-100, baseline (Table 3).

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet110_bl.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(name='BL')
model = dict(network=dict(depth=110))
paper = dict(top1_error=[28.77], best=28.53)
