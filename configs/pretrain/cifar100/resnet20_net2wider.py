"""ResNet-20 on CIFAR-100, Net2WiderNet from a trained ResNet-20 of half the width (reference [5]).

On average, two channels copy each channel of the narrow network. The paper has no number for it.

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet20_net2wider.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(name='Net2WiderNet')
# Train this network first; README.md beside this file has the command.
initial = dict(
    network=dict(type='CifarResNet', depth=20, num_classes=100, width=8),
    checkpoint='work_dirs/table1/resnet20_narrow/seed0/snapshot_1.pth',
)
