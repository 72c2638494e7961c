"""ResNet-20 on CIFAR-100, Snapshot Distillation with T = 3 (Table 3).

Command: tools/dist_train.sh configs/pretrain/cifar100/resnet20_sd_t3.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100.py']
algorithm = dict(name='SD T=3', generations=4, teacher_weight=1.0, temperature=3.0)
paper = dict(top1_error=[36.17, 33.69, 32.24, 31.97], best=31.76, ensemble=30.76)
