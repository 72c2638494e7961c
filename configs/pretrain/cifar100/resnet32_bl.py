"""ResNet-32 on CIFAR-100, baseline (Table 3).

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet32_bl.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(name='BL')
model = dict(network=dict(depth=32))
paper = dict(top1_error=[31.61], best=31.61)
