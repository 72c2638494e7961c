"""ResNet-20 on CIFAR-100, Snapshot Distillation with T = 2 and a one-cycle schedule.

This is super-convergence [38], which Section 3.4 suggests: the learning rate rises and falls in
each mini-generation. The paper has no number for it.

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet20_sd_one_cycle.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(
    name='SD one-cycle',
    generations=4,
    teacher_weight=1.0,
    temperature=2.0,
    schedule='one_cycle',
)
