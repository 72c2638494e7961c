"""ResNet-56 on CIFAR-100, snapshot ensemble (Table 3).

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet56_se.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(name='SE', generations=4)
model = dict(network=dict(depth=56))
paper = dict(top1_error=[32.85, 31.6, 30.45, 29.68], best=29.55, ensemble=27.93)
