"""ResNet-56 on CIFAR-100, Snapshot Distillation with T = 2 (Table 3).

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet56_sd_t2.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(name='SD T=2', generations=4, teacher_weight=1.0, temperature=2.0)
model = dict(network=dict(depth=56))
paper = dict(top1_error=[32.85, 30.47, 29.72, 29.29], best=29.22, ensemble=28.11)
