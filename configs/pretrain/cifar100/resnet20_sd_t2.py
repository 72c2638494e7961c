"""ResNet-20 on CIFAR-100, Snapshot Distillation with T = 2 (Table 3).

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet20_sd_t2.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(name='SD T=2', generations=4, teacher_weight=1.0, temperature=2.0)
paper = dict(top1_error=[36.17, 33.78, 32.98, 32.31], best=32.31, ensemble=32.08)
