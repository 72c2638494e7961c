"""ResNet-20 on CIFAR-100, Snapshot Distillation with T = 2 and lower rates after restarts.

Mini-generations 2 to 4 start at half the learning rate of the first (α_k of Eqn 5).
The paper has no number for it.

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet20_sd_rates.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(
    name='SD rates',
    generations=4,
    teacher_weight=1.0,
    temperature=2.0,
    rates=[1.0, 0.5, 0.5, 0.5],
)
