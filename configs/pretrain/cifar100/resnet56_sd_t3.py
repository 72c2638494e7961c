"""ResNet-56 on CIFAR-100, Snapshot Distillation with T = 3 (Table 3).

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet56_sd_t3.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(name='SD T=3', generations=4, teacher_weight=1.0, temperature=3.0)
model = dict(network=dict(depth=56))
paper = dict(top1_error=[32.85, 30.82, 29.55, 29.37], best=29.28, ensemble=27.74)
