"""ResNet-20 on CIFAR-100, A Gift from Knowledge Distillation, from a ResNet-110 (reference [50]).

In the first half of the epochs, the FSP matrix of each stage imitates the teacher's; the second
half has no teacher. The paper has no number for it.

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet20_fsp.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(
    name='Gift',
    generations=2,
    features=dict(
        type='FSPLoss',
        pairs=[('relu', 'layer1'), ('layer2.0', 'layer2'), ('layer3.0', 'layer3')],
    ),
)
# Train this network first; README.md beside this file has the command.
teacher = dict(
    network=dict(type='CifarResNet', depth=110, num_classes=100),
    checkpoint='work_dirs/table1/resnet110_bl/seed0/snapshot_1.pth',
)
