"""ResNet-56 on CIFAR-100, baseline (Table 3).

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet56_bl.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(name='BL')
model = dict(network=dict(depth=56))
paper = dict(top1_error=[30.23], best=29.94)
