"""ResNet-20 on CIFAR-100, knowledge distillation from a ResNet-110, T = 2.

T softens teacher and student; λT = T² = 4 makes up for the smaller gradients (reference [19]). The
paper has no number for it.

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet20_kd.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(
    name='KD',
    teacher_weight=4.0,
    temperature=2.0,
    symmetric=True,
    label_weight=1.0,
)
# Train this network first; README.md beside this file has the command.
teacher = dict(
    network=dict(type='CifarResNet', depth=110, num_classes=100),
    checkpoint='work_dirs/table1/resnet110_bl/seed0/snapshot_1.pth',
)
