"""ResNet-20 on CIFAR-100, born-again networks in four generations (reference [11]).

T = 1: neither teacher nor student is softened. The paper has no number for it.

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet20_ban.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(
    name='BAN',
    generations=4,
    fresh_student=True,
    teacher_weight=1.0,
    temperature=1.0,
    label_weight=1.0,
)
