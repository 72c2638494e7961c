"""ResNet-20 on CIFAR-100, Snapshot Distillation with T = 2 and unequal mini-generations.

The first mini-generation, which has no teacher, is longer than the others.
The paper has no number for it.

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet20_sd_unequal.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(
    name='SD unequal',
    teacher_weight=1.0,
    temperature=2.0,
    generations=[62, 34, 34, 34],
)
