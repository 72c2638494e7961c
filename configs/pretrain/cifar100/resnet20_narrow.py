"""ResNet-20 of half the width on CIFAR-100, baseline: the network that Net2WiderNet starts from.

Stages of 8, 16 and 32 channels. The paper has no number for it.

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet20_narrow.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(name='BL')
model = dict(network=dict(width=8))
