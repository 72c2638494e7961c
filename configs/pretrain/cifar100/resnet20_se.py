"""ResNet-20 on CIFAR-100, snapshot ensemble (Table 3).

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet20_se.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(name='SE', generations=4)
paper = dict(top1_error=[36.17, 33.36, 32.98, 32.66], best=32.54, ensemble=30.86)
