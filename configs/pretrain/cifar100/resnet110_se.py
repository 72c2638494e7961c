"""ResNet-110 on CIFAR-100, snapshot ensemble (Table 3).

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet110_se.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(name='SE', generations=4)
model = dict(network=dict(depth=110))
paper = dict(top1_error=[31.89, 29.81, 29.07, 28.27], best=28.09, ensemble=26.45)
