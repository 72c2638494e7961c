"""ResNet-20 on CIFAR-100, Net2DeeperNet from a trained ResNet-14 (reference [5]).

The third block of each stage is new and starts as the identity. The paper has no number for it.

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet20_net2deeper.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(name='Net2DeeperNet')
# Train this network first; README.md beside this file has the command.
initial = dict(
    network=dict(type='CifarResNet', depth=14, num_classes=100),
    checkpoint='work_dirs/table1/resnet14_bl/seed0/snapshot_1.pth',
)
