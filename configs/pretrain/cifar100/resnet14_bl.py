"""ResNet-14 on CIFAR-100, baseline: the network that Net2DeeperNet starts from.

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet14_bl.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(name='BL')
model = dict(network=dict(depth=14))
