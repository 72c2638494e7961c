"""ResNet-20 on CIFAR-100, a FitNet taught by a ResNet-110 (reference [35]).

In the first half of the epochs, a 1x1 regressor on the output of stage 2 imitates the teacher's
stage 2; the second half is knowledge distillation. The paper has no number for it.

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet20_fitnet.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(
    name='FitNet',
    generations=2,
    teacher_weight=4.0,
    temperature=2.0,
    symmetric=True,
    label_weight=1.0,
    features=dict(type='HintLoss', student='layer2', teacher='layer2', channels=(32, 32)),
)
# Train this network first; README.md beside this file has the command.
teacher = dict(
    network=dict(type='CifarResNet', depth=110, num_classes=100),
    checkpoint='work_dirs/table1/resnet110_bl/seed0/snapshot_1.pth',
)
